//! The low-rank update of a linear layer on the CPU: more terms of the sums that the layer is.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::update::LowRank;
use crate::ops::bf16;
use crate::ops::dropout::Seed;
use crate::ops::kernel::bf16::with_weight;
use crate::ops::kernel::{self, Onto, transposed};
use crate::ops::linear::flex::register_parameters;

/// Settings of an update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    scale: f32,
    seed: Option<Seed>,
    /// Whether the product with the weight is in bf16.
    bf16: bool,
}

/// An extension takes no optional tensors, so there are three of them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait LowRankOps: Backend {
    /// `input · weight` and the update.
    fn low_rank(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// `input · weight + bias` and the update.
    fn low_rank_biased(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self>;

    /// `output` and the update.
    fn add_low_rank(
        output: FloatTensor<Self>,
        input: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self>;
}

fn dropped(tensor: FlexTensor, seed: Option<Seed>) -> FlexTensor {
    match seed {
        Some(seed) => seed.apply(tensor),
        None => tensor,
    }
}

/// What the update is computed from, kept for the backward pass.
#[derive(Debug, Clone)]
struct Update {
    input: FlexTensor,
    /// `scale · drop(input) Aᵀ`, `[rows, rank]`
    low: FlexTensor,
    a: FlexTensor,
    b: FlexTensor,
    settings: Settings,
}

/// Whose gradients are wanted: input, A and B.
type Wanted = [Option<NodeId>; 3];

impl Update {
    fn new(input: FlexTensor, a: FlexTensor, b: FlexTensor, settings: Settings) -> Self {
        let dropped = dropped(input.clone(), settings.seed);
        let low = kernel::product([[dropped, transposed(a.clone())]], Onto::Zero);
        let low = Flex::float_mul_scalar(low, settings.scale.into());
        Self { input, low, a, b, settings }
    }

    /// `x W` and the update, onto a bias.
    fn beside(&self, weight: FlexTensor, onto: Onto) -> FlexTensor {
        with_weight(self.settings.bf16, [self.input.clone(), weight], Some(self.terms()), onto)
    }

    /// The product that the update is.
    fn terms(&self) -> [FlexTensor; 2] {
        [self.low.clone(), transposed(self.b.clone())]
    }

    /// Gives the factors their gradients, and the input the sum of what comes by the update and by the layer, which
    /// is `below`: the gradient of the output and the weight, transposed.
    fn register(self, grad: FlexTensor, wanted: Wanted, below: Option<[FlexTensor; 2]>, grads: &mut Gradients) {
        let Self { input, low, a, b, settings: Settings { scale, seed, bf16 } } = self;
        let [to_input, to_a, to_b] = wanted;
        if let Some(id) = to_b {
            let product = kernel::product([[transposed(low), grad.clone()]], Onto::Zero);
            grads.register::<Flex>(id, transposed(product));
        }
        if to_a.is_none() && to_input.is_none() {
            return;
        }
        let thin = kernel::product([[grad, b]], Onto::Zero);
        let thin = Flex::float_mul_scalar(thin, scale.into());
        if let Some(id) = to_a {
            let input = dropped(input, seed);
            grads.register::<Flex>(id, kernel::product([[transposed(thin.clone()), input]], Onto::Zero));
        }
        if let Some(id) = to_input {
            let own = [thin, a];
            let sum = match (below, seed) {
                (Some(below), None) => with_weight(bf16, below, Some(own), Onto::Zero),
                (Some(below), seed) => {
                    // What comes by the update is dropped before it is added.
                    let own = dropped(kernel::product([own], Onto::Zero), seed);
                    with_weight(bf16, below, None, Onto::Tensor(own))
                }
                (None, seed) => dropped(kernel::product([own], Onto::Zero), seed),
            };
            grads.register::<Flex>(id, sum);
        }
    }
}

impl LowRankOps for Flex {
    fn low_rank(input: FlexTensor, weight: FlexTensor, a: FlexTensor, b: FlexTensor, settings: Settings) -> FlexTensor {
        Update::new(input, a, b, settings).beside(weight, Onto::Zero)
    }

    fn low_rank_biased(
        input: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
        settings: Settings,
    ) -> FlexTensor {
        Update::new(input, a, b, settings).beside(weight, Onto::Row(bias))
    }

    fn add_low_rank(
        output: FlexTensor,
        input: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
        settings: Settings,
    ) -> FlexTensor {
        kernel::product([Update::new(input, a, b, settings).terms()], Onto::Tensor(output))
    }
}

#[derive(Debug)]
struct LinearBackward;

/// The parents are input, A, B, weight, and a bias if there is one.
fn register_linear<const N: usize>(ops: Ops<(Update, FlexTensor), N>, grads: &mut Gradients) {
    let (update, weight) = ops.state;
    let grad = grads.consume::<Flex>(&ops.node);
    let id = |at: usize| ops.parents.get(at).and_then(Option::as_ref).map(|it| it.id);
    register_parameters(&grad, Some(&update.input), [id(3), id(4)], grads);
    let below = [grad.clone(), transposed(weight)];
    update.register(grad, [id(0), id(1), id(2)], Some(below), grads);
}

impl Backward<Flex, 4> for LinearBackward {
    type State = (Update, FlexTensor);
    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        register_linear(ops, grads);
    }
}

impl Backward<Flex, 5> for LinearBackward {
    type State = (Update, FlexTensor);
    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        register_linear(ops, grads);
    }
}

