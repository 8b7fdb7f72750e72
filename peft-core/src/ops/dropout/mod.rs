//! Dropout.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
mod drawn;
#[cfg(feature = "flex")]
mod flex;

use burn::tensor::{Distribution, Tensor};

#[cfg(feature = "flex")]
use super::kernel;
use super::random;

/// Sets each number to zero with the given probability, 0 ≤ p < 1, and scales the others by `1 / (1 − p)`.
///
/// What is drawn depends on the seed of the device. On the CPU and on cards the mask is a function of two drawn
/// numbers and of the place in the tensor, so that nothing else is kept for the backward pass.
///
/// At 0 it is the input, and nothing is drawn.
pub fn dropout<const D: usize>(input: Tensor<D>, probability: f64) -> Tensor<D> {
    if probability == 0.0 {
        return input;
    }
    #[cfg(feature = "flex")]
    if kernel::fits(&input) {
        let seed = Seed::draw(&input.device().without_autodiff(), probability);
        return flex::dropout(input, seed);
    }
    #[cfg(feature = "cube")]
    if super::cube::fits(&input) {
        return drawn::dropout(input, probability);
    }
    let keep = 1.0 - probability;
    let mask = random(input.dims(), Distribution::Bernoulli(keep), &input.device());
    input * mask.mul_scalar(1.0 / keep)
}

#[cfg(feature = "flex")]
pub(crate) use flex::Seed;
