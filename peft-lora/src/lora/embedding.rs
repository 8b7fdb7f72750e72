//! LoRA on a table of vectors: `y = E[i] + s · Aᵀ[i] Bᵀ`. Source: `peft/tuners/lora/layer.py`, `Embedding`.

#![allow(non_snake_case)] // field names are the keys of the file

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::forward::EmbeddingBelow;
use peft_core::{Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, ParamSpec};

use crate::lora::dora::{self, Term};
use crate::lora::init_weights::InitWeights;

/// The low-rank update of one table.
#[derive(Module, Debug)]
pub struct LoraEmbedding {
    /// `[rank, rows]`
    pub lora_embedding_A: Param<Tensor<2>>,
    /// `[d_model, rank]`
    pub lora_embedding_B: Param<Tensor<2>>,
    /// DoRA's magnitude of each feature over the whole table, `[d_model]`.
    pub lora_magnitude_vector: Option<Param<Tensor<1>>>,
    scale: f64,
}

impl LoraEmbedding {
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// `magnitude / ‖E + ΔE‖` per feature, `[d_model]`. `base` is `[rows, d_model]`.
    fn direction_scale(&self, magnitude: &Param<Tensor<1>>, base: Tensor<2>) -> Tensor<1> {
        magnitude.val() / self.norms(base)
    }

    fn norms(&self, base: Tensor<2>) -> Tensor<1> {
        let (a, b) = (self.lora_embedding_A.val(), self.lora_embedding_B.val());
        dora::row_norms(base.transpose(), &[Term { a, b, coefficient: self.scale }])
    }
}

impl Adapter for LoraEmbedding {
    fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let plain: [usize; 2] = [dims[0], dims[1]];
        let delta = self.lora_embedding_B.val().matmul(self.lora_embedding_A.val()).transpose().mul_scalar(self.scale);
        let updated = weight.reshape(plain) + delta;
        let updated = match &self.lora_magnitude_vector {
            Some(magnitude) => updated * self.direction_scale(magnitude, base.clone().reshape(plain)).unsqueeze(),
            None => updated,
        };
        updated.reshape(dims)
    }

    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        let rows = below.forward(ids.clone());
        let [batch, seq, d_model] = rows.dims();
        let low = below.look_up(ids, self.lora_embedding_A.val().transpose());
        let rank = low.dims()[2];
        let update = low.reshape([batch * seq, rank]).matmul(self.lora_embedding_B.val().transpose());
        let updated = rows + update.mul_scalar(self.scale).reshape([batch, seq, d_model]);
        match &self.lora_magnitude_vector {
            Some(magnitude) => updated * self.direction_scale(magnitude, below.base().clone()).unsqueeze(),
            None => updated,
        }
    }
}

/// Builds [`LoraEmbedding`].
#[derive(Debug, Clone)]
pub(crate) struct BuildEmbedding {
    pub(crate) rank: usize,
    pub(crate) scale: f64,
    pub(crate) start: InitWeights,
    pub(crate) dora: bool,
}

impl AdapterBuilder for BuildEmbedding {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (rows, d_model) = base.param().features();
        // Here A is zero and B random, the other way round than on a linear layer; `false` draws both.
        let lora_embedding_A = match self.start {
            InitWeights::Random => init.normal([self.rank, rows], 1.0),
            _ => init.constant([self.rank, rows], 0.0),
        };
        let mut adapter = LoraEmbedding {
            lora_embedding_A,
            lora_embedding_B: init.normal([d_model, self.rank], 1.0),
            lora_magnitude_vector: None,
            scale: self.scale,
        };
        if self.dora {
            let base = base.matrix().to_device(&init.device().clone().without_autodiff());
            adapter.lora_magnitude_vector = Some(init.given(adapter.norms(base)));
        }
        AnyAdapter::new(adapter)
    }

    fn tensors(&self, param: &ParamSpec) -> Option<Vec<(String, Vec<usize>)>> {
        let (rows, d_model) = param.features();
        let mut tensors = vec![
            (param.file_key("lora_embedding_A"), vec![self.rank, rows]),
            (param.file_key("lora_embedding_B"), vec![d_model, self.rank]),
        ];
        tensors.extend(self.dora.then(|| (param.file_key("lora_magnitude_vector"), vec![d_model])));
        Some(tensors)
    }
}
