//! The norm of the gradients of a step, and their clipping.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::ops;

/// Scales all gradients down together if their common norm is above `max`, as torch's `clip_grad_norm_` does; 0 is no maximum.
///
/// The sum of the squares before, whose root is the norm; none if there are no gradients. Nothing is read from the device.
pub(crate) fn clip<M: Module>(model: &M, gradients: &mut GradientsParams, max: f64) -> Option<Tensor<1>> {
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        sums: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                ops::squares_onto(&mut self.sums, gradient);
            }
        }
    }
    struct Scale<'a> {
        gradients: &'a mut GradientsParams,
        factor: Tensor<1>,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, ops::scaled(gradient, &self.factor));
            }
        }
    }
    let mut squares = Squares { gradients, sums: Vec::new() };
    ops::together(|| model.visit(&mut squares));
    let squares = match squares.sums.len() {
        0 | 1 => squares.sums.pop()?,
        _ => Tensor::cat(squares.sums, 0).sum(),
    };
    if max > 0.0 {
        // torch adds 1e-6 to the norm.
        let factor = squares.clone().sqrt().add_scalar(1e-6).recip().mul_scalar(max).clamp_max(1.0);
        ops::together(|| model.visit(&mut Scale { gradients, factor }));
    }
    Some(squares)
}
