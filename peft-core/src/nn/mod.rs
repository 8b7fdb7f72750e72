//! Layers whose fields are checkpoint names and whose forward takes adapters in.
//!
//! Weights lie in memory as the checkpoint stores them, so loading is a cast and no transposition. Every parameter is
//! lazy: a model of any size can be built, planned and counted without allocating it.

use burn::module::{Flag, Module, Param, ParamId};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Int, Tensor};

use crate::adapter::AdapterSet;
use crate::adapter::mixed_batch;
use crate::forward;
use crate::ops;
use crate::spec::Layout;

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

fn normal<const D: usize>(shape: [usize; D], std: f64, device: &Device) -> Param<Tensor<D>> {
    lazy(shape, device, move |device| Tensor::random(shape, Distribution::Normal(0.0, std), device))
}

fn constant<const D: usize>(shape: [usize; D], value: f32, device: &Device) -> Param<Tensor<D>> {
    lazy(shape, device, move |device| Tensor::full(shape, value, device))
}

/// Standard deviation that transformers gives to weights that no checkpoint provides (`initializer_range`).
const INITIALIZER_RANGE: f64 = 0.02;

/// A linear layer in the checkpoint's layout: torch's `nn.Linear`.
#[derive(Module, Debug)]
pub struct Projection {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Projection {
    /// A lazy layer; weights of no checkpoint come from N(0, 0.02).
    pub fn new(d_input: usize, d_output: usize, bias: bool, device: &Device) -> Self {
        Self {
            weight: normal([d_output, d_input], INITIALIZER_RANGE, device),
            bias: bias.then(|| constant([d_output], 0.0, device)),
        }
    }

    /// The weight as it is kept, `[out, in]`, if the forward is a product with it: without a bias and without an active adapter.
    pub fn bare_weight(&self) -> Option<Tensor<2>> {
        let adapted = self.weight.reparameterization::<AdapterSet>().is_some_and(|it| !mixed_batch::any(it).is_empty());
        (self.bias.is_none() && !adapted).then(|| forward::unadapted(&self.weight))
    }

    /// # Shapes
    /// - input: `[.., in]`
    /// - output: `[.., out]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::linear(input, &self.weight, self.bias.as_ref(), Layout::OutIn)
    }
}

/// The linear layer of GPT-2, stored input first: transformers' `Gpt2Linear`.
#[derive(Module, Debug)]
pub struct Gpt2Linear {
    /// `[in, out]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
}

impl Gpt2Linear {
    /// A lazy layer.
    pub fn new(d_input: usize, d_output: usize, device: &Device) -> Self {
        Self { weight: normal([d_input, d_output], INITIALIZER_RANGE, device), bias: constant([d_output], 0.0, device) }
    }

    /// # Shapes
    /// - input: `[.., in]`
    /// - output: `[.., out]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::linear(input, &self.weight, Some(&self.bias), Layout::InOut)
    }
}

/// A convolution along one axis: torch's `nn.Conv1d` with a stride of 1.
#[derive(Module, Debug)]
pub struct Conv1d {
    /// `[out, in / groups, width]`
    pub weight: Param<Tensor<3>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
    padding: usize,
    groups: usize,
}

impl Conv1d {
    /// A lazy layer from `in` to `out` channels.
    pub fn new([d_input, d_output]: [usize; 2], width: usize, groups: usize, device: &Device) -> Self {
        Self {
            weight: normal([d_output, d_input / groups, width], INITIALIZER_RANGE, device),
            bias: constant([d_output], 0.0, device),
            padding: 0,
            groups,
        }
    }

    /// With so many zeros at either end.
    pub fn with_padding(mut self, padding: usize) -> Self {
        self.padding = padding;
        self
    }

    /// # Shapes
    /// - input: `[batch, in, length]`
    /// - output: `[batch, out, length + 2 · padding − width + 1]`
    pub fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        forward::by_rows(self, input, |it, input| {
            let options = ConvOptions::new([1], [it.padding], [1], it.groups);
            burn::tensor::module::conv1d(input, it.weight.val(), Some(it.bias.val()), options)
        })
    }
}

/// A tensor of the checkpoint that is never trained and counts as no parameter: torch's buffer.
///
/// Its path is that of the field that holds it.
#[derive(Module, Debug)]
pub struct Buffer {
    /// `[rows, columns]`
    pub value: Param<Tensor<2>>,
}

impl Buffer {
    /// A lazy buffer of zeros.
    pub fn zeros(shape: [usize; 2], device: &Device) -> Self {
        Self { value: constant(shape, 0.0, device) }
    }
}

/// A table of vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[rows, d_model]`
    pub weight: Param<Tensor<2>>,
    padding: Option<usize>,
    scale: f64,
}

impl Embedding {
    /// A lazy table.
    pub fn new(rows: usize, d_model: usize, device: &Device) -> Self {
        Self { weight: normal([rows, d_model], INITIALIZER_RANGE, device), padding: None, scale: 1.0 }
    }

