//! What a task needs of a model. Models with a head implement these traits, and tasks use nothing else.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use peft_core::ops::IGNORE_INDEX;
use peft_core::{PeftError, Result};

use crate::common::cache::{KvCache, Seq2SeqCache};
use crate::common::config::LabelConfig;
use crate::common::input::{EncoderInput, ModelInput, Tokens};

/// A causal language model.
///
/// # Implementing it
/// [`CausalLm::hidden`] is where everything happens. It passes its input through
/// [`prompt::around`](crate::common::prompt::around), so that prompt methods work; it counts positions from the length of
/// the cache, and its mask covers what the cache holds ([`mask::causal`](crate::common::mask::causal)); every attention
/// layer extends the cache ([`extend_cache`](crate::common::cache::extend_cache)). The loop over layers calls
/// [`layers::run`](crate::common::layers::run), without which gradient checkpointing is refused.
///
/// Most methods with a default are promises and shortcuts: a model that leaves them out is correct, but slower. The exception
/// is [`CausalLm::cache_limit`], which a model with longrope must have to be right.
///
/// A model that implements [`Decoder`](crate::common::decoder::Decoder) gets prompts and the description of its parameters
/// from there. `examples/custom_model.rs` is a whole model without it.
pub trait CausalLm: Module {
    /// The last hidden state, `[batch, seq, d_model]`; virtual tokens of an active prompt are part of `seq`, in front.
    fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3>;

    /// Logits over the vocabulary, `[rows, d_model]` to `[rows, vocab]`.
    ///
    /// Apart from [`CausalLm::hidden`], so that a loss computes only the rows that it needs.
    fn head(&self, hidden: Tensor<2>) -> Tensor<2>;

    /// The weight of the head, `[vocab, d_model]`, if [`CausalLm::head`] is a product with it and nothing more.
    ///
    /// A loss then needs no logits as a whole: see [`peft_core::ops::linear_cross_entropy`].
    fn head_weight(&self) -> Option<Tensor<2>> {
        None
    }

    /// The length at which a cache becomes useless, if there is one.
    ///
    /// Some rotary embeddings (longrope) change their frequencies beyond a length, so that keys in the cache no longer fit.
    /// Generation then reads the whole text again. A model with such embeddings that leaves this out generates something
    /// else beyond the length.
    fn cache_limit(&self) -> Option<usize> {
        None
    }

    /// Whether several texts may share a row, so that training does without padding.
    ///
    /// A model that says so gives each of them, told apart by [`ModelInput::segment_ids`] and with positions of its own,
    /// the hidden states that it gets in a row of its own. Masks of [`mask`](crate::common::mask) see to that.
    fn supports_packing(&self) -> bool {
        false
    }

    /// Whether the head is the embedding matrix read the other way.
    ///
    /// Loading asks this: it looks for a head in the checkpoint that differs from the matrix, and for a matrix that is stored
    /// under the name of the head. [`Adaptable::is_tied`](peft_core::Adaptable::is_tied) says the same to plans. The two must
    /// agree: let one call the other. Where `Adaptable` leaves it out, an adapter that names the head is refused.
    fn is_tied(&self) -> bool;

    /// Gives a tied model a head of its own, a copy of the embedding matrix that shares its memory.
    ///
    /// Adapters that name the head need this: a tied head has no parameter that they could be attached to.
    /// [`Adaptable::untie_head`](peft_core::Adaptable::untie_head) must do the same.
    fn untie(&mut self);

    /// The model, [untied](CausalLm::untie).
    fn untied(mut self) -> Self {
        self.untie();
        self
    }

    /// Logits of every position, `[batch, seq, vocab]`.
    fn logits(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        let hidden = self.hidden(input, cache);
        let [batch, seq, d_model] = hidden.dims();
        let logits = self.head(hidden.reshape([batch * seq, d_model]));
        let vocab = logits.dims()[1];
        logits.reshape([batch, seq, vocab])
    }
}

