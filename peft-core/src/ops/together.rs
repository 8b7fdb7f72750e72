//! Work on many small tensors, whose kernels are launched together.

#[cfg(feature = "cube")]
use super::{adamw, scaled, squares};

/// Runs [`adamw_step`](super::adamw_step), [`squares_onto`](super::squares_onto) and [`scaled`](super::scaled()) for many tensors.
/// Cards get their kernels when `run` ends, each for as many tensors as a device takes buffers; what is computed may not be read before.
pub fn together<R>(run: impl FnOnce() -> R) -> R {
    #[cfg(feature = "cube")]
    return adamw::together(|| scaled::together(|| squares::together(run)));
    #[cfg(not(feature = "cube"))]
    run()
}
