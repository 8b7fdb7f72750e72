//! The head that classifies every token.

/// Makes a model with a layer that scores tokens; see [`token_heads`](super::token_heads).
macro_rules! token_classifier {
    (
        $model:ident, $config:ident, $field:ident: $new:expr,
        width: $width:expr, labels: $labels:expr, dropout: $dropout:expr, $tokens:ident($head:ident)
    ) => {
        /// The stack with a token-classification head.
        #[derive(burn::module::Module, Debug)]
        pub struct $tokens {
            /// The stack, without a pooler.
            pub $field: $model,
            dropout: peft_core::nn::Dropout,
            /// `[num_labels, d_model]`
            pub $head: peft_core::nn::Projection,
            #[module(skip)]
            labels: $crate::common::config::LabelConfig,
        }

        impl $tokens {
            /// A model whose parameters are not allocated yet.
            pub fn new(config: &$config, device: &burn::tensor::Device) -> Self {
                let (width, dropout): (fn(&$config) -> usize, fn(&$config) -> peft_core::nn::Dropout) =
                    ($width, $dropout);
                let labels: fn(&$config) -> &$crate::common::config::LabelConfig = $labels;
                let labels = labels(config).clone();
                Self {
                    $field: $new(config, device),
                    dropout: dropout(config),
                    $head: peft_core::nn::Projection::new(width(config), labels.num_labels(), true, device),
                    labels,
                }
            }
        }

        impl peft_core::Adaptable for $tokens {
            fn spec(&self) -> peft_core::ModelSpec {
                self.$field.spec_with_head(peft_core::ModelSpec::of(self))
            }

            fn repeat_layers(&mut self, order: &[usize]) -> peft_core::Result<()> {
                peft_core::Adaptable::repeat_layers(&mut self.$field, order)
            }
        }

        impl $crate::common::task::TokenClassifier for $tokens {
            fn logits(&self, input: &$crate::common::input::ModelInput) -> burn::tensor::Tensor<3> {
                let hidden = $crate::common::task::FeatureExtractor::last_hidden_state(&self.$field, input);
                self.$head.forward(self.dropout.forward(hidden))
            }

            fn labels(&self) -> &$crate::common::config::LabelConfig {
                &self.labels
            }
        }
    };
}

pub(crate) use token_classifier;
