//! Enlarging pictures.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// Every pixel of the output is the nearest of the input: torch's `interpolate(mode="nearest")`.
///
/// # Shapes
/// - input: `[batch, channels, rows, columns]`
/// - output: `[batch, channels, size[0], size[1]]`
pub fn upsample_nearest(input: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [batch, channels, rows, columns] = input.dims();
    if size == [rows, columns] {
        return input;
    }
    if size[0].is_multiple_of(rows) && size[1].is_multiple_of(columns) {
        let [tall, wide] = [size[0] / rows, size[1] / columns];
        let cells = input.reshape([batch, channels, rows, 1, columns, 1]);
        return cells.expand([batch, channels, rows, tall, columns, wide]).reshape([batch, channels, size[0], size[1]]);
    }
    let device = input.device().without_autodiff();
    input.select(2, nearest(rows, size[0], &device)).select(3, nearest(columns, size[1], &device))
}

/// Which of `from` pixels is nearest to each of `to`. The ratio is in single precision, as torch has it.
fn nearest(from: usize, to: usize, device: &Device) -> Tensor<1, Int> {
    let ratio = from as f32 / to as f32;
    let places: Vec<i64> = (0..to).map(|at| ((at as f32 * ratio) as i64).min(from as i64 - 1)).collect();
    Tensor::from_data(TensorData::new(places, [to]), device)
}
