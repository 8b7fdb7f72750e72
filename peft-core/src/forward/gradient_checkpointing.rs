//! Gradient checkpointing: a layer keeps its inputs and computes itself again in the backward pass.
//!
//! Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", <https://arxiv.org/abs/1604.06174>; transformers'
//! `gradient_checkpointing` (`GradientCheckpointingLayer` of `modeling_layers.py`).
//!
//! Of each layer of a stack remain its hidden state `[batch, seq, d_model]` and what it drew at random; all else that the
//! backward pass needs is there for one layer at a time. It costs one more forward of every layer with gradients, about a
//! third of a step of full fine-tuning and up to half of one that trains adapters only. Losses and gradients are the same,
//! dropout included. On the CPU backend what is drawn is two numbers for each dropout; on others it is the mask itself,
//! which is as large as what it acts on.
//!
//! A caller asks for it with [`scope`]; a model's loop over its layers calls [`layer`] and needs to know no more. Layers
//! below the lowest adapter have no gradients: they are computed once, as ever.
//!
//! The first forward of a layer runs on tensors that nothing tracks, and its output is the child of one node. Behind that
//! node's backward step the layer runs again, with leaves in the place of all that is trained, and an inner backward pass
//! gives their gradients. Those are handed to the nodes that the leaves stand for. All of it is the same on every backend.

// Without a backend there is nothing to record.
#![cfg_attr(
    not(any(feature = "flex", feature = "cube", feature = "tch")),
    allow(dead_code, unused_imports, unused_variables)
)]

use std::any::type_name;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, BackendTensor, DispatchKindConversion, DispatchTensor, TensorMetadata};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Shape, Tensor};

use crate::adapter::pending_bias;
use crate::context::{self, Snapshot, record as record_draws};
use crate::error::{PeftError, Result};
use crate::ops::{AttentionMask, RotaryTable};

/// Runs a forward whose layers keep only their inputs. The backward pass may come later, outside.
///
/// ```ignore
/// let hidden = gradient_checkpointing::scope(&model, |model| model.hidden(&input, None))?;
/// ```
///
/// # Errors
/// If no layer of the model knows how: its loop over layers does not call [`layer`], or it is on a backend that this crate
/// was not built for.
pub fn scope<M: ?Sized, R>(model: &M, run: impl FnOnce(&M) -> R) -> Result<R> {
    let layers = Rc::new(Cell::new(0));
    let guard = context::enter(|it| it.checkpointed = Some(layers.clone()));
    let result = run(model);
    drop(guard);
    if layers.get() > 0 {
        return Ok(result);
    }
    let what = format!("gradient checkpointing of `{}`", type_name::<M>());
    let reason = "no layer of this forward can be computed again: its loop over layers must call \
                  `gradient_checkpointing::layer`, and no cache may go with it; or do without `gradient_checkpointing`";
    Err(PeftError::unsupported(what, reason))
}

/// Whether [`layer`] would keep inputs only.
pub fn is_on() -> bool {
    context::read(|it| it.checkpointed.is_some() && it.draws_anew())
}

/// What a layer reads beside its hidden state: a mask, a table of rotations, what an encoder said.
///
/// Whatever of it has gradients must be handed over by [`exchange`](Inputs::exchange).
pub trait Inputs: Clone + Send + 'static {
    /// The same with every tensor of numbers exchanged.
    fn exchange(self, exchange: &mut Exchange) -> Self;
}

impl Inputs for () {
    fn exchange(self, _: &mut Exchange) -> Self {}
}

impl<T: Inputs> Inputs for Option<T> {
    fn exchange(self, exchange: &mut Exchange) -> Self {
        self.map(|it| it.exchange(exchange))
    }
}

impl<A: Inputs, B: Inputs> Inputs for (A, B) {
    fn exchange(self, exchange: &mut Exchange) -> Self {
        (self.0.exchange(exchange), self.1.exchange(exchange))
    }
}