#[derive(Debug)]
struct AddBackward;

impl Backward<Flex, 4> for AddBackward {
    type State = Update;
    fn backward(self, ops: Ops<Update, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let [to_output, to_input, to_a, to_b] = ops.parents.map(|it| it.map(|it| it.id));
        ops.state.register(grad.clone(), [to_input, to_a, to_b], None, grads);
        if let Some(id) = to_output {
            grads.register::<Flex>(id, grad);
        }
    }
}

impl<C: CheckpointStrategy> LowRankOps for Autodiff<Flex, C> {
    fn low_rank(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let ((x, to_x), (w, to_w)) = (input.into_parts(), weight.into_parts());
        let ((a, to_a), (b, to_b)) = (a.into_parts(), b.into_parts());
        let update = Update::new(x, a, b, settings);
        let output = update.beside(w.clone(), Onto::Zero);
        let nodes = [to_x, to_a, to_b, to_w];
        match Backward::<Flex, 4>::prepare::<C>(LinearBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((update, w), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn low_rank_biased(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let ((x, to_x), (w, to_w)) = (input.into_parts(), weight.into_parts());
        let ((bias, to_bias), (a, to_a), (b, to_b)) = (bias.into_parts(), a.into_parts(), b.into_parts());
        let update = Update::new(x, a, b, settings);
        let output = update.beside(w.clone(), Onto::Row(bias));
        let nodes = [to_x, to_a, to_b, to_w, to_bias];
        match Backward::<Flex, 5>::prepare::<C>(LinearBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((update, w), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn add_low_rank(
        output: FloatTensor<Self>,
        input: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        settings: Settings,
    ) -> FloatTensor<Self> {
        let ((output, to_output), (x, to_x)) = (output.into_parts(), input.into_parts());
        let ((a, to_a), (b, to_b)) = (a.into_parts(), b.into_parts());
        let update = Update::new(x, a, b, settings);
        let output = kernel::product([update.terms()], Onto::Tensor(output));
        match AddBackward.prepare::<C>([to_output, to_x, to_a, to_b]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(update, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

fn settings(input: &Tensor<2>, update: &LowRank) -> Settings {
    let device = input.device().without_autodiff();
    let seed = (update.dropout > 0.0).then(|| Seed::draw(&device, update.dropout));
    Settings { scale: update.scale as f32, seed, bf16: bf16::is_on() }
}

/// `weight` is `[in, out]`.
pub(crate) fn linear(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, update: LowRank) -> Tensor<2> {
    let settings = settings(&input, &update);
    let [input, weight, a, b] = [input, weight, update.a, update.b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(match bias {
        Some(bias) => Dispatch::low_rank_biased(input, weight, bias.into_dispatch(), a, b, settings),
        None => Dispatch::low_rank(input, weight, a, b, settings),
    })
}

pub(crate) fn update(output: Tensor<2>, input: Tensor<2>, update: LowRank) -> Tensor<2> {
    let settings = settings(&input, &update);
    let [output, input, a, b] = [output, input, update.a, update.b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::add_low_rank(output, input, a, b, settings))
}
