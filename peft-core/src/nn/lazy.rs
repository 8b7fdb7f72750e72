//! Parameters that are not there until they are needed.

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Distribution, Tensor};

/// A frozen, lazy parameter.
///
/// Frozen is the default of this workspace: a base model is never trained as a whole unless it is asked to.
pub fn lazy<const D: usize>(
    shape: [usize; D],
    device: &Device,
    init: impl FnOnce(&Device) -> Tensor<D> + Send + Sync + 'static,
) -> Param<Tensor<D>> {
    let init = move |device: &Device, require_grad: bool| init(device).set_require_grad(require_grad);
    Param::uninitialized(ParamId::new(), init, device.clone(), false, shape.into())
}

pub(super) fn normal<const D: usize>(shape: [usize; D], std: f64, device: &Device) -> Param<Tensor<D>> {
    lazy(shape, device, move |device| Tensor::random(shape, Distribution::Normal(0.0, std), device))
}

pub(super) fn constant<const D: usize>(shape: [usize; D], value: f32, device: &Device) -> Param<Tensor<D>> {
    lazy(shape, device, move |device| Tensor::full(shape, value, device))
}

/// Standard deviation that transformers gives to weights that no checkpoint provides (`initializer_range`).
pub(super) const INITIALIZER_RANGE: f64 = 0.02;