impl<A: Inputs, B: Inputs, C: Inputs> Inputs for (A, B, C) {
    fn exchange(self, exchange: &mut Exchange) -> Self {
        (self.0.exchange(exchange), self.1.exchange(exchange), self.2.exchange(exchange))
    }
}

impl<const D: usize> Inputs for Tensor<D> {
    fn exchange(self, exchange: &mut Exchange) -> Self {
        exchange.tensor(self)
    }
}

impl<const D: usize> Inputs for Tensor<D, Int> {
    fn exchange(self, _: &mut Exchange) -> Self {
        self
    }
}

impl Inputs for AttentionMask {
    fn exchange(self, exchange: &mut Exchange) -> Self {
        self.with_bias_exchanged(|bias| exchange.tensor(bias))
    }
}

impl Inputs for RotaryTable {
    fn exchange(self, _: &mut Exchange) -> Self {
        // Nothing trains the angles of positions.
        self
    }
}

/// Puts one tensor in the place of another.
#[derive(Debug)]
pub struct Exchange(Mode);

/// A tensor with gradients that a layer reads.
#[derive(Debug)]
struct Tracked {
    tensor: DispatchTensor,
    is_leaf: bool,
}

#[derive(Debug)]
enum Mode {
    /// Tensors that nothing tracks. Keeps those that had gradients, and for each one that was seen whether it did.
    Untrack { tracked: Vec<Tracked>, which: Vec<bool> },
    /// Leaves in the place of those that had gradients. Keeps them in the same order.
    Track { leaves: Vec<DispatchTensor>, which: std::vec::IntoIter<bool> },
}

impl Exchange {
    fn untrack() -> Self {
        Self(Mode::Untrack { tracked: Vec::new(), which: Vec::new() })
    }

    fn track(which: Vec<bool>) -> Self {
        Self(Mode::Track { leaves: Vec::new(), which: which.into_iter() })
    }

    /// The tensor to put in the place of this one.
    pub fn tensor<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        match &mut self.0 {
            Mode::Untrack { tracked, which } => {
                which.push(tensor.is_tracked());
                if !tensor.is_tracked() {
                    return tensor;
                }
                tracked.push(Tracked { is_leaf: tensor.is_require_grad(), tensor: tensor.clone().into_dispatch() });
                // Burn's `detach` would leave a leaf a leaf.
                tensor.set_require_grad(false)
            }
            Mode::Track { leaves, which } => {
                if which.next() != Some(true) {
                    return tensor;
                }
                let leaf = tensor.detach().require_grad();
                leaves.push(leaf.clone().into_dispatch());
                leaf
            }
        }
    }
}

impl ModuleMapper for Exchange {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.is_initialized() {
            return param.map(|it| self.tensor(it));
        }
        // Nobody trains what is not there yet. It is there when the layer is computed again, though, so it has its turn.
        match &mut self.0 {
            Mode::Untrack { which, .. } => which.push(false),
            Mode::Track { which, .. } => _ = which.next(),
        }
        param
    }
}

