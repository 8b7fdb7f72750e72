//! LoRA on a linear layer: `y = x W + b + s · (drop(x) A) B`. Source: arXiv 2106.09685, `peft/tuners/lora/layer.py`.

#![allow(non_snake_case)] // field names are the keys of the file

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::forward::{self, LinearBelow};
use peft_core::nn::Dropout;
use peft_core::ops::{self, Layout, LowRank};
use peft_core::{Adapter, AdapterBuilder, AnyAdapter, BaseTensor, BiasAdapter, Init, ParamSpec};

use crate::lora::data_init::calibration::InitialFactors;
use crate::lora::dora;
use crate::lora::init::{self, Factors};
use crate::lora::init_weights::InitWeights;

/// One factor, as the file holds it.
#[derive(Module, Debug)]
pub struct Factor<const D: usize> {
    /// `lora_A`: `[rank, in]`; `lora_B`: `[out, rank]`.
    pub weight: Param<Tensor<D>>,
    /// `lora_bias` gives `lora_B` a bias, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl<const D: usize> Factor<D> {
    pub(crate) fn new(weight: Param<Tensor<D>>) -> Self {
        Self { weight, bias: None }
    }
}

/// The low-rank update of one linear layer.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// `[rank, in]`
    pub lora_A: Factor<2>,
    /// `[out, rank]`
    pub lora_B: Factor<2>,
    /// DoRA's magnitude of each output, `[out]`.
    pub lora_magnitude_vector: Option<Param<Tensor<1>>>,
    /// Where PiSSA and OLoRA start: the update is what the factors have moved since.
    start: Option<Factors>,
    /// What LoftQ puts in the place of the base, `[out, in]`, perhaps in codes.
    quantised: Option<Tensor<2>>,
    dropout: Dropout,
    scale: f64,
    /// The tokens that an activated LoRA waits for.
    #[module(skip)]
    invocation: Option<Vec<i64>>,
}

impl LoraLinear {
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// `s · B A − s · B₀ A₀`, `[out, in]`.
    fn delta(&self) -> Tensor<2> {
        let delta = self.lora_B.weight.val().matmul(self.lora_A.weight.val());
        let delta = match &self.start {
            Some(start) => delta - start.product(),
            None => delta,
        };
        delta.mul_scalar(self.scale)
    }

    /// `s · (drop(x) A) B`, less what the start contributes.
    fn update(&self, input: Tensor<2>) -> Tensor<2> {
        let low = self.dropout.forward(input.clone()).matmul(self.lora_A.weight.val().transpose());
        let mut update = low.matmul(self.lora_B.weight.val().transpose());
        if let Some(bias) = &self.lora_B.bias {
            update = update + bias.val().unsqueeze();
        }
        if let Some(start) = &self.start {
            update = update - input.matmul(start.a.clone().transpose()).matmul(start.b.clone().transpose());
        }
        update.mul_scalar(self.scale)
    }

    /// The layer below, with LoftQ's weight in the place of the base's.
    fn under(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let Some(own) = self.quantised.clone() else { return below.forward(input) };
        if below.is_frozen() {
            return ops::linear(input, own, below.bias(), Layout::OutIn);
        }
        let base = below.apply(input.clone(), below.frozen().clone(), None);
        below.forward(input.clone()) + ops::linear(input, own, None, Layout::OutIn) - base
    }

    /// The same with the low-rank update.
    fn under_with(&self, input: Tensor<2>, below: &LinearBelow<'_>, update: LowRank) -> Tensor<2> {
        match &self.quantised {
            None => below.with_low_rank(input, update),
            Some(own) if below.is_frozen() => {
                ops::linear_low_rank(input, own.clone(), below.bias(), Layout::OutIn, update)
            }
            Some(_) => ops::low_rank_update(self.under(input.clone(), below), input, update),
        }
    }

    /// The frozen weight of the layer as it is stored, or LoftQ's, and how it lies.
    fn stored(&self, below: &LinearBelow<'_>) -> (Tensor<2>, Layout) {
        match &self.quantised {
            Some(own) => (own.clone(), Layout::OutIn),
            None => (below.frozen().clone(), below.layout()),
        }
    }

    /// The frozen weight of the layer, or LoftQ's, `[out, in]`, in single precision.
    fn base(&self, of_layer: impl FnOnce() -> Tensor<2>) -> Tensor<2> {
        self.quantised.clone().map_or_else(of_layer, ops::to_f32)
    }

    /// `magnitude / ‖W + ΔW‖` per output, `[out]`. `base` is `[out, in]`.
    fn direction_scale(&self, magnitude: &Param<Tensor<1>>, base: Tensor<2>) -> Tensor<1> {
        magnitude.val() / dora::row_norms(base, &self.low_rank_terms())
    }

    /// The update as a sum of `coefficient · B A`.
    fn low_rank_terms(&self) -> Vec<dora::Term> {
        let (a, b) = (self.lora_A.weight.val(), self.lora_B.weight.val());
        let mut terms = vec![dora::Term { a, b, coefficient: self.scale }];
        if let Some(start) = &self.start {
            terms.push(dora::Term { a: start.a.clone(), b: start.b.clone(), coefficient: -self.scale });
        }
        terms
    }
}

