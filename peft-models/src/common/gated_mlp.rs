//! The gated layers between attentions, which LLaMA and later models share.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::Projection;

use crate::common::config::Activation;

/// `down(act(gate(x)) · up(x))`
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// `[d_inner, d_model]`
    pub gate_proj: Projection,
    /// `[d_inner, d_model]`
    pub up_proj: Projection,
    /// `[d_model, d_inner]`
    pub down_proj: Projection,
    #[module(skip)]
    act: Activation,
}

impl GatedMlp {
    /// Layers whose parameters are not allocated yet.
    pub fn new(d_model: usize, d_inner: usize, bias: bool, act: Activation, device: &Device) -> Self {
        let projection = |d_input, d_output| Projection::new(d_input, d_output, bias, device);
        Self {
            gate_proj: projection(d_model, d_inner),
            up_proj: projection(d_model, d_inner),
            down_proj: projection(d_inner, d_model),
            act,
        }
    }

    /// `[batch, seq, d_model]` to the same.
    pub fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let (gate, up) = (self.gate_proj.forward(hidden.clone()), self.up_proj.forward(hidden));
        self.down_proj.forward(self.act.gate(gate, up))
    }
}
