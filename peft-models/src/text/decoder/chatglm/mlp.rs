//! What the generations of ChatGLM share.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::Projection;
use peft_core::ops;

use crate::common::config::Activation;

/// The base of the rotation.
pub(super) const THETA: f32 = 10_000.0;

/// Two layers with an activation between them, or a gate.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct GlmMlp {
    pub dense_h_to_4h: Projection,
    pub dense_4h_to_h: Projection,
    gated: bool,
}

impl GlmMlp {
    pub(super) fn new(d_model: usize, d_inner: usize, bias: bool, gated: bool, device: &Device) -> Self {
        let widened = if gated { 2 * d_inner } else { d_inner };
        Self {
            dense_h_to_4h: Projection::new(d_model, widened, bias, device),
            dense_4h_to_h: Projection::new(d_inner, d_model, bias, device),
            gated,
        }
    }

    pub(super) fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let inner = self.dense_h_to_4h.forward(hidden);
        if !self.gated {
            return self.dense_4h_to_h.forward(ops::gelu_tanh(inner));
        }
        let half = inner.dims()[2] / 2;
        let [gate, up] = ops::split(inner, [half; 2]);
        self.dense_4h_to_h.forward(Activation::Silu.gate(gate, up))
    }
}
