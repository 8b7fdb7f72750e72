//! Products with a weight on the CPU, which keep nothing that their backward pass does not need.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

use crate::ops::bf16;
use crate::ops::kernel::bf16::with_weight;
use crate::ops::kernel::{self, Onto, transposed};

#[backend_extension(Flex, Autodiff)]
pub(crate) trait LinearOps: Backend {
    fn product(input: FloatTensor<Self>, weight: FloatTensor<Self>, bf16: bool) -> FloatTensor<Self>;
    fn product_biased(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        bf16: bool,
    ) -> FloatTensor<Self>;
}

impl LinearOps for Flex {
    fn product(input: FlexTensor, weight: FlexTensor, bf16: bool) -> FlexTensor {
        with_weight(bf16, [input, weight], None, Onto::Zero)
    }

    fn product_biased(input: FlexTensor, weight: FlexTensor, bias: FlexTensor, bf16: bool) -> FlexTensor {
        with_weight(bf16, [input, weight], None, Onto::Row(bias))
    }
}

/// The input, kept only for the gradient of a weight that is trained, the weight, halves as they are, and
/// whether products are in bf16.
type State = (Option<FlexTensor>, FlexTensor, bool);

/// Gives weight and bias their gradients, where they are trained.
pub(crate) fn register_parameters(
    grad: &FlexTensor,
    input: Option<&FlexTensor>,
    [to_weight, to_bias]: [Option<NodeId>; 2],
    grads: &mut Gradients,
) {
    if let Some(id) = to_bias {
        let sum = Flex::float_sum_dim(grad.clone(), 0);
        let shape = [sum.shape()[1]].into();
        grads.register::<Flex>(id, Flex::float_reshape(sum, shape));
    }
    if let (Some(id), Some(input)) = (to_weight, input) {
        let product = kernel::product([[transposed(input.clone()), grad.clone()]], Onto::Zero);
        grads.register::<Flex>(id, product);
    }
}

fn register<const N: usize>(ops: Ops<State, N>, grads: &mut Gradients) {
    let (input, weight, bf16) = ops.state;
    let grad = grads.consume::<Flex>(&ops.node);
    let id = |at: usize| ops.parents.get(at).and_then(Option::as_ref).map(|it| it.id);
    register_parameters(&grad, input.as_ref(), [id(1), id(2)], grads);
    if let Some(id) = id(0) {
        grads.register::<Flex>(id, with_weight(bf16, [grad, transposed(weight)], None, Onto::Zero));
    }
}

#[derive(Debug)]
struct LinearBackward;

impl Backward<Flex, 2> for LinearBackward {
    type State = State;
    fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        register(ops, grads);
    }
}

impl Backward<Flex, 3> for LinearBackward {
    type State = State;
    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        register(ops, grads);
    }
}

impl<C: CheckpointStrategy> LinearOps for Autodiff<Flex, C> {
    fn product(input: FloatTensor<Self>, weight: FloatTensor<Self>, bf16: bool) -> FloatTensor<Self> {
        let keeps_input = weight.is_tracked();
        let ((x, x_node), (w, w_node)) = (input.into_parts(), weight.into_parts());
        let output = Flex::product(x.clone(), w.clone(), bf16);
        match Backward::<Flex, 2>::prepare::<C>(LinearBackward, [x_node, w_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((keeps_input.then_some(x), w, bf16), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn product_biased(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        bf16: bool,
    ) -> FloatTensor<Self> {
        let keeps_input = weight.is_tracked();
        let ((x, x_node), (w, w_node), (b, b_node)) = (input.into_parts(), weight.into_parts(), bias.into_parts());
        let output = Flex::product_biased(x.clone(), w.clone(), b, bf16);
        let nodes = [x_node, w_node, b_node];
        match Backward::<Flex, 3>::prepare::<C>(LinearBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((keeps_input.then_some(x), w, bf16), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

pub(crate) fn product(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let (input, weight) = (input.into_dispatch(), weight.into_dispatch());
    let bf16 = bf16::is_on();
    Tensor::from_dispatch(match bias {
        Some(bias) => Dispatch::product_biased(input, weight, bias.into_dispatch(), bf16),
        None => Dispatch::product(input, weight, bf16),
    })
}
