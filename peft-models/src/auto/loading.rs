//! Reading a folder into a model.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use peft_core::files::checkpoint::{BaseDtype, Checkpoint, Placement};
use peft_core::{Adaptable, LoadReport, Result};
use serde_json::{Value, json};

use super::options::ClassifierOptions;
use super::registry::ArchitectureRegistry;
use super::tied::{HEADS, embedding_is_also_under, has_another_head};
use crate::architecture::{
    AutoCausalLm, AutoFeatureExtractor, AutoMaskedLm, AutoQuestionAnswerer, AutoSeq2SeqLm, AutoSequenceClassifier,
    AutoTokenClassifier, Origin,
};
use crate::common::config::RawConfig;
use crate::common::heads::missing::draw_missing;

/// Where the folder does not say, weights start with this standard deviation.
const INITIALIZER_RANGE: f64 = 0.02;

/// The name of the folder stands for the model, as long as nobody gives it another.
fn origin(folder: &Path) -> Origin {
    Origin { folder: folder.to_owned(), name: folder.display().to_string() }
}

/// The weights of a folder, to be kept in these numbers.
fn open(folder: &Path, dtype: BaseDtype) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(folder)?;
    if dtype.rounds(checkpoint.float_type()) {
        tracing::warn!(
            "weights are rounded to {dtype}: this is another base than the file's; `auto` keeps its numbers"
        );
    }
    Ok(checkpoint.with_dtype(dtype))
}

impl ArchitectureRegistry {
    /// Reads a causal language model. The report names what the folder holds beyond it.
    pub fn load_causal_lm(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoCausalLm, LoadReport)> {
        let (folder, Placement { device, dtype }) = (folder.as_ref(), &place.into());
        let mut raw = RawConfig::read(folder)?;
        let (mut model, prefix) = self.build::<AutoCausalLm>(&raw, device)?;
        let mut checkpoint = open(folder, *dtype)?;
        if model.is_tied() && has_another_head(&checkpoint, model.spec().prompts.as_ref())? {
            warn_untied();
            raw.json.insert("tie_word_embeddings".to_owned(), json!(false));
            model = self.causal_lm(&raw, device)?;
        }
        if model.is_tied() {
            embedding_is_also_under(&mut checkpoint, &model, &HEADS);
        }
        let (model, report) = checkpoint.load(model, prefix, &[])?;
        Ok((model.with_origin(origin(folder)), report))
    }

    /// Reads a sequence-to-sequence model. The report names what the folder holds beyond it.
    ///
    /// Whether the head is the embedding matrix is seen from the checkpoint, as the reference does: files of T5 say that
    /// it is either way.
    pub fn load_seq2seq_lm(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoSeq2SeqLm, LoadReport)> {
        let (folder, Placement { device, dtype }) = (folder.as_ref(), &place.into());
        let mut raw = RawConfig::read(folder)?;
        let mut checkpoint = open(folder, *dtype)?;
        let tied = !has_another_head(&checkpoint, None)?;
        // What T5's files say by this field, besides.
        let scaled = raw.json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
        raw.json.entry("scale_decoder_outputs").or_insert(json!(scaled));
        raw.json.insert("tie_word_embeddings".to_owned(), json!(tied));
        let (model, prefix) = self.build::<AutoSeq2SeqLm>(&raw, device)?;
        if tied {
            embedding_is_also_under(&mut checkpoint, &model, &HEADS);
        }
        embedding_is_also_under(
            &mut checkpoint,
            &model,
            &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
        );
        let (model, report) = checkpoint.load(model, prefix, &["final_logits_bias"])?;
        Ok((model.with_origin(origin(folder)), report))
    }

    /// Reads a sequence classifier. A head that the folder lacks starts from N(0, `initializer_range`); the report lists
    /// it as missing.
    pub fn load_sequence_classifier(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
        options: &ClassifierOptions,
    ) -> Result<(AutoSequenceClassifier, LoadReport)> {
        let (folder, Placement { device, dtype }) = (folder.as_ref(), &place.into());
        let mut raw = RawConfig::read(folder)?;
        options.write_into(&mut raw);
        let (model, prefix) = self.build::<AutoSequenceClassifier>(&raw, device)?;
        let (model, report) =
            load_with_new_head(&open(folder, *dtype)?, model, prefix, &["score", "classifier", "pooler", "head"])?;
        Ok((start(model, &report, &raw, options.seed, device).with_origin(origin(folder)), report))
    }

