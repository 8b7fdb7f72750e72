//! Clipping of gradients by their common norm.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::tasks::task::scalar;

/// Scales all gradients down together if their common norm is above `max`, as torch's `clip_grad_norm_` does, and
/// returns the norm before.
pub(crate) fn clip_grad_norm<M: Module>(model: &M, gradients: &mut GradientsParams, max: f64) -> f64 {
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        sum: f64,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.sum += scalar(&(gradient.clone() * gradient).sum());
            }
        }
    }
    struct Scale<'a> {
        gradients: &'a mut GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, gradient.mul_scalar(self.factor));
            }
        }
    }
    let mut squares = Squares { gradients, sum: 0.0 };
    model.visit(&mut squares);
    let norm = squares.sum.sqrt();
    // torch adds 1e-6 to the norm.
    let factor = max / (norm + 1e-6);
    if max > 0.0 && factor < 1.0 {
        model.visit(&mut Scale { gradients, factor });
    }
    norm
}