    /// A row that gets no gradient: torch's `padding_idx`.
    pub fn with_padding(mut self, padding: Option<usize>) -> Self {
        self.padding = padding;
        self
    }

    /// The vectors that are looked up are multiplied by this, what an adapter adds to them too. The table as a head is not.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// # Shapes
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, d_model]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let vectors = forward::embedding(ids, &self.weight, self.padding);
        if self.scale == 1.0 { vectors } else { vectors.mul_scalar(self.scale) }
    }

    /// The table read as the output layer of a tied head.
    ///
    /// An adapter on the table takes no part here, as in the reference's live forward, unless it says so (trainable
    /// tokens do). Merged into the table it does, in the reference as well: there is only one tensor.
    ///
    /// # Shapes
    /// - hidden: `[.., d_model]`
    /// - output: `[.., rows]`
    pub fn attend<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        forward::attend(hidden, &self.weight)
    }

    /// The table as it is kept, `[rows, d_model]`, if [`Embedding::attend`] is a product with it: no active adapter moves it along.
    pub fn bare_weight(&self) -> Option<Tensor<2>> {
        let moved = self.weight.reparameterization().is_some_and(forward::moves_tied_head);
        (!moved).then(|| forward::unadapted(&self.weight))
    }

    /// The whole table, `[rows, d_model]`, through the active adapters.
    pub fn table(&self) -> Tensor<2> {
        forward::value(&self.weight)
    }

    /// An output layer of its own that starts as the table and shares its memory.
    pub fn as_head(&self) -> Projection {
        if self.weight.is_initialized() {
            return Projection { weight: Param::initialized(ParamId::new(), self.weight.base()), bias: None };
        }
        let table = self.weight.clone();
        let shape = table.lazy_shape().dims::<2>();
        Projection {
            weight: lazy(shape, &table.lazy_device(), move |device| table.base().to_device(device)),
            bias: None,
        }
    }
}

/// Normalisation by mean and variance.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[d_model]`
    pub weight: Param<Tensor<1>>,
    /// `[d_model]`
    pub bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    /// A lazy layer that starts as plain normalisation.
    pub fn new(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 1.0, device), bias: constant([d_model], 0.0, device), epsilon }
    }

    /// # Shapes
    /// - input, output: `[.., d_model]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::by_rows(self, input, |it, input| ops::layer_norm(input, it.weight.val(), it.bias.val(), it.epsilon))
    }
}

/// Normalisation by the root of the mean square.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[d_model]`
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
    around_one: bool,
}

impl RmsNorm {
    /// A lazy layer that starts as plain normalisation.
    pub fn new(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 1.0, device), epsilon, around_one: false }
    }

    /// The same whose weight is the difference to 1 of what it multiplies by: Gemma's.
    pub fn around_one(d_model: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: constant([d_model], 0.0, device), epsilon, around_one: true }
    }

    /// # Shapes
    /// - input, output: `[.., d_model]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        forward::by_rows(self, input, |it, input| {
            let weight = it.weight.val();
            ops::rms_norm(input, if it.around_one { weight.add_scalar(1.0) } else { weight }, it.epsilon)
        })
    }
}

/// Sets elements to zero at random while training, and scales the others up.
///
/// Unlike Burn's, it does not ask whether its input is on an autodiff device: below the lowest adapter nothing is
/// tracked, and the reference drops there all the same.
#[derive(Module, Debug)]
pub struct Dropout {
    probability: f64,
    training: Param<Flag>,
}

impl Dropout {
    /// `probability` is the share of elements that are dropped, 0 ≤ p < 1.
    pub fn new(probability: f64) -> Self {
        Self { probability, training: Param::from_bool(true) }
    }

    /// Whether a forward drops anything now.
    pub fn is_active(&self) -> bool {
        self.probability > 0.0 && self.training.is_enabled()
    }

    /// The share of elements that are dropped.
    pub fn probability(&self) -> f64 {
        self.probability
    }

    /// The input, with elements dropped if the layer trains.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        if !self.is_active() {
            return input;
        }
        ops::dropout(input, self.probability)
    }
}

/// The model for evaluation and generation: without dropout and without gradients, as the reference's `eval()` under
/// `torch.no_grad()`. The parameters are shared with `model`.
///
/// Where gradients are wanted without dropout, use [`set_training`].
pub fn eval<M: Module>(model: &M) -> M {
    model.valid()
}

/// Switches dropout on or off everywhere, without touching gradients: the reference's `train()` and `eval()`.
pub fn set_training<M: Module>(model: M, training: bool) -> M {
    struct Switch(bool);
    impl burn::module::ModuleMapper for Switch {
        fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
            flag.with_value(self.0)
        }
    }
    model.map(&mut Switch(training))
}
