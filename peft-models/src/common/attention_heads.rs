//! Splitting a width into heads, and putting heads together again.

use burn::tensor::Tensor;

/// Every head apart.
///
/// # Shapes
/// - projected: `[batch, seq, heads · d_head]`
/// - output: `[batch, heads, seq, d_head]`
pub fn split_heads(projected: Tensor<3>, d_head: usize) -> Tensor<4> {
    let [batch, seq, width] = projected.dims();
    projected.reshape([batch, seq, width / d_head, d_head]).swap_dims(1, 2)
}

/// All heads side by side.
///
/// # Shapes
/// - mixed: `[batch, heads, seq, d_head]`
/// - output: `[batch, seq, heads · d_head]`
pub fn merge_heads(mixed: Tensor<4>) -> Tensor<3> {
    let [batch, heads, seq, d_head] = mixed.dims();
    mixed.swap_dims(1, 2).reshape([batch, seq, heads * d_head])
}
