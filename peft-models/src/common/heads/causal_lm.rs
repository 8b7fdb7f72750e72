//! The language-model head of a decoder.

/// `causal_lm_head! { Model, Config, field: width, Name }` makes `Name`, the decoder `Model` with a head; `bias` at the end
/// gives the head a bias.
macro_rules! causal_lm_head {
    (@bias) => { false };
    (@bias bias) => { true };

    ($model:ident, $config:ident, $field:ident: $width:ident, $causal:ident $($bias:ident)?) => {
        /// The stack with the language-model head.
        #[derive(burn::module::Module, Debug)]
        pub struct $causal {
            /// The stack.
            pub $field: $model,
            /// The head, unless it is the embedding matrix read the other way.
            pub lm_head: Option<peft_core::nn::Projection>,
        }

        impl $causal {
            /// A model whose parameters are not allocated yet.
            pub fn new(config: &$config, device: &burn::tensor::Device) -> Self {
                let bias = $crate::common::heads::causal_lm::causal_lm_head!(@bias $($bias)?);
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

            fn repeat_layers(&mut self, order: &[usize]) -> peft_core::Result<()> {
                peft_core::Adaptable::repeat_layers(&mut self.$field, order)
            }
        }

        impl $crate::common::task::CausalLm for $causal {
            fn hidden(
                &self,
                input: &$crate::common::input::ModelInput,
                cache: Option<&mut $crate::common::cache::KvCache>,
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
}

pub(crate) use causal_lm_head;