/// `forward(layer, hidden, inputs)`, of which within a [`scope`] only the inputs are kept.
///
/// `forward` is called again in the backward pass. It must read what has gradients from what it is handed, never from
/// elsewhere, and must do the same every time: draw by [`nn::Dropout`](crate::nn::Dropout) and
/// [`ops::random`](crate::ops::random), not by `burn::nn::Dropout`, which would draw anew.
///
/// # Shapes
/// - hidden, output: any
pub fn layer<L, const D: usize, const E: usize, I>(
    layer: &L,
    hidden: Tensor<D>,
    inputs: &I,
    forward: impl Fn(&L, Tensor<D>, &I) -> Tensor<E> + Send + 'static,
) -> Tensor<E>
where
    L: Module + 'static,
    I: Inputs,
{
    if !is_on() {
        return forward(layer, hidden, inputs);
    }
    let mut exchange = Exchange::untrack();
    let kept =
        (layer.clone().map(&mut exchange), exchange.tensor(hidden.clone()), inputs.clone().exchange(&mut exchange));
    let Exchange(Mode::Untrack { tracked, which }) = exchange else { unreachable!("it was made so") };
    let record = tracked.first().and_then(|it| recorder(&it.tensor));
    let fits = tracked.iter().filter(|it| !it.is_leaf).count() <= PARENTS;
    if tracked.is_empty() || (record.is_some() && fits) {
        context::read(|it| {
            if let Some(layers) = &it.checkpointed {
                layers.set(layers.get() + 1);
            }
        });
    }
    let Some(record) = record.filter(|_| fits) else {
        return forward(layer, hidden, inputs);
    };

    let (layer, hidden, inputs) = kept;
    let (output, drawn) = record_draws(|| forward(&layer, hidden.clone(), &inputs));
    if !output.is_autodiff() {
        // Nothing that has gradients took part.
        return output;
    }
    let context = Snapshot::take();
    let again = move || {
        let mut exchange = Exchange::track(which);
        let (layer, hidden, inputs) =
            (layer.map(&mut exchange), exchange.tensor(hidden), inputs.exchange(&mut exchange));
        let _context = context.enter(drawn);
        let output = pending_bias::apart(|| forward(&layer, hidden, &inputs));
        let Exchange(Mode::Track { leaves, .. }) = exchange else { unreachable!("it was made so") };
        (output.into_dispatch(), leaves)
    };
    Tensor::from_dispatch(record(output.into_dispatch(), tracked, Again::new(again)))
}

/// Makes an output the child of tensors, with what gives their gradients.
type Recorder = fn(DispatchTensor, Vec<Tracked>, Again) -> DispatchTensor;

/// The one for the backend of a tensor.
fn recorder(tensor: &DispatchTensor) -> Option<Recorder> {
    fn of<B: Backend, C: CheckpointStrategy>(tensor: &DispatchTensor) -> Option<Recorder>
    where
        DispatchTensor: DispatchKindConversion<Autodiff<B, C>>,
    {
        let fits = <DispatchTensor as DispatchKindConversion<Autodiff<B, C>>>::try_into_backend(tensor.clone()).is_ok();
        fits.then_some(record::<B, C>)
    }
    macro_rules! first_of {
        ($($(#[$cfg:meta])* $backend:path),* $(,)?) => {{
            $(
                $(#[$cfg])*
                if let Some(found) = of::<$backend, NoCheckpointing>(tensor).or(of::<$backend, BalancedCheckpointing>(tensor)) {
                    return Some(found);
                }
            )*
            None
        }};
    }
    first_of! {
        #[cfg(feature = "flex")]
        burn::backend::Flex,
        #[cfg(feature = "cube")]
        burn::backend::Cube,
        #[cfg(feature = "tch")]
        #[allow(deprecated)]
        burn::backend::LibTorch,
    }
}

/// A layer that is yet to be computed again: gives its output and the leaves that it came from.
#[derive(Clone)]
struct Again(Arc<Mutex<Option<Box<dyn Run>>>>);

trait Run: FnOnce() -> (DispatchTensor, Vec<DispatchTensor>) + Send {}
impl<F: FnOnce() -> (DispatchTensor, Vec<DispatchTensor>) + Send> Run for F {}

impl Again {
    fn new(run: impl Run + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(run)))))
    }

    fn run(self) -> (DispatchTensor, Vec<DispatchTensor>) {
        let run = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        run.expect("a backward step runs once")()
    }
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

/// Burn's custom operations have a fixed number of parents. Leaves need not be among them: nothing has to be done behind a
/// leaf, so that its gradient can be put down directly. A layer reads few tensors that are no leaves.
const PARENTS: usize = 8;

/// Where the gradient of a leaf of the second forward goes.
#[derive(Debug, Clone)]
struct Target {
    id: NodeId,
    /// The step behind a tensor that is no leaf cannot do without.
    is_leaf: bool,
}