    /// Reads a token classifier. A head that the folder lacks starts as
    /// [`load_sequence_classifier`](Self::load_sequence_classifier) says.
    pub fn load_token_classifier(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
        options: &ClassifierOptions,
    ) -> Result<(AutoTokenClassifier, LoadReport)> {
        let (folder, Placement { device, dtype }) = (folder.as_ref(), &place.into());
        let mut raw = RawConfig::read(folder)?;
        options.write_into(&mut raw);
        let (model, prefix) = self.build::<AutoTokenClassifier>(&raw, device)?;
        let (model, report) =
            load_with_new_head(&open(folder, *dtype)?, model, prefix, &["classifier", "score", "head"])?;
        Ok((start(model, &report, &raw, options.seed, device).with_origin(origin(folder)), report))
    }

    /// Reads an extractive question-answering model. A head that the folder lacks starts from N(0, `initializer_range`),
    /// drawn by `seed`.
    pub fn load_question_answerer(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
        seed: u64,
    ) -> Result<(AutoQuestionAnswerer, LoadReport)> {
        let (folder, Placement { device, dtype }) = (folder.as_ref(), &place.into());
        let raw = RawConfig::read(folder)?;
        let (model, prefix) = self.build::<AutoQuestionAnswerer>(&raw, device)?;
        let (model, report) =
            load_with_new_head(&open(folder, *dtype)?, model, prefix, &["qa_outputs", "classifier", "head"])?;
        Ok((start(model, &report, &raw, seed, device).with_origin(origin(folder)), report))
    }

    /// Reads a masked language model. Unlike a classifier's, its head is part of the folder.
    pub fn load_masked_lm(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoMaskedLm, LoadReport)> {
        let (folder, Placement { device, dtype }) = (folder.as_ref(), &place.into());
        let mut raw = RawConfig::read(folder)?;
        let checkpoint = open(folder, *dtype)?;
        if has_another_head(&checkpoint, None)? {
            warn_untied();
            raw.json.insert("tie_word_embeddings".to_owned(), json!(false));
        }
        let (model, prefix) = self.build::<AutoMaskedLm>(&raw, device)?;
        let (model, report) = checkpoint.load(model, prefix, &[])?;
        Ok((model.with_origin(origin(folder)), report))
    }

    /// Reads a model without a head.
    ///
    /// A pooler takes no part in the last hidden state: where the folder lacks it, it starts at random.
    pub fn load_feature_extractor(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoFeatureExtractor, LoadReport)> {
        let (folder, Placement { device, dtype }) = (folder.as_ref(), &place.into());
        let raw = RawConfig::read(folder)?;
        let (model, prefix) = self.build::<AutoFeatureExtractor>(&raw, device)?;
        let (model, report) = open(folder, *dtype)?.load(model, prefix, &["pooler"])?;
        Ok((start(model, &report, &raw, 0, device).with_origin(origin(folder)), report))
    }
}

/// Fills a model whose head the checkpoint may lack: modules with one of the `usual` names, and those that the model says
/// are its heads.
fn load_with_new_head<M: Module + Adaptable>(
    checkpoint: &Checkpoint,
    model: M,
    prefix: &str,
    usual: &[&str],
) -> Result<(M, LoadReport)> {
    let heads = model.spec().heads;
    let optional: Vec<&str> = usual.iter().copied().chain(heads.iter().map(String::as_str)).collect();
    checkpoint.load(model, prefix, &optional)
}

fn warn_untied() {
    tracing::warn!("`tie_word_embeddings` does not hold: the head differs from the embedding matrix and is used");
}

/// The model with values for what its checkpoint lacks.
fn start<M: Module>(model: M, report: &LoadReport, raw: &RawConfig, seed: u64, device: &Device) -> M {
    let std = raw.json.get("initializer_range").and_then(Value::as_f64).unwrap_or(INITIALIZER_RANGE);
    draw_missing(model, &report.missing, std, seed, device)
}