/// A sequence-to-sequence model: an encoder reads the source, a decoder writes the target.
///
/// The source is a text, or what else `S` is: [`AudioInput`](crate::common::input::AudioInput) for speech recognition. All
/// that losses and generation ask of a model beyond that is the decoder's, and the same for every source.
pub trait Seq2SeqLm<S: EncoderInput = ModelInput>: Module {
    /// What the encoder makes of the source, `[batch, source, d_model]`, with the mask that goes with it.
    ///
    /// The source must have passed [`check_source`](Seq2SeqLm::check_source).
    fn encode(&self, source: &S) -> Encoded;

    /// The last hidden state of the decoder, `[batch, target, d_model]`, scaled as the head wants it.
    fn decode(&self, target: &ModelInput, source: &Encoded, cache: Option<&mut Seq2SeqCache>) -> Tensor<3>;

    /// Logits over the vocabulary, `[rows, d_model]` to `[rows, vocab]`.
    fn head(&self, hidden: Tensor<2>) -> Tensor<2>;

    /// What the decoder reads while it learns to write `labels`: the same, one token later, behind the start token.
    ///
    /// # Shapes
    /// - labels: `[batch, target]`, −100 where nothing is to be learned
    /// - output: `[batch, target]`
    ///
    /// # Errors
    /// If `config.json` does not say which tokens start and fill up a target.
    fn shift_right(&self, labels: Tensor<2, Int>) -> Result<Tensor<2, Int>>;

    /// The token that a target starts with, where `config.json` names it.
    fn decoder_start(&self) -> Option<u32>;

    /// Refuses a source of another shape than the encoder reads.
    ///
    /// # Errors
    /// Says both shapes. By default the encoder reads any.
    fn check_source(&self, source: &S) -> Result<()> {
        let _ = source;
        Ok(())
    }

    /// Whether the head is the embedding matrix read the other way.
    fn is_tied(&self) -> bool;

    /// Gives a tied model a head of its own, as [`CausalLm::untie`] does.
    fn untie(&mut self);

    /// The model, [untied](Seq2SeqLm::untie).
    fn untied(mut self) -> Self {
        self.untie();
        self
    }

    /// Logits of every target position, `[batch, target, vocab]`.
    fn logits(&self, source: &S, target: &ModelInput) -> Tensor<3> {
        let hidden = self.decode(target, &self.encode(source), None);
        let [batch, seq, d_model] = hidden.dims();
        let logits = self.head(hidden.reshape([batch * seq, d_model]));
        let vocab = logits.dims()[1];
        logits.reshape([batch, seq, vocab])
    }
}

/// A source after the encoder.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// `[batch, source, d_model]`
    pub hidden: Tensor<3>,
    /// 1 = keep, 0 = padding; `[batch, source]`.
    pub attention_mask: Option<Tensor<2, Int>>,
}

impl Encoded {
    /// Keeps the rows at these indices, in this order.
    pub fn select(&self, rows: Tensor<1, Int>) -> Self {
        Self {
            hidden: self.hidden.clone().select(0, rows.clone()),
            attention_mask: self.attention_mask.clone().map(|it| it.select(0, rows)),
        }
    }
}

/// A sequence classifier.
pub trait SequenceClassifier: Module {
    /// `[batch, num_labels]`
    fn logits(&self, input: &ModelInput) -> Tensor<2>;

    /// What the outputs mean.
    fn labels(&self) -> &LabelConfig;

    /// Number of outputs.
    fn num_labels(&self) -> usize {
        self.labels().num_labels()
    }

    /// `problem_type` of `config.json`.
    fn problem_type(&self) -> Option<&str> {
        self.labels().problem_type.as_deref()
    }

    /// Whether the last token of a row is what is classified, as decoders do: a batch then needs to know which tokens are
    /// padding.
    fn pools_last_token(&self) -> bool {
        false
    }
}

/// A token classifier.
pub trait TokenClassifier: Module {
    /// `[batch, seq, num_labels]`
    fn logits(&self, input: &ModelInput) -> Tensor<3>;

    /// What the outputs mean.
    fn labels(&self) -> &LabelConfig;

    /// Number of outputs for each token.
    fn num_labels(&self) -> usize {
        self.labels().num_labels()
    }
}

/// A masked language model.
pub trait MaskedLm: Module {
    /// Logits of every position, `[batch, seq, vocab]`.
    fn logits(&self, input: &ModelInput) -> Tensor<3>;
}