fn record<B: Backend, C: CheckpointStrategy>(
    output: DispatchTensor,
    tracked: Vec<Tracked>,
    again: Again,
) -> DispatchTensor
where
    DispatchTensor: DispatchKindConversion<Autodiff<B, C>>,
{
    let output = autodiff::<B, C>(output).into_primitive();
    let tracked: Vec<(Node<B>, bool)> =
        tracked.into_iter().map(|it| (autodiff::<B, C>(it.tensor), it.is_leaf)).collect();
    let targets = tracked.iter().map(|(it, is_leaf)| Target { id: it.id(), is_leaf: *is_leaf }).collect();
    // Tensors that are no leaves come first, so that none of them is left out.
    let (leaves, others): (Vec<_>, Vec<_>) = tracked.iter().partition(|(_, is_leaf)| *is_leaf);
    let mut nodes = others.into_iter().chain(leaves).map(|(it, _)| it.node());
    let nodes = std::array::from_fn(|_| nodes.next().unwrap_or_else(|| Node::<B>::new(output.clone()).node()));
    let output =
        match Backward::<B, PARENTS>::prepare::<C>(ComputeAgain(PhantomData::<C>), nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((again, targets), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        };
    <DispatchTensor as DispatchKindConversion<Autodiff<B, C>>>::from_backend(BackendTensor::Float(output))
}

type Node<B> = FloatTensor<Autodiff<B>>;

fn autodiff<B: Backend, C: CheckpointStrategy>(tensor: DispatchTensor) -> Node<B>
where
    DispatchTensor: DispatchKindConversion<Autodiff<B, C>>,
{
    let tensor = <DispatchTensor as DispatchKindConversion<Autodiff<B, C>>>::try_into_backend(tensor);
    tensor.expect("what a layer reads is on one backend, as Burn demands").float()
}

/// The backward step of a layer.
#[derive(Debug)]
struct ComputeAgain<C>(PhantomData<C>);

impl<B: Backend, C: CheckpointStrategy> Backward<B, PARENTS> for ComputeAgain<C>
where
    DispatchTensor: DispatchKindConversion<Autodiff<B, C>>,
{
    type State = (Again, Vec<Target>);

    fn backward(self, ops: Ops<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (again, targets) = ops.state;
        let (output, leaves) = again.run();
        let output = autodiff::<B, C>(output);
        let mut inner = output.is_tracked().then(|| begin::<B, C>(output, grad));
        for (leaf, target) in leaves.into_iter().zip(targets) {
            let leaf = autodiff::<B, C>(leaf);
            let own = inner.as_mut().and_then(|it| it.remove::<B>(&leaf));
            let zeros = || B::float_zeros(leaf.shape(), &leaf.device(), leaf.dtype().into());
            // A leaf that took no part has no gradient, which is not the same to an optimizer as one of zeros.
            if let Some(grad) = own.or_else(|| (!target.is_leaf).then(zeros)) {
                grads.register::<B>(target.id, grad);
            }
        }
    }
}

/// A backward pass that begins at a tensor with a gradient.
fn begin<B: Backend, C: CheckpointStrategy>(output: Node<B>, grad: FloatTensor<B>) -> Gradients {
    #[derive(Debug)]
    struct Begin;
    impl<B: Backend> Backward<B, 1> for Begin {
        type State = FloatTensor<B>;
        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            unary::<B, _>(ops.parents, ops.node, grads, |_| ops.state);
        }
    }
    // Burn begins with ones, of which one is enough.
    let one = B::float_zeros(Shape::new([1]), &grad.device(), grad.dtype().into());
    let root = match Backward::<B, 1>::prepare::<C>(Begin, [output.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(grad, one),
        OpsKind::UnTracked(prep) => prep.finish(one),
    };
    drop(output);
    root.backward()
}
