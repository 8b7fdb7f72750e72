//! The layers of small networks that make prompts, with torch's starting values.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_core::{Init, Layout, ops};

/// A table of rows: torch's `nn.Embedding`.
#[derive(Module, Debug)]
pub struct Table {
    /// `[rows, width]`
    pub weight: Param<Tensor<2>>,
}

impl Table {
    pub(crate) fn new(rows: usize, width: usize, init: &mut Init) -> Self {
        Self { weight: init.normal([rows, width], 1.0) }
    }
}

/// `x Wᵀ + b`: torch's `nn.Linear`.
#[derive(Module, Debug)]
pub struct Dense {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
}

impl Dense {
    pub(crate) fn new(d_in: usize, d_out: usize, init: &mut Init) -> Self {
        let bound = 1.0 / (d_in as f64).sqrt();
        Self { weight: init.kaiming([d_out, d_in]), bias: init.uniform([d_out], bound) }
    }

    pub(crate) fn zeros(d_in: usize, d_out: usize, init: &mut Init) -> Self {
        Self { weight: init.constant([d_out, d_in], 0.0), bias: init.constant([d_out], 0.0) }
    }

    pub(crate) fn len(d_in: usize, d_out: usize) -> usize {
        (d_in + 1) * d_out
    }

    pub(crate) fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        ops::linear(input, self.weight.val(), Some(self.bias.val()), Layout::OutIn)
    }
}

/// Dense layers with an activation between each two.
pub(crate) fn sequence(layers: &[Dense], input: Tensor<2>, act: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    layers.iter().enumerate().fold(input, |hidden, (at, layer)| {
        let hidden = if at > 0 { act(hidden) } else { hidden };
        layer.forward(hidden)
    })
}

pub(crate) fn relu(hidden: Tensor<2>) -> Tensor<2> {
    activation::relu(hidden)
}

/// Torch numbers the activations of a sequence too: our `head.1.weight` is its `head.2.weight`.
pub(crate) fn sequence_key(head: &str, field: &str) -> Option<String> {
    let (index, leaf) = field.strip_prefix(head)?.strip_prefix('.')?.split_once('.')?;
    Some(format!("{head}.{}.{leaf}", 2 * index.parse::<usize>().ok()?))
}
