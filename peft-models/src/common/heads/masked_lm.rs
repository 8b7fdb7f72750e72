//! Heads of masked language models.

// Fields are named after checkpoint keys, and those say `LayerNorm`.
#![allow(non_snake_case)]

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor};
use peft_core::forward;
use peft_core::nn::{Embedding, LayerNorm, Projection, lazy};

use crate::common::config::Activation;

/// What turns hidden states into logits over the vocabulary.
pub(crate) trait MaskedLmHead {
    /// # Shapes
    /// - hidden: `[batch, seq, d_model]`
    /// - output: `[batch, seq, vocab]`
    fn scores(&self, hidden: Tensor<3>, table: &Embedding) -> Tensor<3>;

    /// Whether the scores come from the embedding matrix.
    fn is_tied(&self) -> bool;

    /// Gives the head a matrix and a bias of its own, which start as the table and the bias beside.
    fn untie(&mut self, table: &Embedding);
}

/// How wide the parts of a head are.
pub(crate) struct HeadShape {
    pub(crate) d_model: usize,
    /// Width of the embedding matrix.
    pub(crate) d_table: usize,
    pub(crate) vocab: usize,
    pub(crate) epsilon: f64,
    pub(crate) act: Activation,
    /// Whether the logits come from the embedding matrix, read the other way.
    pub(crate) is_tied: bool,
}

impl HeadShape {
    fn bias(&self, device: &Device) -> Param<Tensor<1>> {
        let vocab = self.vocab;
        lazy([vocab], device, move |device| Tensor::zeros([vocab], device))
    }

    fn decoder(&self, device: &Device) -> Option<Projection> {
        (!self.is_tied).then(|| Projection::new(self.d_table, self.vocab, true, device))
    }
}

/// The logits of a head: from its own layer, or from the embedding matrix and a bias.
fn decode(hidden: Tensor<3>, decoder: Option<&Projection>, table: &Embedding, bias: &Param<Tensor<1>>) -> Tensor<3> {
    match decoder {
        Some(decoder) => decoder.forward(hidden),
        None => biased(table.attend(hidden), bias),
    }
}

/// A layer that computes what the embedding matrix and a bias do.
fn own_decoder(table: &Embedding, bias: &Param<Tensor<1>>) -> Projection {
    let own = match bias.is_initialized() {
        true => Param::initialized(ParamId::new(), bias.base()),
        false => {
            let bias = bias.clone();
            lazy(bias.lazy_shape().dims::<1>(), &bias.lazy_device(), move |device| bias.base().to_device(device))
        }
    };
    Projection { bias: Some(own), ..table.as_head() }
}

fn biased(scores: Tensor<3>, bias: &Param<Tensor<1>>) -> Tensor<3> {
    forward::by_rows(bias, scores, |bias, it| it + bias.val().unsqueeze())
}

/// A level of names that checkpoints of BERT have.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct MaskedHead {
    pub predictions: Predictions,
}

/// The head of BERT.
#[derive(Module, Debug)]
pub struct Predictions {
    /// What comes before the scores.
    pub transform: PredictionTransform,
    /// `[vocab]`
    pub bias: Param<Tensor<1>>,
    /// `[vocab, d_table]`, unless it is the embedding matrix read the other way.
    pub decoder: Option<Projection>,
}

/// A layer, an activation and a norm.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct PredictionTransform {
    pub dense: Projection,
    pub LayerNorm: LayerNorm,
    #[module(skip)]
    act: Activation,
}

impl MaskedHead {
    pub(crate) fn new(shape: &HeadShape, device: &Device) -> Self {
        let transform = PredictionTransform {
            dense: Projection::new(shape.d_model, shape.d_table, true, device),
            LayerNorm: LayerNorm::new(shape.d_table, shape.epsilon, device),
            act: shape.act,
        };
        Self { predictions: Predictions { transform, bias: shape.bias(device), decoder: shape.decoder(device) } }
    }
}

impl MaskedLmHead for MaskedHead {
    fn scores(&self, hidden: Tensor<3>, table: &Embedding) -> Tensor<3> {
        let Predictions { transform: it, bias, decoder } = &self.predictions;
        let hidden = it.LayerNorm.forward(it.act.apply(it.dense.forward(hidden)));
        decode(hidden, decoder.as_ref(), table, bias)
    }

    fn is_tied(&self) -> bool {
        self.predictions.decoder.is_none()
    }

    fn untie(&mut self, table: &Embedding) {
        let Predictions { bias, decoder, .. } = &mut self.predictions;
        decoder.get_or_insert_with(|| own_decoder(table, bias));
    }
}

/// The head of RoBERTa.
#[derive(Module, Debug)]
pub struct RobertaHead {
    /// `[d_model, d_model]`
    pub dense: Projection,
    /// Over `d_model`.
    pub layer_norm: LayerNorm,
    /// `[vocab]`
    pub bias: Param<Tensor<1>>,
    /// `[vocab, d_model]`, unless it is the embedding matrix read the other way.
    pub decoder: Option<Projection>,
}

