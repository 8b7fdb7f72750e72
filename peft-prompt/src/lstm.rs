//! A recurrent network that reads the virtual tokens in both directions, as torch's `nn.LSTM` does.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_core::nn::Dropout;
use peft_core::{Init, Layout, ops};

/// One direction of one layer. The gates lie below each other: input, forget, cell, output.
#[derive(Module, Debug)]
pub struct LstmCell {
    /// `[4 · hidden, in]`
    pub weight_ih: Param<Tensor<2>>,
    /// `[4 · hidden, hidden]`
    pub weight_hh: Param<Tensor<2>>,
    /// `[4 · hidden]`
    pub bias_ih: Param<Tensor<1>>,
    /// `[4 · hidden]`
    pub bias_hh: Param<Tensor<1>>,
}

impl LstmCell {
    fn new(d_in: usize, hidden: usize, init: &mut Init) -> Self {
        let bound = 1.0 / (hidden as f64).sqrt();
        Self {
            weight_ih: init.uniform([4 * hidden, d_in], bound),
            weight_hh: init.uniform([4 * hidden, hidden], bound),
            bias_ih: init.uniform([4 * hidden], bound),
            bias_hh: init.uniform([4 * hidden], bound),
        }
    }

    /// `[seq, in]` to `[seq, hidden]`.
    fn forward(&self, input: Tensor<2>, backwards: bool) -> Tensor<2> {
        let ([seq, _], [_, hidden]) = (input.dims(), self.weight_hh.dims());
        let inputs = ops::linear(input, self.weight_ih.val(), Some(self.bias_ih.val()), Layout::OutIn);
        let device = inputs.device().without_autodiff();
        let (mut state, mut cell) = (Tensor::zeros([1, hidden], &device), Tensor::zeros([1, hidden], &device));
        let mut states = vec![None; seq];
        for step in 0..seq {
            let at = if backwards { seq - 1 - step } else { step };
            let past = ops::linear(state, self.weight_hh.val(), Some(self.bias_hh.val()), Layout::OutIn);
            let gates = inputs.clone().narrow(0, at, 1) + past;
            let gate = |index: usize| gates.clone().narrow(1, index * hidden, hidden);
            let kept = activation::sigmoid(gate(1)) * cell;
            cell = kept + activation::sigmoid(gate(0)) * gate(2).tanh();
            state = activation::sigmoid(gate(3)) * cell.clone().tanh();
            states[at] = Some(state.clone());
        }
        Tensor::cat(states.into_iter().flatten().collect(), 0)
    }
}

/// Both directions of one layer.
#[derive(Module, Debug)]
pub struct Lstm {
    /// From the first token to the last.
    pub onwards: LstmCell,
    /// From the last token to the first.
    pub reverse: LstmCell,
}

impl Lstm {
    /// Layers on top of each other.
    pub(crate) fn stack(d_in: usize, hidden: usize, layers: usize, init: &mut Init) -> Vec<Self> {
        let width = |layer: usize| if layer == 0 { d_in } else { 2 * hidden };
        let both = |layer: usize| {
            let onwards = LstmCell::new(width(layer), hidden, init);
            Self { onwards, reverse: LstmCell::new(width(layer), hidden, init) }
        };
        (0..layers).map(both).collect()
    }

    pub(crate) fn len(d_in: usize, hidden: usize, layers: usize) -> usize {
        let width = |layer: usize| if layer == 0 { d_in } else { 2 * hidden };
        (0..layers).map(|layer| 2 * 4 * hidden * (width(layer) + hidden + 2)).sum()
    }

    /// `[seq, in]` to `[seq, 2 · hidden]`; dropout acts between layers.
    pub(crate) fn run(layers: &[Self], input: Tensor<2>, dropout: Option<&Dropout>) -> Tensor<2> {
        layers.iter().enumerate().fold(input, |hidden, (at, layer)| {
            let hidden = match dropout.filter(|_| at > 0) {
                Some(dropout) => dropout.forward(hidden),
                None => hidden,
            };
            let (onwards, reverse) =
                (layer.onwards.forward(hidden.clone(), false), layer.reverse.forward(hidden, true));
            Tensor::cat(vec![onwards, reverse], 1)
        })
    }

    /// Torch's name of a parameter: `weight_ih_l0_reverse` for our `0.reverse.weight_ih`.
    pub(crate) fn key(field: &str) -> Option<String> {
        let (layer, rest) = field.split_once('.')?;
        let (direction, leaf) = rest.split_once('.')?;
        let suffix = if direction == "reverse" { "_reverse" } else { "" };
        Some(format!("{leaf}_l{layer}{suffix}"))
    }
}
