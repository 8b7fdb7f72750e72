//! What a task needs of a noise predictor.

use burn::module::Module;
use burn::tensor::Tensor;

/// A noise predictor: the model that a diffusion process calls once a step.
pub trait Denoiser: Module {
    /// What is predicted of a noisy picture: its noise, or what the scheduler takes in its place; as large as the sample.
    ///
    /// # Shapes
    /// - output: `[batch, out_channels, rows, columns]`
    fn predict(&self, input: &DenoiserInput) -> Tensor<4>;

    /// What goes in and comes out.
    fn about(&self) -> &DenoiserConfig;
}

/// The input of a noise predictor.
#[derive(Debug, Clone)]
pub struct DenoiserInput {
    /// The noisy picture or latents, `[batch, in_channels, rows, columns]`.
    pub sample: Tensor<4>,
    /// How noisy it is; `[batch]`, or `[1]` for all rows.
    pub timestep: Tensor<1>,
    /// The text, `[batch, seq, d_text]`.
    pub encoder_hidden_states: Tensor<3>,
    /// SDXL's further conditions.
    pub added: Option<AddedConditions>,
}

/// What SDXL is told beside the text.
#[derive(Debug, Clone)]
pub struct AddedConditions {
    /// The pooled text, `[batch, width]`.
    pub text_embeds: Tensor<2>,
    /// Original size, crop and target size, `[batch, 6]`.
    pub time_ids: Tensor<2>,
}

/// What a noise predictor reads and gives.
#[derive(Debug, Clone)]
pub struct DenoiserConfig {
    /// Channels of the sample.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Width of the text.
    pub d_text: usize,
    /// Rows and columns that it was trained on.
    pub sample_size: Option<[usize; 2]>,
    /// Widths of the further conditions, for models that need them.
    pub added: Option<AddedWidths>,
}

/// Widths of [`AddedConditions`].
#[derive(Debug, Clone, Copy)]
pub struct AddedWidths {
    /// Of the pooled text and all numbers together.
    pub total: usize,
    /// Of each number of `time_ids`.
    pub number: usize,
}
