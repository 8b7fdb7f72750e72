//! LoRA on a convolution: a kernel of rank `r` beside the frozen one. Source: `peft/tuners/lora/layer.py`, `_ConvNd`.
//!
//! It acts through the effective kernel, which is exact for every stride, padding and dilation. The reference's live
//! forward ignores the dilation of the layer and agrees with its own merged form only without one; ours is the merged
//! form. A grouped convolution gets an update of the grouped kernel; the reference's ungrouped `lora_A` has no merged
//! form and is refused by its shape.

#![allow(non_snake_case)] // field names are the keys of the file

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{Adapter, AdapterBuilder, AnyAdapter, BaseTensor, BiasAdapter, Init, ParamSpec};

use crate::lora::dora::{self, Term};
use crate::lora::init_weights::InitWeights;
use crate::lora::linear::Factor;

/// The low-rank update of one convolution kernel with `D` axes.
#[derive(Module, Debug)]
pub struct LoraConv<const D: usize> {
    /// `[rank, in, kernel…]`
    pub lora_A: Factor<D>,
    /// `[out, rank, 1…]`
    pub lora_B: Factor<D>,
    /// DoRA's magnitude of each output channel, `[1, out, 1…]`.
    pub lora_magnitude_vector: Option<Param<Tensor<D>>>,
    scale: f64,
}

impl<const D: usize> LoraConv<D> {
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// `A` as `[rank, in · kernel]`, `B` as `[out, rank]`
    pub(crate) fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        let (a, b) = (self.lora_A.weight.val(), self.lora_B.weight.val());
        let [rank, out] = [a.dims()[0], b.dims()[0]];
        let width = a.dims()[1..].iter().product::<usize>();
        (a.reshape([rank, width]), b.reshape([out, rank]))
    }

    fn norms(&self, base: Tensor<2>) -> Tensor<1> {
        let (a, b) = self.factors();
        dora::row_norms(base, &[Term { a, b, coefficient: self.scale }])
    }
}

impl<const K: usize> Adapter for LoraConv<K> {
    fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let plain: [usize; 2] = [dims[0], dims[1..].iter().product()];
        let (a, b) = self.factors();
        let updated = weight.reshape(plain) + b.matmul(a).mul_scalar(self.scale);
        let updated = match &self.lora_magnitude_vector {
            Some(magnitude) => {
                let scale = magnitude.val().reshape([plain[0]]) / self.norms(base.clone().reshape(plain));
                updated * scale.unsqueeze_dim(1)
            }
            None => updated,
        };
        updated.reshape(dims)
    }

    fn as_bias(&self) -> Option<&dyn BiasAdapter> {
        self.lora_B.bias.is_some().then_some(self as &dyn BiasAdapter)
    }
}

impl<const K: usize> BiasAdapter for LoraConv<K> {
    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        match &self.lora_B.bias {
            Some(own) => bias + own.val().mul_scalar(self.scale),
            None => bias,
        }
    }
}

/// Builds [`LoraConv`].
#[derive(Debug, Clone)]
pub(crate) struct BuildConv {
    pub(crate) rank: usize,
    pub(crate) scale: f64,
    pub(crate) start: InitWeights,
    pub(crate) dora: bool,
}

impl AdapterBuilder for BuildConv {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        match base.param().shape.len() {
            3 => AnyAdapter::new(self.kernel::<3>(base, init)),
            4 => AnyAdapter::new(self.kernel::<4>(base, init)),
            _ => AnyAdapter::new(self.kernel::<5>(base, init)),
        }
    }

    fn tensors(&self, param: &ParamSpec) -> Option<Vec<(String, Vec<usize>)>> {
        let ones = vec![1; param.shape.len() - 2];
        let mut tensors = vec![
            (param.file_key("lora_A.weight"), [&[self.rank], &param.shape[1..]].concat()),
            (param.file_key("lora_B.weight"), [&[param.shape[0], self.rank], ones.as_slice()].concat()),
        ];
        let magnitude = || (param.file_key("lora_magnitude_vector"), [&[1, param.shape[0]], ones.as_slice()].concat());
        tensors.extend(self.dora.then(magnitude));
        Some(tensors)
    }
}

impl BuildConv {
    fn kernel<const D: usize>(&self, base: BaseTensor, init: &mut Init) -> LoraConv<D> {
        let shape = base.param().shape.clone();
        let a_shape: [usize; D] = std::array::from_fn(|axis| if axis == 0 { self.rank } else { shape[axis] });
        let b_shape: [usize; D] = std::array::from_fn(|axis| [shape[0], self.rank].get(axis).copied().unwrap_or(1));
        let lora_A = match self.start {
            InitWeights::Gaussian => init.normal(a_shape, 1.0 / self.rank as f64),
            _ => init.kaiming(a_shape),
        };
        let lora_B = match self.start {
            InitWeights::Random => init.kaiming(b_shape),
            _ => init.constant(b_shape, 0.0),
        };
        let mut adapter = LoraConv {
            lora_A: Factor::new(lora_A),
            lora_B: Factor::new(lora_B),
            lora_magnitude_vector: None,
            scale: self.scale,
        };
        if self.dora {
            let base = base.matrix().to_device(&init.device().clone().without_autodiff());
            let mut magnitude = [1; D];
            magnitude[1] = shape[0];
            adapter.lora_magnitude_vector = Some(init.given(adapter.norms(base).reshape(magnitude)));
        }
        adapter
    }
}
