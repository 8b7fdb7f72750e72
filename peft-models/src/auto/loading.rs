//! Reading a folder into a model.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use peft_core::files::checkpoint::{Checkpoint, Placement};
use peft_core::{Adaptable, LoadReport, Result};
use serde_json::{Value, json};

use super::options::ClassifierOptions;
use super::other_names;
use super::registry::{ArchitectureRegistry, Task};
use super::tied::{
    ENDS_OF_TABLES, HEADS, bias_is_also_beside, embedding_is_also_under, has_another_head, table_is_also_under,
};
use super::unused;
use crate::architecture::{
    AutoCausalLm, AutoDenoiser, AutoFeatureExtractor, AutoImageClassifier, AutoImageToText, AutoMaskedLm,
    AutoQuestionAnswerer, AutoSemanticSegmenter, AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq,
    AutoTokenClassifier, Origin,
};
use crate::common::config::{LabelConfig, RawConfig};
use crate::common::heads::missing::draw_missing;
use crate::diffusion::folder::part;

/// Where the folder does not say, weights start with this standard deviation.
const INITIALIZER_RANGE: f64 = 0.02;

/// The name of the folder stands for the model, as long as nobody gives it another.
fn origin(folder: &Path, report: &LoadReport) -> Origin {
    Origin { folder: folder.to_owned(), name: folder.display().to_string(), drawn: report.missing.clone() }
}

/// The weights of a folder, to be kept in these numbers.
fn open(folder: &Path, place: &Placement) -> Result<Checkpoint> {
    let (checkpoint, dtype) = (Checkpoint::open(folder)?, place.dtype);
    if dtype.rounds(checkpoint.float_type()) {
        tracing::warn!(
            "weights are rounded to {dtype}: this is another base than the file's; `auto` keeps its numbers"
        );
    }
    checkpoint
        .with_dtype(dtype)
        .with_shards(place.shards.clone())
        .with_quantization(place.quantize.clone())?
        .with_llm_int8_threshold(place.llm_int8_threshold)
}

/// Fills a model; what it says of itself keeps its heads from being quantised.
fn fill<M: Module + Adaptable>(
    checkpoint: &Checkpoint,
    model: M,
    prefix: &str,
    optional: &[&str],
) -> Result<(M, LoadReport)> {
    let described = model.spec();
    checkpoint.load_described(model, prefix, optional, &described)
}

impl ArchitectureRegistry {
    /// Reads a causal language model. The report names what the folder holds beyond it.
    pub fn load_causal_lm(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoCausalLm, LoadReport)> {
        let (folder, place) = (folder.as_ref(), place.into());
        let device = &place.device;
        let mut raw = RawConfig::read(folder)?;
        let (mut model, prefix) = self.build::<AutoCausalLm>(&raw, device)?;
        let mut checkpoint = open(folder, &place)?;
        if model.is_tied() && has_another_head(&checkpoint, model.spec().prompts.as_ref())? {
            warn_untied();
            raw.json.insert("tie_word_embeddings".to_owned(), json!(false));
            model = self.causal_lm(&raw, device)?;
        }
        if model.is_tied() {
            embedding_is_also_under(&mut checkpoint, &model, &HEADS);
        }
        let (model, report) = fill(&checkpoint, model, prefix, &[])?;
        unused::check(&report, &checkpoint, &model, prefix, &raw)?;
        Ok((model.with_origin(origin(folder, &report)), report))
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
        let (folder, place) = (folder.as_ref(), place.into());
        let device = &place.device;
        let mut raw = RawConfig::read(folder)?;
        let mut checkpoint = open(folder, &place)?;
        let tied = !has_another_head(&checkpoint, None)?;
        // What T5's files say by this field, besides.
        let scaled = raw.json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
        raw.json.entry("scale_decoder_outputs").or_insert(json!(scaled));
        raw.json.insert("tie_word_embeddings".to_owned(), json!(tied));
        let (model, prefix) = self.build::<AutoSeq2SeqLm>(&raw, device)?;
        if tied {
            embedding_is_also_under(&mut checkpoint, &model, &HEADS);
        }
        embedding_is_also_under(&mut checkpoint, &model, &ENDS_OF_TABLES);
        let (model, report) = fill(&checkpoint, model, prefix, &["final_logits_bias"])?;
        unused::check(&report, &checkpoint, &model, prefix, &raw)?;
        Ok((model.with_origin(origin(folder, &report)), report))
    }