/// An extractive question-answering model.
pub trait QuestionAnswerer: Module {
    /// Logits of the start and of the end of the answer span, `[batch, seq, 2]`.
    fn logits(&self, input: &ModelInput) -> Tensor<3>;
}

/// An image classifier.
pub trait ImageClassifier: Module {
    /// Pictures `[batch, channels, height, width]`, normalised as the checkpoint wants them, to `[batch, num_labels]`.
    fn logits(&self, pixel_values: Tensor<4>) -> Tensor<2>;

    /// What the outputs mean.
    fn labels(&self) -> &LabelConfig;

    /// Number of outputs.
    fn num_labels(&self) -> usize {
        self.labels().num_labels()
    }

    /// Channels of a picture.
    fn num_channels(&self) -> usize {
        3
    }

    /// The least height and width of a picture that leaves something to compute with.
    fn smallest_picture(&self) -> [usize; 2] {
        [1, 1]
    }
}

/// A semantic segmentation model: a class for every pixel.
pub trait SemanticSegmenter: Module {
    /// Pictures `[batch, channels, height, width]` to `[batch, num_labels, rows, columns]`. The grid of the output may be
    /// coarser than the picture; a loss enlarges it to the size of the labels.
    fn logits(&self, pixel_values: Tensor<4>) -> Tensor<4>;

    /// What the classes are.
    fn labels(&self) -> &LabelConfig;

    /// Number of classes.
    fn num_labels(&self) -> usize {
        self.labels().num_labels()
    }

    /// Channels of a picture.
    fn num_channels(&self) -> usize {
        3
    }

    /// The least height and width of a picture that leaves something to compute with.
    fn smallest_picture(&self) -> [usize; 2] {
        [1, 1]
    }

    /// The label of pixels that are not learned: `semantic_loss_ignore_index` of `config.json`.
    fn ignored_label(&self) -> i64 {
        255
    }
}

/// A model without a head: tokens in, vectors out.
pub trait FeatureExtractor: Module {
    /// `[batch, seq, d_model]`
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3>;
}

/// The hidden state of the last token of every row that is not padding, `[batch, d_model]`.
///
/// Source: `GenericForSequenceClassification` of transformers: the rightmost token whose id is not `pad`; without a
/// padding token, or without ids, the last position. Behind virtual tokens the reference has no ids any more.
pub fn pool_last_token(hidden: Tensor<3>, input: &ModelInput, pad: Option<i64>) -> Tensor<2> {
    let [batch, seq, d_model] = hidden.dims();
    let last = match (&input.tokens, pad) {
        (Tokens::Ids(ids), Some(pad)) if ids.dims()[1] == seq => {
            let position = Tensor::<1, Int>::arange(0..seq as i64, &input.device()).unsqueeze::<2>();
            let kept = ids.clone().not_equal_elem(pad).int() * position.expand([batch, seq]);
            kept.argmax(1)
        }
        _ => Tensor::<2, Int>::full([batch, 1], seq as i64 - 1, &input.device()),
    };
    let index = last.reshape([batch, 1, 1]).expand([batch, 1, d_model]);
    hidden.gather(1, index).squeeze_dim(1)
}

/// Labels one position later, with `start` in front and `pad` where nothing was to be learned; `[batch, target]`.
///
/// # Errors
/// If one of the two tokens is not known.
pub fn shift_right(labels: Tensor<2, Int>, pad: Option<i64>, start: Option<i64>) -> Result<Tensor<2, Int>> {
    let needed = |field: &str, value: Option<i64>| {
        value.ok_or_else(|| PeftError::config(field, "is not in config.json, and targets need it"))
    };
    let (pad, start) = (needed("pad_token_id", pad)?, needed("decoder_start_token_id", start)?);
    let [batch, seq] = labels.dims();
    let first = Tensor::<2, Int>::full([batch, 1], start, &labels.device());
    let ignored = labels.clone().equal_elem(IGNORE_INDEX);
    let words = labels.mask_fill(ignored, pad);
    Ok(if seq > 1 { Tensor::cat(vec![first, words.narrow(1, 0, seq - 1)], 1) } else { first })
}
