//! The head of extractive question answering: where a span starts and ends.

/// Makes a model with a layer `qa_outputs`; see [`token_heads`](super::token_heads).
macro_rules! question_answerer {
    ($model:ident, $config:ident, $field:ident: $new:expr, width: $width:expr, $name:ident) => {
        /// The stack with an extractive question-answering head.
        #[derive(burn::module::Module, Debug)]
        pub struct $name {
            /// The stack, without a pooler.
            pub $field: $model,
            /// `[2, d_model]`
            pub qa_outputs: peft_core::nn::Projection,
        }

        impl $name {
            /// A model whose parameters are not allocated yet.
            pub fn new(config: &$config, device: &burn::tensor::Device) -> Self {
                let width: fn(&$config) -> usize = $width;
                Self {
                    $field: $new(config, device),
                    qa_outputs: peft_core::nn::Projection::new(width(config), 2, true, device),
                }
            }
        }

        impl peft_core::Adaptable for $name {
            fn spec(&self) -> peft_core::ModelSpec {
                self.$field.spec_with_head(peft_core::ModelSpec::of(self))
            }

            fn repeat_layers(&mut self, order: &[usize]) -> peft_core::Result<()> {
                peft_core::Adaptable::repeat_layers(&mut self.$field, order)
            }
        }

        impl $crate::common::task::QuestionAnswerer for $name {
            fn logits(&self, input: &$crate::common::input::ModelInput) -> burn::tensor::Tensor<3> {
                self.qa_outputs.forward($crate::common::task::FeatureExtractor::last_hidden_state(&self.$field, input))
            }
        }
    };
}

pub(crate) use question_answerer;