    /// Reads a sequence-to-sequence model that reads recordings. The report names what the folder holds beyond it.
    ///
    /// Whether the head is the embedding matrix is seen from the checkpoint.
    pub fn load_speech_seq2seq(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoSpeechSeq2Seq, LoadReport)> {
        let (folder, place) = (folder.as_ref(), place.into());
        let device = &place.device;
        let mut raw = RawConfig::read(folder)?;
        let mut checkpoint = open(folder, &place)?;
        let tied = !has_another_head(&checkpoint, None)?;
        raw.json.insert("tie_word_embeddings".to_owned(), json!(tied));
        let (model, prefix) = self.build::<AutoSpeechSeq2Seq>(&raw, device)?;
        if tied {
            embedding_is_also_under(&mut checkpoint, &model, &HEADS);
        }
        let (model, report) = fill(&checkpoint, model, prefix, &[])?;
        unused::check(&report, &checkpoint, &model, prefix, &raw)?;
        Ok((model.with_origin(origin(folder, &report)), report))
    }

    /// Reads a sequence classifier. A head that the folder lacks starts from N(0, `initializer_range`); the report lists
    /// it as missing.
    pub fn load_sequence_classifier(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
        options: &ClassifierOptions,
    ) -> Result<(AutoSequenceClassifier, LoadReport)> {
        let (folder, place) = (folder.as_ref(), place.into());
        let device = &place.device;
        let mut raw = RawConfig::read(folder)?;
        let outputs = changed_outputs(&raw, options);
        options.write_into(&mut raw);
        let (mut model, prefix) = self.build::<AutoSequenceClassifier>(&raw, device)?;
        // What an encoder's configuration says of padding places its positions; a decoder's head looks past it.
        if let (Some(pad), false) = (options.pad_token_id, model.is_encoder()) {
            raw.json.insert("pad_token_id".to_owned(), json!(pad));
            model = self.sequence_classifier(&raw, device)?;
        }
        let mut checkpoint = open(folder, &place)?;
        replace_head(&mut checkpoint, &model, outputs);
        let (model, report) =
            load_with_new_head(&checkpoint, model, prefix, &raw, &["score", "classifier", "pooler", "head"])?;
        Ok((start(model, &report, &raw, options.seed, device).with_origin(origin(folder, &report)), report))
    }

    /// Reads a token classifier. A head that the folder lacks starts as
    /// [`load_sequence_classifier`](Self::load_sequence_classifier) says.
    pub fn load_token_classifier(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
        options: &ClassifierOptions,
    ) -> Result<(AutoTokenClassifier, LoadReport)> {
        let usual = ["classifier", "score", "head"];
        let (model, report) = self.load_with_labels(folder.as_ref(), &place.into(), options, &usual)?;
        Ok((AutoTokenClassifier::with_origin(model, origin(folder.as_ref(), &report)), report))
    }

    /// Reads an image classifier. A head that the folder lacks starts as
    /// [`load_sequence_classifier`](Self::load_sequence_classifier) says.
    pub fn load_image_classifier(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
        options: &ClassifierOptions,
    ) -> Result<(AutoImageClassifier, LoadReport)> {
        let (model, report) = self.load_with_labels(folder.as_ref(), &place.into(), options, &["classifier"])?;
        Ok((AutoImageClassifier::with_origin(model, origin(folder.as_ref(), &report)), report))
    }

