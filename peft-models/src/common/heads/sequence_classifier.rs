//! The head of a decoder that classifies a sequence by its last token.

/// `last_token_classifier! { Model, Config, field: width, Name }` makes `Name`, the decoder `Model` with a layer `score`.
macro_rules! last_token_classifier {
    ($model:ident, $config:ident, $field:ident: $width:ident, $classifier:ident) => {
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

            fn repeat_layers(&mut self, order: &[usize]) -> peft_core::Result<()> {
                peft_core::Adaptable::repeat_layers(&mut self.$field, order)
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

pub(crate) use last_token_classifier;
