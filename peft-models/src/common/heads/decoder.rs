//! Both heads of a decoder.

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
        $crate::common::heads::decoder::decoder_heads! { @base $model }
        $crate::common::heads::causal_lm::causal_lm_head! { $model, $config, $field: $width, $causal $($bias)? }
        $crate::common::heads::sequence_classifier::last_token_classifier! { $model, $config, $field: $width, $classifier }

        impl $model {
            fn spec_with_head(&self, spec: peft_core::ModelSpec) -> peft_core::ModelSpec {
                $crate::common::decoder::Decoder::spec_within(self, spec, stringify!($field))
            }
        }
    };

    (@base $model:ident) => {
        impl peft_core::Adaptable for $model {
            fn spec(&self) -> peft_core::ModelSpec {
                $crate::common::decoder::Decoder::spec_within(self, peft_core::ModelSpec::of(self), "")
            }

            fn repeat_layers(&mut self, order: &[usize]) -> peft_core::Result<()> {
                $crate::common::decoder::Decoder::repeat_layers(self, order)
            }
        }

        impl $crate::common::task::FeatureExtractor for $model {
            fn last_hidden_state(&self, input: &$crate::common::input::ModelInput) -> burn::tensor::Tensor<3> {
                $crate::common::decoder::Decoder::forward(self, input, None)
            }
        }
    };
}

pub(crate) use decoder_heads;
