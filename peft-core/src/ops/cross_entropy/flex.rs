//! The loss of a head on the CPU: logits exist for some rows at a time.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Int, Shape, Tensor};
use rayon::prelude::*;

use crate::ops::bf16;
use crate::ops::kernel::bf16::with_weight;
use crate::ops::kernel::{self, Kernel, Onto, contiguous, math, numbers, transposed};
use crate::ops::labels::IGNORE_INDEX;
use crate::sharding;

/// Logits that exist at a time: 64 MB. Fewer, and the products spend their time on packing the weight.
/// Few in tests, which should see more than one chunk.
const CHUNK: usize = if cfg!(test) { 1 << 10 } else { 16 << 20 };

/// Settings of a loss.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    smoothing: f32,
    /// Whether products with the weight are in bf16.
    bf16: bool,
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait CrossEntropyOps: Backend {
    fn head_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: Vec<i64>,
        settings: Settings,
    ) -> FloatTensor<Self>;
}

/// One row of logits: becomes the gradient of its loss, which is returned.
struct RowLoss<'a> {
    logits: &'a mut [f32],
    label: i64,
    smoothing: f32,
}

impl Kernel for RowLoss<'_> {
    type Output = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let Self { logits, label, smoothing } = self;
        if label == IGNORE_INDEX {
            logits.fill(0.0);
            return 0.0;
        }
        let label = label as usize;
        let max = math::max(logits);
        let spread = if smoothing > 0.0 { math::sum(logits, |x| x - max) / logits.len() as f32 } else { 0.0 };
        let chosen = logits[label] - max;
        for x in logits.iter_mut() {
            *x = math::exp(*x - max);
        }
        let sum = math::sum(logits, |x| x);
        let (scale, share) = (1.0 / sum, smoothing / logits.len() as f32);
        for x in logits.iter_mut() {
            *x = *x * scale - share;
        }
        logits[label] -= 1.0 - smoothing;
        f64::from(sum.ln() - (1.0 - smoothing) * chosen - smoothing * spread)
    }
}

/// The loss, and the gradients of its sum by hidden states and weight where they are wanted.
fn loss(
    hidden: &FlexTensor,
    weight: &FlexTensor,
    labels: &[i64],
    Settings { smoothing, bf16 }: Settings,
    [to_hidden, to_weight]: [bool; 2],
) -> (FlexTensor, f32, Option<FlexTensor>, Option<FlexTensor>) {
    // Once for all chunks.
    let weight = &sharding::whole(weight.clone());
    let [rows, d_model] = hidden.shape().dims::<2>();
    let classes = weight.shape()[0];
    let known = |label: &&i64| **label != IGNORE_INDEX && (**label < 0 || **label >= classes as i64);
    if let Some(label) = labels.iter().find(known) {
        panic!("label {label} is not one of {classes} classes");
    }
    let chunks = rows.div_ceil((CHUNK / classes.max(1)).max(1)).max(1);
    let chunk = rows.div_ceil(chunks).max(1);
    let mut sum = 0.0;
    let mut hidden_grad = to_hidden.then(|| Vec::with_capacity(rows * d_model));
    let mut weight_grad: Option<FlexTensor> = None;
    for (start, labels) in (0..rows).step_by(chunk).zip(labels.chunks(chunk)) {
        let layout = hidden.layout().narrow(0, start, labels.len());
        let hidden = hidden.clone().with_layout(layout);
        let logits = with_weight(bf16, [hidden.clone(), transposed(weight.clone())], None, Onto::Zero);
        let mut losses = vec![0.0; labels.len()];
        let slopes = kernel::overwrite(logits, |logits| {
            let rows = logits.par_chunks_mut(classes).zip(labels).zip(&mut losses);
            rows.for_each(|((logits, label), loss)| {
                *loss = kernel::simd(RowLoss { logits, label: *label, smoothing });
            });
        });
        sum += losses.iter().sum::<f64>();
        if let Some(grad) = &mut hidden_grad {
            let product = contiguous(with_weight(bf16, [slopes.clone(), weight.clone()], None, Onto::Zero));
            grad.extend_from_slice(numbers(&product));
        }
        if to_weight {
            let onto = weight_grad.map_or(Onto::Zero, Onto::Tensor);
            weight_grad = Some(kernel::product([[transposed(slopes), hidden]], onto));
        }
    }
    let kept = labels.iter().filter(|it| **it != IGNORE_INDEX).count() as f32;
    let mean = kernel::tensor(vec![(sum / f64::from(kept)) as f32], Shape::new([1]));
    let hidden_grad = hidden_grad.map(|it| kernel::tensor(it, hidden.shape()));
    let weight_grad = weight_grad.filter(|_| to_weight);
    (mean, kept, hidden_grad, weight_grad)
}

impl CrossEntropyOps for Flex {
    fn head_cross_entropy(hidden: FlexTensor, weight: FlexTensor, labels: Vec<i64>, settings: Settings) -> FlexTensor {
        loss(&hidden, &weight, &labels, settings, [false, false]).0
    }
}

impl<C: CheckpointStrategy> CrossEntropyOps for Autodiff<Flex, C> {
    fn head_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        labels: Vec<i64>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LossBackward;
        impl Backward<Flex, 2> for LossBackward {
            /// Gradients of the sum of losses, and the number of labels that it is a sum of.
            type State = (Option<FlexTensor>, Option<FlexTensor>, f32);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (hidden, weight, kept) = ops.state;
                let grad = grads.consume::<Flex>(&ops.node);
                let factor = numbers(&contiguous(grad))[0] / kept;
                for (parent, grad) in ops.parents.into_iter().zip([hidden, weight]) {
                    if let (Some(parent), Some(grad)) = (parent, grad) {
                        grads.register::<Flex>(parent.id, Flex::float_mul_scalar(grad, factor.into()));
                    }
                }
            }
        }
        let wanted = [hidden.is_tracked(), weight.is_tracked()];
        let ((hidden, to_hidden), (weight, to_weight)) = (hidden.into_parts(), weight.into_parts());
        let (mean, kept, hidden, weight) = loss(&hidden, &weight, &labels, settings, wanted);
        match LossBackward.prepare::<C>([to_hidden, to_weight]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((hidden, weight, kept), mean),
            OpsKind::UnTracked(prep) => prep.finish(mean),
        }
    }
}

pub(crate) fn head_loss(hidden: Tensor<2>, weight: Tensor<2>, labels: Tensor<1, Int>, smoothing: f64) -> Tensor<1> {
    let labels = labels.into_data().convert::<i64>().try_into_vec::<i64>().expect("whole numbers");
    let (hidden, weight) = (hidden.into_dispatch(), weight.into_dispatch());
    let settings = Settings { smoothing: smoothing as f32, bf16: bf16::is_on() };
    Tensor::from_dispatch(Dispatch::head_cross_entropy(hidden, weight, labels, settings))
}
