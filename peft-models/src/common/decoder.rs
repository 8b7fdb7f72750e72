//! What decoders have in common: a stack that a head is put on.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::nn::Embedding;
use peft_core::{ModelSpec, PromptShape};

use crate::common::input::{KvCache, ModelInput};
use crate::common::prompt;

/// A stack of causal layers without a head.
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
        spec.with_model_type(self.model_type()).with_prompts(prefix, self.prompts())
    }

    /// The table that turns ids into vectors.
    fn embedding(&self) -> &Embedding;

    /// What the scores of the language-model head are bent to, where they are.
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

/// The heads of a decoder, which differ between architectures in names only.
///
/// `decoder_heads! { Model, Config, field: width, causal: A, classifier: B }` makes `A` and `B` hold the model in `field`,
/// as their checkpoints name it; `width` is the field of the configuration that says how wide the hidden state is. With
/// `A with bias`, the language-model head has a bias.
macro_rules! decoder_heads {
    (
        $model:ident, $config:ident, $field:ident: $width:ident,
        causal: $causal:ident $(with $bias:ident)?,
        classifier: $classifier:ident $(,)?
    ) => {
        $crate::common::decoder::decoder_heads! { @base $model }
        $crate::common::decoder::decoder_heads! { @causal $model, $config, $field: $width, $causal $($bias)? }
        $crate::common::decoder::decoder_heads! { @classifier $model, $config, $field: $width, $classifier }

        impl $model {
            fn spec_with_head(&self, spec: peft_core::ModelSpec) -> peft_core::ModelSpec {
                $crate::common::decoder::Decoder::spec_within(self, spec, stringify!($field))
            }
        }
    };

    (@bias) => { false };
    (@bias bias) => { true };

    (@base $model:ident) => {
        impl peft_core::Adaptable for $model {
            fn spec(&self) -> peft_core::ModelSpec {
                $crate::common::decoder::Decoder::spec_within(self, peft_core::ModelSpec::of(self), "")
            }
        }

        impl $crate::common::task::FeatureExtractor for $model {
            fn last_hidden_state(&self, input: &$crate::common::input::ModelInput) -> burn::tensor::Tensor<3> {
                $crate::common::decoder::Decoder::forward(self, input, None)
            }
        }
    };

    (@causal $model:ident, $config:ident, $field:ident: $width:ident, $causal:ident $($bias:ident)?) => {
        /// The stack with the language-model head.
        #[derive(burn::module::Module, Debug)]
        pub struct $causal {
            /// The stack.
            pub $field: $model,
            /// The head, unless it is the embedding table read the other way.
            pub lm_head: Option<peft_core::nn::Projection>,
        }

        impl $causal {
            /// A model whose parameters are not allocated yet.
            pub fn new(config: &$config, device: &burn::tensor::Device) -> Self {
                let bias = $crate::common::decoder::decoder_heads!(@bias $($bias)?);
                let head = || peft_core::nn::Projection::new(config.$width, config.vocab_size, bias, device);
                Self { $field: $model::new(config, device), lm_head: (!config.tie_word_embeddings).then(head) }
            }
        }

        impl peft_core::Adaptable for $causal {
            fn spec(&self) -> peft_core::ModelSpec {
                self.$field.spec_with_head(peft_core::ModelSpec::of(self)).with_heads(["lm_head"])
            }

            fn is_tied(&self) -> bool {
                $crate::common::task::CausalLm::is_tied(self)
            }

            fn untie_head(&mut self) {
                $crate::common::task::CausalLm::untie(self);
            }
        }

        impl $crate::common::task::CausalLm for $causal {
            fn hidden(
                &self,
                input: &$crate::common::input::ModelInput,
                cache: Option<&mut $crate::common::input::KvCache>,
            ) -> burn::tensor::Tensor<3> {
                $crate::common::decoder::Decoder::forward(&self.$field, input, cache)
            }

            fn head(&self, hidden: burn::tensor::Tensor<2>) -> burn::tensor::Tensor<2> {
                let logits = match &self.lm_head {
                    Some(head) => head.forward(hidden),
                    None => $crate::common::decoder::Decoder::embedding(&self.$field).attend(hidden),
                };
                match $crate::common::decoder::Decoder::logit_cap(&self.$field) {
                    Some(cap) => peft_core::ops::soft_cap(logits, cap),
                    None => logits,
                }
            }

            fn head_weight(&self) -> Option<burn::tensor::Tensor<2>> {
                match &self.lm_head {
                    _ if $crate::common::decoder::Decoder::logit_cap(&self.$field).is_some() => None,
                    Some(head) => head.bare_weight(),
                    None => $crate::common::decoder::Decoder::embedding(&self.$field).bare_weight(),
                }
            }

            fn cache_limit(&self) -> Option<usize> {
                $crate::common::decoder::Decoder::cache_limit(&self.$field)
            }

            fn supports_packing(&self) -> bool {
                true
            }

            fn is_tied(&self) -> bool {
                self.lm_head.is_none()
            }

            fn untie(&mut self) {
                let table = $crate::common::decoder::Decoder::embedding(&self.$field);
                self.lm_head.get_or_insert_with(|| table.as_head());
            }
        }
    };

    (@classifier $model:ident, $config:ident, $field:ident: $width:ident, $classifier:ident) => {
        /// The stack that classifies a sequence by its last token.
        #[derive(burn::module::Module, Debug)]
        pub struct $classifier {
            /// The stack.
            pub $field: $model,
            /// `[num_labels, d_output]`
            pub score: peft_core::nn::Projection,
            #[module(skip)]
            labels: $crate::common::config::LabelConfig,
        }

        impl $classifier {
            /// A model whose parameters are not allocated yet.
            pub fn new(config: &$config, device: &burn::tensor::Device) -> Self {
                let labels = config.labels.num_labels();
                Self {
                    $field: $model::new(config, device),
                    score: peft_core::nn::Projection::new(config.$width, labels, false, device),
                    labels: config.labels.clone(),
                }
            }
        }

        impl peft_core::Adaptable for $classifier {
            fn spec(&self) -> peft_core::ModelSpec {
                self.$field.spec_with_head(peft_core::ModelSpec::of(self)).with_heads(["score"])
            }
        }

        impl $crate::common::task::SequenceClassifier for $classifier {
            fn logits(&self, input: &$crate::common::input::ModelInput) -> burn::tensor::Tensor<2> {
                let hidden = $crate::common::decoder::Decoder::forward(&self.$field, input, None);
                self.score.forward($crate::common::task::pool_last_token(hidden, input, self.labels.pad_token_id))
            }

            fn labels(&self) -> &$crate::common::config::LabelConfig {
                &self.labels
            }

            fn pools_last_token(&self) -> bool {
                true
            }
        }
    };
}

pub(crate) use decoder_heads;
