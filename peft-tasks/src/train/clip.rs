//! The loss of a step, the norm of its gradients, and the clipping of those.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::ops;

/// The loss of a step.
pub(crate) enum Loss {
    Known(f64),
    /// The sum of these, which may still be computed on a card.
    Pending(Vec<Tensor<1>>),
}

/// The loss, and the common norm of all gradients before they are scaled down together if it is above `max`, as torch's
/// `clip_grad_norm_` does.
///
/// All of it is read from the device at once: the program waits for a card once in a step.
pub(crate) fn read_and_clip<M: Module>(model: &M, gradients: &mut GradientsParams, loss: Loss, max: f64) -> (f64, f64) {
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
        factor: f64,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, ops::scaled(gradient, self.factor));
            }
        }
    }
    let (known, mut numbers) = match loss {
        Loss::Known(loss) => (loss, Vec::new()),
        Loss::Pending(losses) => (0.0, losses),
    };
    let losses = numbers.len();
    let mut squares = Squares { gradients, sums: Vec::new() };
    ops::together(|| model.visit(&mut squares));
    numbers.append(&mut squares.sums);
    let numbers = read(numbers);
    let loss = known + numbers[..losses].iter().sum::<f64>();
    let norm = numbers[losses..].iter().sum::<f64>().sqrt();
    // torch adds 1e-6 to the norm.
    let factor = max / (norm + 1e-6);
    if max > 0.0 && factor < 1.0 {
        ops::together(|| model.visit(&mut Scale { gradients, factor }));
    }
    (loss, norm)
}

/// The single numbers of tensors.
fn read(tensors: Vec<Tensor<1>>) -> Vec<f64> {
    if tensors.is_empty() {
        return Vec::new();
    }
    Tensor::cat(tensors, 0).into_data().iter::<f64>().collect()
}
