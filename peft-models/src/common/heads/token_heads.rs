//! Heads that score every token, which differ between architectures in names only.

/// `token_heads! { Model, Config, field: new, width: …, labels: …, dropout: …, tokens: A(head), spans: B }` makes `A`,
/// which classifies tokens with a layer called `head`, and `B`, which does extractive question answering. Both hold the
/// model in `field`, as their checkpoints name it, and build it with `new`. `width`, `labels` and `dropout` are functions
/// of the configuration: how wide the hidden state is, what the labels are, and what drops elements before tokens are
/// scored. `spans` may be left out.
///
/// The model is a [`FeatureExtractor`](crate::common::task::FeatureExtractor) with a method `spec_with_head`.
macro_rules! token_heads {
    (
        $model:ident, $config:ident, $field:ident: $new:expr,
        width: $width:expr,
        labels: $labels:expr,
        dropout: $dropout:expr,
        tokens: $tokens:ident($head:ident)
        $(, spans: $spans:ident)? $(,)?
    ) => {
        $crate::common::heads::token_classifier::token_classifier! {
            $model, $config, $field: $new, width: $width, labels: $labels, dropout: $dropout, $tokens($head)
        }
        $($crate::common::heads::question_answerer::question_answerer! { $model, $config, $field: $new, width: $width, $spans })?
    };
}

pub(crate) use token_heads;
