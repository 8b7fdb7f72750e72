//! Heads that score every token, which differ between architectures in names only.

/// `word_heads! { Model, Config, field: new, width: …, labels: …, dropout: …, tokens: A(head), answers: B }` makes `A`,
/// which classifies tokens with a layer called `head`, and `B`, which finds answers. Both hold the model in `field`, as
/// their checkpoints name it, and build it with `new`. `width`, `labels` and `dropout` are functions of the
/// configuration: how wide the hidden state is, what the labels are, and what drops elements before tokens are scored.
/// `answers` may be left out.
///
/// The model is a [`FeatureExtractor`](crate::common::task::FeatureExtractor) with a method `spec_with_head`.
macro_rules! word_heads {
    (
        $model:ident, $config:ident, $field:ident: $new:expr,
        width: $width:expr,
        labels: $labels:expr,
        dropout: $dropout:expr,
        tokens: $tokens:ident($head:ident)
        $(, answers: $answers:ident)? $(,)?
    ) => {
        $crate::common::heads::token_heads::word_heads! {
            @tokens $model, $config, $field: $new, width: $width, labels: $labels, dropout: $dropout, $tokens($head)
        }
        $($crate::common::heads::token_heads::word_heads! { @answers $model, $config, $field: $new, width: $width, $answers })?
    };

    (
        @tokens $model:ident, $config:ident, $field:ident: $new:expr,
        width: $width:expr, labels: $labels:expr, dropout: $dropout:expr, $tokens:ident($head:ident)
    ) => {
        /// The stack that classifies every token.
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

    (@answers $model:ident, $config:ident, $field:ident: $new:expr, width: $width:expr, $answers:ident) => {
        /// The stack that finds answers.
        #[derive(burn::module::Module, Debug)]
        pub struct $answers {
            /// The stack, without a pooler.
            pub $field: $model,
            /// `[2, d_model]`
            pub qa_outputs: peft_core::nn::Projection,
        }

        impl $answers {
            /// A model whose parameters are not allocated yet.
            pub fn new(config: &$config, device: &burn::tensor::Device) -> Self {
                let width: fn(&$config) -> usize = $width;
                Self {
                    $field: $new(config, device),
                    qa_outputs: peft_core::nn::Projection::new(width(config), 2, true, device),
                }
            }
        }

        impl peft_core::Adaptable for $answers {
            fn spec(&self) -> peft_core::ModelSpec {
                self.$field.spec_with_head(peft_core::ModelSpec::of(self))
            }
        }

        impl $crate::common::task::QuestionAnswerer for $answers {
            fn logits(&self, input: &$crate::common::input::ModelInput) -> burn::tensor::Tensor<3> {
                self.qa_outputs.forward($crate::common::task::FeatureExtractor::last_hidden_state(&self.$field, input))
            }
        }
    };
}

pub(crate) use word_heads;
