//! Sums of squares.

#[cfg(feature = "cube")]
mod cube;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
pub(super) use cube::together;

/// Adds the sum of the squares of a tensor to numbers whose sum is looked for: onto the last of them where the device has a
/// kernel that reads the tensor once and writes one number, elsewhere as one more.
pub fn squares_onto<const D: usize>(sums: &mut Vec<Tensor<1>>, tensor: Tensor<D>) {
    #[cfg(feature = "cube")]
    if cube::fits(&tensor) {
        let sum = sums.pop().unwrap_or_else(|| Tensor::zeros([1], &tensor.device()));
        sums.push(cube::add_squares(sum, tensor));
        return;
    }
    sums.push((tensor.clone() * tensor).sum());
}
