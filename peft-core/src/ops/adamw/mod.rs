//! A step of AdamW in one pass over a parameter.

#[cfg(feature = "cube")]
mod cube;
mod settings;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
pub(super) use cube::together;
pub use settings::AdamWStep;

/// Whether the device of a parameter has a kernel for [`adamw_step`]. Where it has none, Burn's optimizer does the same in more
/// passes.
pub fn has_adamw_step<const D: usize>(parameter: &Tensor<D>) -> bool {
    #[cfg(feature = "cube")]
    if cube::fits(parameter) {
        return true;
    }
    let _ = parameter;
    false
}

/// The parameter and its two moments after a step, all in f32. Moments begin as zeros.
///
/// Source: arXiv 1711.05101; the order of what is done is that of Burn's `AdamW`.
///
/// # Panics
/// If the device has no kernel for it: see [`has_adamw_step`].
pub fn adamw_step<const D: usize>(
    parameter: Tensor<D>,
    grad: Tensor<D>,
    moments: [Tensor<D>; 2],
    step: AdamWStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    #[cfg(feature = "cube")]
    return cube::step(parameter, grad, moments, step);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (parameter, grad, moments, step);
        panic!("this build has no kernels for cards");
    }
}
