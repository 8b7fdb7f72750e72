//! Models that write text about pictures: a part that looks, and a language model.
//!
//! The trait is here and not with those of other tasks, since the language model of one is a model of any architecture.

use std::path::Path;

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Int, Tensor};
use peft_core::erased::AnyModule;
use peft_core::{Adaptable, ModelSpec, PeftError, Result};

use super::models::{AutoCausalLm, AutoSeq2SeqLm, auto_model};
use super::origin::Origin;
use crate::common::input::ModelInput;
use crate::common::pretrained::Pretrained;

/// A model that writes text about a picture.
///
/// The text that it reads has a place for every vector of the picture: [`image_tokens`](Self::image_tokens) times the token
/// [`image_token`](Self::image_token).
pub trait ImageToText: Module {
    /// What a language model reads of pictures.
    ///
    /// - pixel_values: `[batch, channels, height, width]`, normalised as the checkpoint wants them
    /// - output: `[batch, image_tokens, d_model]`
    fn image_features(&self, pixel_values: Tensor<4>) -> Tensor<3>;

    /// The text with the picture in its places: vectors, which a language model reads. The `n`-th image token of a row becomes
    /// the `n`-th vector of its picture.
    ///
    /// - features: `[batch, image_tokens, d_model]`
    /// - text: ids, `[batch, seq]`, and what goes with them
    fn place(&self, features: Tensor<3>, text: &ModelInput) -> ModelInput;

    /// The text with the picture in its places: [`image_features`](Self::image_features), [placed](Self::place).
    ///
    /// - pixel_values: `[batch, channels, height, width]`
    /// - text: ids, `[batch, seq]`, and what goes with them
    fn read(&self, pixel_values: Tensor<4>, text: &ModelInput) -> ModelInput {
        self.place(self.image_features(pixel_values), text)
    }

    /// The language model by itself, adapters included: what writes after what was [read](Self::read). It shares its
    /// parameters with this model.
    fn language_model(&self) -> LanguageModel;

    /// Logits over the vocabulary: of every position of what was [read](Self::read), `[batch, seq, vocab]`, by a decoder; of every
    /// position of `target`, `[batch, target, vocab]`, by an encoder and a decoder, which start without one.
    fn logits(&self, read: &ModelInput, target: Option<&ModelInput>) -> Tensor<3>;

    /// Whether an encoder reads and a decoder writes. A decoder alone goes on writing what it reads.
    fn has_encoder(&self) -> bool;

    /// What a decoder behind an encoder reads while it learns to write `labels`: see [`Seq2SeqLm::shift_right`](crate::Seq2SeqLm::shift_right).
    ///
    /// # Errors
    /// If there is no encoder, or `config.json` does not say which tokens start and fill up a text.
    fn shift_right(&self, labels: Tensor<2, Int>) -> Result<Tensor<2, Int>>;

    /// The token in whose places the picture stands.
    fn image_token(&self) -> Option<i64>;

    /// The token that a text begins with that has nothing but a picture: `bos_token_id` of `text_config`.
    fn first_token(&self) -> Option<u32>;

    /// How many places a picture takes.
    fn image_tokens(&self) -> usize;

    /// Channels of a picture.
    fn num_channels(&self) -> usize {
        3
    }

    /// The least height and width of a picture that leaves something to compute with.
    fn smallest_picture(&self) -> [usize; 2] {
        [1, 1]
    }
}

/// The model that writes the text of an [`ImageToText`].
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)]
pub enum LanguageModel {
    /// It goes on writing what it reads.
    Decoder(AutoCausalLm),
    /// An encoder reads, a decoder writes.
    EncoderDecoder(AutoSeq2SeqLm),
}

auto_model! {
    /// A model of any architecture that writes text about a picture.
    AutoImageToText: ImageToText as ImageToTextObject, task_type: None;
    fn image_features(pixel_values: Tensor<4>) -> Tensor<3>;
    fn place(features: Tensor<3>, text: &ModelInput) -> ModelInput;
    fn language_model() -> LanguageModel;
    fn logits(read: &ModelInput, target: Option<&ModelInput>) -> Tensor<3>;
    fn has_encoder() -> bool;
    fn shift_right(labels: Tensor<2, Int>) -> Result<Tensor<2, Int>>;
    fn image_token() -> Option<i64>;
    fn first_token() -> Option<u32>;
    fn image_tokens() -> usize;
    fn num_channels() -> usize;
    fn smallest_picture() -> [usize; 2];
}
