//! A parameter of a model: its place, its kind and its shape.

use std::fmt;

use burn::tensor::{Tensor, TensorData};

use crate::ops::Layout;
use crate::spec::keys::KEY_PREFIX;
use crate::spec::path::join;

/// What a parameter is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// The matrix of `y = x W + b`.
    Linear(Layout),
    /// A table of rows, `[rows, d_model]`.
    Embedding,
    /// A convolution kernel, `[out, in / groups, kernel…]`.
    Conv,
    /// Anything else: biases, norms, positions.
    Other,
    /// No parameter at all: it is read and written, but neither adapted, trained nor counted.
    Buffer,
}

impl fmt::Display for ParamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear(_) => "a linear layer",
            Self::Embedding => "an embedding",
            Self::Conv => "a convolution",
            Self::Other | Self::Buffer => "no layer",
        })
    }
}

/// A parameter that a plan may adapt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Path of the layer as the checkpoint spells it: `transformer.h.0.attn.c_attn`. Empty for a bare parameter.
    pub module: String,
    /// The parameter's name in that layer: `weight`, `bias`.
    pub name: String,
    /// The struct that declares the parameter: `Projection`, `Gpt2Linear`, `LayerNorm`.
    pub owner: String,
    /// What the parameter is to the layer.
    pub kind: ParamKind,
    /// Shape in memory.
    pub shape: Vec<usize>,
}

impl ParamSpec {
    /// Path of the parameter: module and name.
    pub fn path(&self) -> String {
        join(&self.module, &self.name)
    }

    /// Key of a tensor of an adapter on this layer in its file: `base_model.model.<module>.<field>`.
    pub fn file_key(&self, field: &str) -> String {
        format!("{}{}", KEY_PREFIX, join(&self.module, field))
    }

    /// `(in, out)` of the map that a weight stands for; a convolution counts its kernel into `in`.
    pub fn features(&self) -> (usize, usize) {
        match self.kind {
            ParamKind::Linear(Layout::OutIn) => (self.shape[1], self.shape[0]),
            ParamKind::Linear(Layout::InOut) | ParamKind::Embedding => (self.shape[0], self.shape[1]),
            ParamKind::Conv => (self.shape[1..].iter().product(), self.shape[0]),
            ParamKind::Other | ParamKind::Buffer => (1, self.shape.iter().product()),
        }
    }

    /// Whether a file holds the parameter transposed: `burn::nn::Linear` keeps `[in, out]`, checkpoints `[out, in]`.
    pub fn is_transposed_on_disk(&self) -> bool {
        self.owner == "Linear" && self.kind == ParamKind::Linear(Layout::InOut)
    }

    /// Whether it is a [`Counter`](crate::nn::Counter), which files hold as an integer without axes.
    fn is_counter(&self) -> bool {
        self.owner == COUNTER
    }

    /// A value in memory as files hold it, but for what [`is_transposed_on_disk`](Self::is_transposed_on_disk) says.
    pub(crate) fn stored(&self, data: TensorData) -> TensorData {
        match self.is_counter() {
            true => TensorData::new(data.iter::<f32>().map(|it| it as i64).collect(), Vec::<usize>::new()),
            false => data,
        }
    }

    /// Shape in a checkpoint.
    pub fn shape_on_disk(&self) -> Vec<usize> {
        if self.is_counter() {
            return Vec::new();
        }
        let mut shape = self.shape.clone();
        if self.is_transposed_on_disk() {
            shape.reverse();
        }
        shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the parameter has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A linear weight as `[out, in]`, however it lies. Its own inverse.
    pub fn out_in(&self, weight: Tensor<2>) -> Tensor<2> {
        match self.kind {
            ParamKind::Linear(Layout::InOut) => weight.transpose(),
            _ => weight,
        }
    }

    /// A weight that low-rank methods know how to adapt.
    pub fn is_layer_weight(&self) -> bool {
        self.name == "weight" && !matches!(self.kind, ParamKind::Other | ParamKind::Buffer)
    }
}

impl fmt::Display for ParamSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.path(), self.shape)
    }
}

/// The struct whose field is a count.
const COUNTER: &str = "Counter";

pub(super) fn kind_of(owner: &str, param: &str, rank: usize) -> ParamKind {
    match (owner, param, rank) {
        ("Buffer" | COUNTER, _, _) => ParamKind::Buffer,
        ("Projection", "weight", 2) => ParamKind::Linear(Layout::OutIn),
        ("Linear" | "Gpt2Linear", "weight", 2) => ParamKind::Linear(Layout::InOut),
        ("Embedding", "weight", 2) => ParamKind::Embedding,
        ("Conv1d" | "Conv2d" | "Conv3d", "weight", _) => ParamKind::Conv,
        _ => ParamKind::Other,
    }
}