    /// Reads a semantic segmentation model. A head that the folder lacks starts as
    /// [`load_sequence_classifier`](Self::load_sequence_classifier) says.
    pub fn load_semantic_segmenter(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
        options: &ClassifierOptions,
    ) -> Result<(AutoSemanticSegmenter, LoadReport)> {
        let (model, report) = self.load_with_labels(folder.as_ref(), &place.into(), options, &["decode_head"])?;
        Ok((AutoSemanticSegmenter::with_origin(model, origin(folder.as_ref(), &report)), report))
    }

    /// Reads a model whose head has an output for each label: that of the folder if it has as many, else a new one.
    fn load_with_labels<T: Task + Module + Adaptable>(
        &self,
        folder: &Path,
        place: &Placement,
        options: &ClassifierOptions,
        usual: &[&str],
    ) -> Result<(T, LoadReport)> {
        let device = &place.device;
        let mut raw = RawConfig::read(folder)?;
        let outputs = changed_outputs(&raw, options);
        options.write_into(&mut raw);
        let (model, prefix) = self.build::<T>(&raw, device)?;
        let mut checkpoint = open(folder, place)?;
        other_names::are_also_known(&mut checkpoint, &model, prefix);
        replace_head(&mut checkpoint, &model, outputs);
        let (model, report) = load_with_new_head(&checkpoint, model, prefix, &raw, usual)?;
        Ok((start(model, &report, &raw, options.seed, device), report))
    }

    /// Reads a model that writes text about a picture.
    ///
    /// Whether the head of its language model is the embedding matrix is seen from the checkpoint.
    pub fn load_image_to_text(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoImageToText, LoadReport)> {
        let (folder, place) = (folder.as_ref(), place.into());
        let device = &place.device;
        let mut raw = RawConfig::read(folder)?;
        let mut checkpoint = open(folder, &place)?;
        let tied = !has_another_head(&checkpoint, None)?;
        if let Some(Value::Object(text)) = raw.json.get_mut("text_config") {
            // What T5's files say by this field, besides.
            let scaled = text.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
            text.entry("scale_decoder_outputs").or_insert(json!(scaled));
            text.insert("tie_word_embeddings".to_owned(), json!(tied));
        }
        let (model, prefix) = self.build::<AutoImageToText>(&raw, device)?;
        table_is_also_under(&mut checkpoint, &model, &ENDS_OF_TABLES);
        if tied {
            table_is_also_under(&mut checkpoint, &model, &HEADS);
        }
        let (model, report) = fill(&checkpoint, model, prefix, &[])?;
        unused::check(&report, &checkpoint, &model, prefix, &raw)?;
        Ok((model.with_origin(origin(folder, &report)), report))
    }

    /// Reads an extractive question-answering model. A head that the folder lacks starts from N(0, `initializer_range`),
    /// drawn by `seed`.
    pub fn load_question_answerer(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
        seed: u64,
    ) -> Result<(AutoQuestionAnswerer, LoadReport)> {
        let (folder, place) = (folder.as_ref(), place.into());
        let device = &place.device;
        let raw = RawConfig::read(folder)?;
        let (model, prefix) = self.build::<AutoQuestionAnswerer>(&raw, device)?;
        let (model, report) =
            load_with_new_head(&open(folder, &place)?, model, prefix, &raw, &["qa_outputs", "classifier", "head"])?;
        Ok((start(model, &report, &raw, seed, device).with_origin(origin(folder, &report)), report))
    }

    /// Reads a masked language model. Unlike a classifier's, its head is part of the folder.
    pub fn load_masked_lm(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoMaskedLm, LoadReport)> {
        let (folder, place) = (folder.as_ref(), place.into());
        let device = &place.device;
        let mut raw = RawConfig::read(folder)?;
        let mut checkpoint = open(folder, &place)?;
        if has_another_head(&checkpoint, None)? {
            warn_untied();
            raw.json.insert("tie_word_embeddings".to_owned(), json!(false));
        }
        let (model, prefix) = self.build::<AutoMaskedLm>(&raw, device)?;
        bias_is_also_beside(&mut checkpoint, &model);
        let (model, report) = fill(&checkpoint, model, prefix, &[])?;
        unused::check(&report, &checkpoint, &model, prefix, &raw)?;
        Ok((model.with_origin(origin(folder, &report)), report))
    }

