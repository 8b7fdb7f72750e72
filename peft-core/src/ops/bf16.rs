//! Mixed precision: products with weights in bf16.

use burn::tensor::{DType, Device, Tensor};

use crate::context;
use crate::error::{PeftError, Result};

/// Whether `device` has products in bf16.
///
/// # Errors
/// If it has not: the CPU backend has them on processors with AVX512_BF16 (Zen 4, Cooper Lake, Sapphire Rapids and later),
/// cards where their driver does. WGSL has no bf16.
pub fn check_bf16(device: &Device) -> Result<()> {
    let missing = |reason: &str| Err(PeftError::unsupported("bf16", reason));
    #[cfg(feature = "flex")]
    {
        use burn::backend::DispatchDevice;
        let device = device.clone().without_autodiff();
        if matches!(device.as_dispatch(), DispatchDevice::Flex(_)) {
            return match super::kernel::bf16::is_available() {
                true => Ok(()),
                false => {
                    missing("this processor multiplies in single precision only (it has no AVX512_BF16); leave it out")
                }
            };
        }
    }
    match device.supports_dtype(DType::BF16) {
        #[cfg(feature = "cube")]
        true if !crate::device::rounds_to_bf16(device) => missing(
            "the compiler of kernels for processors finds no `__truncsfbf2` here, which rounds to it; `--device flex` needs none",
        ),
        true => Ok(()),
        false => missing("this device has no bf16; leave it out, or use one that has (`cuda`, `vulkan`)"),
    }
}

/// Runs a forward whose products with weights are in bf16, and so are those of its backward pass that give the gradient
/// of a layer's input: what the reference calls `bf16=True`, torch's autocast.
///
/// Numbers are rounded to bf16 only where they enter such a product: of linear layers, with or without a low-rank update,
/// and of a head with its loss. Sums are in single precision, and so is all the rest: low-rank factors and their
/// gradients, attention, norms, gradients of weights that are trained whole. On cards and on libtorch, a product with a
/// weight that is trained is rounded as well, as torch's autocast does with all. What runs on another thread is not concerned.
///
/// # Errors
/// As [`check_bf16`].
pub fn within_bf16<R>(device: &Device, run: impl FnOnce() -> R) -> Result<R> {
    check_bf16(device)?;
    let _bf16 = context::enter(|it| it.bf16 = true);
    Ok(run())
}

/// Whether products with weights are in bf16.
pub(crate) fn is_on() -> bool {
    context::read(|it| it.bf16)
}

/// `input · weight` in bf16, whose sums are in single precision and rounded.
pub(super) fn product(input: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let dtype = input.dtype();
    // Codes are no numbers yet.
    let weight = if weight.dtype() == DType::BF16 { weight } else { super::to_f32(weight).cast(DType::BF16) };
    input.cast(DType::BF16).matmul(weight).cast(dtype)
}
