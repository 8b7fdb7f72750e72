//! Large pictures in tiles that overlap and are blended. Source: `tiled_encode` and `tiled_decode` of
//! `diffusers/models/autoencoders/autoencoder_kl.py` (0.42).

use burn::tensor::{Tensor, TensorData};

/// How a picture is cut, and how the results are put together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    /// Rows and columns of a tile.
    pub(super) size: usize,
    /// How far a tile begins behind the one before.
    pub(super) step: usize,
    /// Over how many rows and columns of the results neighbours are blended.
    pub(super) blend: usize,
    /// How many rows and columns of a result are kept.
    pub(super) kept: usize,
}

impl Tiles {
    /// The results of all tiles as one picture.
    pub(super) fn map(&self, input: &Tensor<4>, compute: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let [_, _, rows, columns] = input.dims();
        let mut above: Vec<Tensor<4>> = Vec::new();
        let mut strips = Vec::new();
        for top in (0..rows).step_by(self.step) {
            let strip = input.clone().narrow(2, top, self.size.min(rows - top));
            let mut tiles: Vec<Tensor<4>> = Vec::new();
            for (at, left) in (0..columns).step_by(self.step).enumerate() {
                let mut tile = compute(strip.clone().narrow(3, left, self.size.min(columns - left)));
                // The reference blends in place, so that a neighbour comes blended already.
                if let Some(above) = above.get(at) {
                    tile = blended(above, tile, 2, self.blend);
                }
                if let Some(left) = tiles.last() {
                    tile = blended(left, tile, 3, self.blend);
                }
                tiles.push(tile);
            }
            let kept = |tile: &Tensor<4>| {
                let [_, _, rows, columns] = tile.dims();
                tile.clone().narrow(2, 0, self.kept.min(rows)).narrow(3, 0, self.kept.min(columns))
            };
            strips.push(Tensor::cat(tiles.iter().map(kept).collect(), 3));
            above = tiles;
        }
        Tensor::cat(strips, 2)
    }
}

/// A tile whose first numbers along an axis pass over from the last ones of its neighbour.
fn blended(before: &Tensor<4>, tile: Tensor<4>, axis: usize, extent: usize) -> Tensor<4> {
    let (theirs, own) = (before.dims()[axis], tile.dims()[axis]);
    let extent = extent.min(theirs).min(own);
    if extent == 0 {
        return tile;
    }
    let share: Vec<f32> = (0..extent).map(|at| at as f32 / extent as f32).collect();
    let mut shape = [1; 4];
    shape[axis] = extent;
    let device = tile.device().without_autodiff();
    let share = Tensor::<4>::from_data(TensorData::new(share, shape), &device);
    let end = before.clone().narrow(axis, theirs - extent, extent);
    let begin = tile.clone().narrow(axis, 0, extent);
    let mixed = end * (share.ones_like() - share.clone()) + begin * share;
    if extent == own { mixed } else { Tensor::cat(vec![mixed, tile.narrow(axis, extent, own - extent)], axis) }
}