    /// Reads a model without a head.
    ///
    /// A pooler takes no part in the last hidden state: where the folder lacks it, it starts at random.
    pub fn load_feature_extractor(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoFeatureExtractor, LoadReport)> {
        let (folder, place) = (folder.as_ref(), place.into());
        let device = &place.device;
        let raw = RawConfig::read(folder)?;
        let (model, prefix) = self.build::<AutoFeatureExtractor>(&raw, device)?;
        let (model, report) = load_with_new_head(&open(folder, &place)?, model, prefix, &raw, &["pooler"])?;
        Ok((start(model, &report, &raw, 0, device).with_origin(origin(folder, &report)), report))
    }

    /// Reads a noise predictor: its own folder, or that of a pipeline, which has it in `unet/`.
    pub fn load_denoiser(
        &self,
        folder: impl AsRef<Path>,
        place: impl Into<Placement>,
    ) -> Result<(AutoDenoiser, LoadReport)> {
        let (folder, place) = (part(folder.as_ref(), "unet"), place.into());
        let device = &place.device;
        let raw = RawConfig::read(&folder)?;
        let (model, prefix) = self.build::<AutoDenoiser>(&raw, device)?;
        let checkpoint = open(&folder, &place)?;
        let (model, report) = fill(&checkpoint, model, prefix, &[])?;
        unused::check(&report, &checkpoint, &model, prefix, &raw)?;
        Ok((model.with_origin(origin(&folder, &report)), report))
    }
}

/// Fills a model whose head the checkpoint may lack: modules with one of the `usual` names, and those that the model says
/// are its heads.
fn load_with_new_head<M: Module + Adaptable>(
    checkpoint: &Checkpoint,
    model: M,
    prefix: &str,
    raw: &RawConfig,
    usual: &[&str],
) -> Result<(M, LoadReport)> {
    let heads = model.spec().heads;
    let optional: Vec<&str> = usual.iter().copied().chain(heads.iter().map(String::as_str)).collect();
    let (model, report) = fill(checkpoint, model, prefix, &optional)?;
    unused::check(&report, checkpoint, &model, prefix, raw)?;
    Ok((model, report))
}

/// How many outputs the head of the base has and how many are asked for, if these are others.
fn changed_outputs(raw: &RawConfig, options: &ClassifierOptions) -> Option<(usize, usize)> {
    let config: LabelConfig = serde_json::from_value(Value::Object(raw.json.clone())).ok()?;
    options.num_labels.filter(|it| *it != config.num_labels()).map(|it| (config.num_labels(), it))
}

/// Leaves out the weights of a head that has other outputs than are asked for: it starts anew, or an adapter brings it.
fn replace_head(checkpoint: &mut Checkpoint, model: &impl Adaptable, outputs: Option<(usize, usize)>) {
    let Some((old, new)) = outputs else { return };
    let spec = model.spec();
    let mut replaced = false;
    for param in spec.iter().filter(|it| spec.is_head(&it.module)) {
        let (path, shape) = (param.path(), param.shape_on_disk());
        let stored = checkpoint.file(&path).and_then(|it| it.shape(&path)).unwrap_or_default();
        if shape.first() == Some(&new) && stored.first() == Some(&old) && stored[1..] == shape[1..] {
            checkpoint.leave_out(&path);
            replaced = true;
        }
    }
    if replaced {
        tracing::warn!("the head of the base has {old} outputs, and {new} are asked for: its weights are not used");
    }
}

fn warn_untied() {
    tracing::warn!("`tie_word_embeddings` does not hold: the head differs from the embedding matrix and is used");
}

/// The model with values for what its checkpoint lacks.
fn start<M: Module>(model: M, report: &LoadReport, raw: &RawConfig, seed: u64, device: &Device) -> M {
    let std = raw.json.get("initializer_range").and_then(Value::as_f64).unwrap_or(INITIALIZER_RANGE);
    draw_missing(model, &report.missing, std, seed, device)
}
