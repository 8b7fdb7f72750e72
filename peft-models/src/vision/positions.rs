//! Learned positions of patches.

use burn::tensor::Tensor;
use peft_core::ops::{Interpolation, interpolate};

/// The positions of a grid of patches for pictures of another size, as `interpolate_pos_encoding` of transformers has them.
///
/// The reference does so if it is asked to, and only for square pictures: it takes the root of the number of positions for
/// the side. Here a picture of another size always gets them, of the grid that `config.json` says.
///
/// # Shapes
/// - positions: `[1, rows · columns, d_model]`
/// - output: `[1, wanted rows · wanted columns, d_model]`
pub(super) fn for_grid(positions: Tensor<3>, [rows, columns]: [usize; 2], wanted: [usize; 2]) -> Tensor<3> {
    if wanted == [rows, columns] {
        return positions;
    }
    let d_model = positions.dims()[2];
    let grid = positions.swap_dims(1, 2).reshape([1, d_model, rows, columns]);
    let grid = interpolate(grid, wanted, Interpolation::Bicubic);
    grid.reshape([1, d_model, wanted[0] * wanted[1]]).swap_dims(1, 2)
}

/// Patches with their positions, behind the token that stands for the whole picture.
///
/// # Shapes
/// - patches: `[batch, patches, d_model]`, of the grid `wanted`
/// - class: `[1, 1, d_model]`
/// - positions: `[1, 1 + rows · columns, d_model]`
/// - output: `[batch, 1 + patches, d_model]`
pub(crate) fn behind_class_token(
    patches: Tensor<3>,
    class: Tensor<3>,
    positions: Tensor<3>,
    grid: [usize; 2],
    wanted: [usize; 2],
) -> Tensor<3> {
    let batch = patches.dims()[0];
    let [_, rows, d_model] = positions.dims();
    let of_class = positions.clone().narrow(1, 0, 1);
    let of_patches = for_grid(positions.narrow(1, 1, rows - 1), grid, wanted);
    let class = (class + of_class).expand([batch, 1, d_model]);
    Tensor::cat(vec![class, patches + of_patches], 1)
}
