//! What decoders have in common: a stack that a head is put on.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::nn::Embedding;
use peft_core::{ModelSpec, PeftError, PromptShape, Result};

use crate::common::cache::KvCache;
use crate::common::input::ModelInput;
use crate::common::prompt;

/// A stack of causal layers without a head, as architectures of this crate have it.
///
/// With [`Decoder::stack`], [`Decoder::embedding`] and [`Decoder::prompts`] it knows all that its heads need: their traits
/// are then written in terms of [`Decoder::forward`]. A model of another crate may use it the same way, or implement
/// [`CausalLm`](crate::common::task::CausalLm) directly.
pub trait Decoder: Module {
    /// The layers alone: the last hidden state, `[batch, seq, d_output]`. Texts that share a row are kept apart, see
    /// [`CausalLm::supports_packing`](crate::common::task::CausalLm::supports_packing).
    fn stack(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3>;

    /// The last hidden state behind active prompts, `[batch, seq, d_output]`.
    fn forward(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        prompt::around(self.embedding(), input, cache, |input, cache| self.stack(input, cache))
    }

    /// Where prompts go and how wide they are.
    fn prompts(&self) -> PromptShape;

    /// The model's parameters for plans. `prefix` is the field that holds the stack.
    fn spec_within(&self, spec: ModelSpec, prefix: &str) -> ModelSpec {
        let spec = spec.with_model_type(self.model_type()).with_prompts(prefix, self.prompts());
        spec.with_positions(self.positions()).with_layer_types(self.layer_types())
    }

    /// Rebuilds the stack from its own layers, as [`Adaptable::repeat_layers`](peft_core::Adaptable::repeat_layers) says.
    ///
    /// # Errors
    /// If there is no layer of such a number, or as here, in a model that leaves this out.
    fn repeat_layers(&mut self, order: &[usize]) -> Result<()> {
        let _ = order;
        Err(PeftError::unsupported("layer_replication", format!("`{}` cannot repeat its layers", self.model_type())))
    }

    /// How far each layer sees, if they may differ in this: see [`ModelSpec::layer_types`].
    fn layer_types(&self) -> Option<Vec<String>> {
        None
    }

    /// The embedding matrix.
    fn embedding(&self) -> &Embedding;

    /// The positions of tokens, where a table has a row for each: see [`ModelSpec::positions`].
    fn positions(&self) -> Option<Range<i64>> {
        None
    }

    /// Soft cap of the language-model head's logits, where there is one.
    fn logit_cap(&self) -> Option<f64> {
        None
    }

    /// See [`CausalLm::cache_limit`](crate::common::task::CausalLm::cache_limit).
    fn cache_limit(&self) -> Option<usize> {
        None
    }

    /// `model_type` of `config.json`.
    fn model_type(&self) -> &'static str;
}