impl Adapter for LoraLinear {
    fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let plain: [usize; 2] = [dims[0], dims[1]];
        let layer = || param.out_in(base.clone().reshape(plain));
        let mut updated = param.out_in(weight.reshape(plain)) + self.delta();
        if let Some(own) = &self.quantised {
            updated = updated + ops::to_f32(own.clone()) - layer();
        }
        let updated = match &self.lora_magnitude_vector {
            Some(magnitude) => {
                let scale = self.direction_scale(magnitude, self.base(layer));
                updated * scale.unsqueeze_dim(1)
            }
            None => updated,
        };
        param.out_in(updated).reshape(dims)
    }

    fn unmergeable(&self) -> Option<&'static str> {
        let reason =
            "an activated LoRA (alora_invocation_tokens) acts on some tokens of a row only, which no weight does";
        self.invocation.as_ref().map(|_| reason)
    }

    fn invocation(&self) -> Option<&[i64]> {
        self.invocation.as_deref()
    }

    fn as_bias(&self) -> Option<&dyn BiasAdapter> {
        self.lora_B.bias.is_some().then_some(self as &dyn BiasAdapter)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        if let Some(sequence) = &self.invocation {
            let [rows, _] = input.dims();
            let mask = forward::behind(sequence, rows, &input.device());
            return self.under(input.clone(), below) + self.update(input) * mask;
        }
        let factors = || LowRank {
            a: self.lora_A.weight.val(),
            b: self.lora_B.weight.val(),
            scale: self.scale,
            dropout: self.dropout.rate(),
        };
        let Some(magnitude) = &self.lora_magnitude_vector else {
            let mut output = self.under_with(input.clone(), below, factors());
            if let Some(start) = &self.start {
                let (a, b) = (start.a.clone(), start.b.clone());
                output = ops::low_rank_update(output, input, LowRank { a, b, scale: -self.scale, dropout: 0.0 });
            }
            return match &self.lora_B.bias {
                Some(bias) => output + bias.val().mul_scalar(self.scale).unsqueeze(),
                None => output,
            };
        };
        let base = self.base(|| below.param().out_in(below.base().clone()));
        let scale = self.direction_scale(magnitude, base).unsqueeze::<2>();
        let is_plain = self.start.is_none() && self.lora_B.bias.is_none();
        if is_plain && !self.dropout.is_active() && below.is_frozen() {
            // `m (W + s BA) / ‖W + s BA‖` is the whole layer then.
            let (weight, layout) = self.stored(below);
            let output = ops::linear_low_rank(input, weight, None, layout, factors()) * scale;
            return match below.bias() {
                Some(bias) => output + bias.unsqueeze(),
                None => output,
            };
        }
        let output = self.under(input.clone(), below);
        let product = if self.dropout.is_active() {
            // The reference drops the input of the rescaled base product too, but not that of the base itself. One
            // mask serves both products there, so it does here.
            let dropped = self.dropout.forward(input);
            let (weight, layout) = self.stored(below);
            let product = ops::linear(dropped.clone(), weight, None, layout);
            let low = dropped.matmul(self.lora_A.weight.val().transpose());
            let update = low.matmul(self.lora_B.weight.val().transpose()).mul_scalar(self.scale);
            return output + product * scale.clone().sub_scalar(1.0) + update * scale;
        } else {
            match below.bias() {
                Some(bias) => output.clone() - bias.unsqueeze(),
                None => output.clone(),
            }
        };
        output + product * scale.clone().sub_scalar(1.0) + self.update(input) * scale
    }
}

impl BiasAdapter for LoraLinear {
    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        match &self.lora_B.bias {
            Some(own) => bias + own.val().mul_scalar(self.scale),
            None => bias,
        }
    }
}

/// Builds [`LoraLinear`].
#[derive(Debug, Clone)]
pub(crate) struct BuildLinear {
    pub(crate) rank: usize,
    pub(crate) scale: f64,
    pub(crate) dropout: f64,
    pub(crate) start: InitWeights,
    /// What data gave, in place of `start`.
    pub(crate) given: Option<InitialFactors>,
    pub(crate) dora: bool,
    pub(crate) bias: bool,
    /// The tokens that the adapter waits for.
    pub(crate) invocation: Option<Vec<i64>>,
}

impl AdapterBuilder for BuildLinear {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let param = base.param().clone();
        let (d_in, d_out) = param.features();
        let needs_base = self.dora || self.start.reads_base();
        let base =
            if needs_base { Some(base.matrix().to_device(&init.device().clone().without_autodiff())) } else { None };
        let started = match &self.given {
            Some(given) => init::given(given, d_out, init),
            None => init::linear(&self.start, self.rank, self.scale, (d_in, d_out), base.as_ref(), &param, init),
        };
        let mut adapter = LoraLinear {
            lora_A: Factor::new(started.a),
            lora_B: Factor::new(started.b),
            lora_magnitude_vector: None,
            start: started.origin,
            quantised: started.quantised,
            dropout: Dropout::new(self.dropout),
            scale: self.scale,
            invocation: self.invocation.clone(),
        };
        if self.bias {
            adapter.lora_B.bias = Some(init.constant([d_out], 0.0));
        }
        if let Some(base) = base.filter(|_| self.dora) {
            adapter.lora_magnitude_vector = Some(init.given(dora::row_norms(base, &adapter.low_rank_terms())));
        }
        AnyAdapter::new(adapter)
    }

    fn tensors(&self, param: &ParamSpec) -> Option<Vec<(String, Vec<usize>)>> {
        let (d_in, d_out) = param.features();
        let mut tensors = vec![
            (param.file_key("lora_A.weight"), vec![self.rank, d_in]),
            (param.file_key("lora_B.weight"), vec![d_out, self.rank]),
        ];
        tensors.extend(self.dora.then(|| (param.file_key("lora_magnitude_vector"), vec![d_out])));
        tensors.extend(self.bias.then(|| (param.file_key("lora_B.bias"), vec![d_out])));
        Some(tensors)
    }
}