impl RobertaHead {
    pub(crate) fn new(shape: &HeadShape, device: &Device) -> Self {
        Self {
            dense: Projection::new(shape.d_model, shape.d_model, true, device),
            layer_norm: LayerNorm::new(shape.d_model, shape.epsilon, device),
            bias: shape.bias(device),
            decoder: shape.decoder(device),
        }
    }
}

impl MaskedLmHead for RobertaHead {
    fn scores(&self, hidden: Tensor<3>, table: &Embedding) -> Tensor<3> {
        // A GELU whatever the layers have.
        let hidden = self.layer_norm.forward(Activation::Gelu.apply(self.dense.forward(hidden)));
        decode(hidden, self.decoder.as_ref(), table, &self.bias)
    }

    fn is_tied(&self) -> bool {
        self.decoder.is_none()
    }

    fn untie(&mut self, table: &Embedding) {
        let bias = &self.bias;
        self.decoder.get_or_insert_with(|| own_decoder(table, bias));
    }
}

/// A level of names that checkpoints of DeBERTa have.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct LmPredictions {
    pub lm_head: LmPredictionHead,
}

/// The head of DeBERTa as its authors have it; the logits always come from the embedding matrix.
#[derive(Module, Debug)]
pub struct LmPredictionHead {
    /// `[d_model, d_model]`
    pub dense: Projection,
    /// Over `d_model`.
    pub LayerNorm: LayerNorm,
    /// `[vocab]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    act: Activation,
}

impl LmPredictions {
    pub(crate) fn new(shape: &HeadShape, device: &Device) -> Self {
        let lm_head = LmPredictionHead {
            dense: Projection::new(shape.d_model, shape.d_model, true, device),
            LayerNorm: LayerNorm::new(shape.d_model, shape.epsilon, device),
            bias: shape.bias(device),
            act: shape.act,
        };
        Self { lm_head }
    }
}

impl MaskedLmHead for LmPredictions {
    fn scores(&self, hidden: Tensor<3>, table: &Embedding) -> Tensor<3> {
        let it = &self.lm_head;
        let hidden = it.LayerNorm.forward(it.act.apply(it.dense.forward(hidden)));
        // `DebertaLMPredictionHead` is handed the module that looks tokens up, and reads its weight.
        biased(table.attend_in_place(hidden), &it.bias)
    }

    fn is_tied(&self) -> bool {
        true
    }

    /// Its files have no place for such a matrix.
    fn untie(&mut self, _table: &Embedding) {}
}

/// `masked_lm! { Name: Model = new, Config, field; head: Head = …; left_out: […] }` makes an encoder with one of its
/// possible heads: of `head: Head = function of the configuration and the device`, one gives something. `left_out` are
/// layers that `all-linear` leaves out.
macro_rules! masked_lm {
    (
        $name:ident: $model:ident = $new:expr, $config:ident, $field:ident;
        $($head:ident: $kind:ty = $build:expr),+;
        left_out: $left_out:expr
    ) => {
        /// The encoder with a masked-LM head.
        #[derive(burn::module::Module, Debug)]
        #[allow(missing_docs)]
        pub struct $name {
            pub $field: $model,
            $(pub $head: Option<$kind>,)+
        }

        impl $name {
            /// A model whose parameters are not allocated yet.
            pub fn new(config: &$config, device: &burn::tensor::Device) -> Self {
                $(let $head: fn(&$config, &burn::tensor::Device) -> Option<$kind> = $build;)+
                Self { $field: $new(config, device), $($head: $head(config, device),)+ }
            }
        }

        impl peft_core::Adaptable for $name {
            fn spec(&self) -> peft_core::ModelSpec {
                self.$field.spec_with_head(peft_core::ModelSpec::of(self)).with_heads($left_out)
            }

            fn is_tied(&self) -> bool {
                use $crate::common::heads::masked_lm::MaskedLmHead;
                true $(&& self.$head.as_ref().is_none_or(MaskedLmHead::is_tied))+
            }

            fn untie_head(&mut self) {
                use $crate::common::heads::masked_lm::MaskedLmHead;
                let table = &self.$field.embeddings.word_embeddings;
                $(if let Some(head) = &mut self.$head {
                    head.untie(table);
                })+
            }

            fn repeat_layers(&mut self, order: &[usize]) -> peft_core::Result<()> {
                peft_core::Adaptable::repeat_layers(&mut self.$field, order)
            }
        }

        impl $crate::common::task::MaskedLm for $name {
            fn logits(&self, input: &$crate::common::input::ModelInput) -> burn::tensor::Tensor<3> {
                let table = &self.$field.embeddings.word_embeddings;
                let hidden = self.$field.forward(input);
                let heads: Vec<&dyn $crate::common::heads::masked_lm::MaskedLmHead> =
                    [$(self.$head.as_ref().map(|it| it as &dyn $crate::common::heads::masked_lm::MaskedLmHead)),+]
                        .into_iter()
                        .flatten()
                        .collect();
                heads[0].scores(hidden, table)
            }
        }
    };
}

pub(crate) use masked_lm;
