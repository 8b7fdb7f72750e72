//! The architecture that a folder's `config.json` names, for every task.

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Int, Tensor};
use peft_core::files::checkpoint::{BaseDtype, Checkpoint, Placement};
use peft_core::{Adaptable, Init, LoadReport, ModelSpec, PathStack, PeftError, Result};
use serde_json::{Value, json};

use crate::common::config::{LabelConfig, RawConfig};
use crate::common::input::{KvCache, ModelInput, Seq2SeqCache};
use crate::common::task::{
    CausalLm, Encoded, FeatureExtractor, MaskedLm, QuestionAnswerer, Seq2SeqLm, SequenceClassifier, TokenClassifier,
};
use crate::text::decoder::bloom::{
    self, BloomConfig, BloomForCausalLm, BloomForSequenceClassification, BloomForTokenClassification, BloomModel,
};
use crate::text::decoder::chatglm::{self, ChatGlmConfig, ChatGlmForConditionalGeneration, ChatGlmModel};
use crate::text::decoder::gemma::{
    self, GemmaConfig, GemmaForCausalLm, GemmaForSequenceClassification, GemmaForTokenClassification, GemmaModel,
};
use crate::text::decoder::gpt_neo::{
    self, GptNeoConfig, GptNeoForCausalLm, GptNeoForSequenceClassification, GptNeoForTokenClassification, GptNeoModel,
};
use crate::text::decoder::gpt_neox::{
    self, GptNeoXConfig, GptNeoXForCausalLm, GptNeoXForSequenceClassification, GptNeoXForTokenClassification,
    GptNeoXModel,
};
use crate::text::decoder::gpt2::{
    self, Gpt2Config, Gpt2ForQuestionAnswering, Gpt2ForSequenceClassification, Gpt2ForTokenClassification,
    Gpt2LmHeadModel, Gpt2Model,
};
use crate::text::decoder::gptj::{
    self, GptJConfig, GptJForCausalLm, GptJForSequenceClassification, GptJForTokenClassification, GptJModel,
};
use crate::text::decoder::llama::{
    self, LlamaConfig, LlamaForCausalLm, LlamaForSequenceClassification, LlamaForTokenClassification, LlamaModel,
};
use crate::text::decoder::opt::{
    self, OptConfig, OptForCausalLm, OptForSequenceClassification, OptForTokenClassification, OptModel,
};
use crate::text::decoder::phi3::{
    self, Phi3Config, Phi3ForCausalLm, Phi3ForSequenceClassification, Phi3ForTokenClassification, Phi3Model,
};
use crate::text::encoder::bert::{
    self, BertConfig, BertForMaskedLm, BertForQuestionAnswering, BertForSequenceClassification,
    BertForTokenClassification, BertModel,
};
use crate::text::encoder::deberta::{
    self, DebertaConfig, DebertaForMaskedLm, DebertaForQuestionAnswering, DebertaForSequenceClassification,
    DebertaForTokenClassification, DebertaModel,
};
use crate::text::encoder::deberta_v2::{
    self, DebertaV2Config, DebertaV2ForMaskedLm, DebertaV2ForQuestionAnswering, DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification, DebertaV2Model,
};
use crate::text::encoder::modernbert::{
    self, ModernBertConfig, ModernBertForMaskedLm, ModernBertForQuestionAnswering, ModernBertForSequenceClassification,
    ModernBertForTokenClassification, ModernBertModel,
};
use crate::text::encoder::roberta::{
    self, RobertaConfig, RobertaForMaskedLm, RobertaForQuestionAnswering, RobertaForSequenceClassification,
    RobertaForTokenClassification, RobertaModel,
};
use crate::text::seq2seq::bart::{self, BartConfig, BartForConditionalGeneration};
use crate::text::seq2seq::t5::{self, T5Config, T5ForConditionalGeneration};

/// An enum over architectures: its variants, how `config.json` picks one, and a macro that does the same with each.
///
/// A row is `Variant(Model, Config, prefix of a headless checkpoint) = "model_type" | …`.
macro_rules! architectures {
    ($d:tt $(#[$doc:meta])* $name:ident, $each:ident!, $task:literal:
     $($variant:ident($model:ty, $config:ty, $prefix:expr) = $($model_type:literal)|+),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Module, Debug)]
        #[allow(missing_docs, clippy::large_enum_variant)]
        pub enum $name {
            $($variant($model)),+
        }

        macro_rules! $each {
            ($d model:expr, $d it:ident => $d body:expr) => {
                match $d model { $($name::$variant($d it) => $d body),+ }
            };
        }

        impl $name {
            /// A model whose parameters are not allocated: enough to plan and to count.
            pub fn from_config(raw: &RawConfig, device: &Device) -> Result<Self> {
                Ok(match raw.model_type()? {
                    $($($model_type)|+ => Self::$variant(<$model>::new(&<$config>::from_raw(raw)?, device)),)+
                    other => return Err(unknown(other, $task, &[$($($model_type),+),+])),
                })
            }

            fn base_prefix(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $prefix),+
                }
            }
        }

        impl Adaptable for $name {
            fn spec(&self) -> ModelSpec {
                $each!(self, it => it.spec())
            }

            fn is_tied(&self) -> bool {
                $each!(self, it => Adaptable::is_tied(it))
            }

            fn untie_head(&mut self) {
                $each!(self, it => it.untie_head())
            }
        }
    };
}

architectures! { $
    /// A model that predicts the next token, of any known architecture.
    AutoCausalLm, causal_lm!, "causal language models":
    Gpt2(Gpt2LmHeadModel, Gpt2Config, gpt2::BASE_PREFIX) = "gpt2",
    Llama(LlamaForCausalLm, LlamaConfig, llama::BASE_PREFIX) = "llama" | "mistral" | "qwen2" | "qwen3",
    Gemma(GemmaForCausalLm, GemmaConfig, gemma::BASE_PREFIX) = "gemma2" | "gemma3_text",
    Phi3(Phi3ForCausalLm, Phi3Config, phi3::BASE_PREFIX) = "phi3",
    Bloom(BloomForCausalLm, BloomConfig, bloom::BASE_PREFIX) = "bloom",
    Opt(OptForCausalLm, OptConfig, opt::BASE_PREFIX) = "opt",
    GptNeo(GptNeoForCausalLm, GptNeoConfig, gpt_neo::BASE_PREFIX) = "gpt_neo",
    GptJ(GptJForCausalLm, GptJConfig, gptj::BASE_PREFIX) = "gptj",
    GptNeoX(GptNeoXForCausalLm, GptNeoXConfig, gpt_neox::BASE_PREFIX) = "gpt_neox",
    ChatGlm(ChatGlmForConditionalGeneration, ChatGlmConfig, chatglm::BASE_PREFIX) = "chatglm",
}

architectures! { $
    /// A model that scores a whole sequence, of any known architecture.
    AutoSequenceClassifier, sequence_classifier!, "classifiers":
    Bert(BertForSequenceClassification, BertConfig, bert::BASE_PREFIX) = "bert",
    Deberta(DebertaForSequenceClassification, DebertaConfig, deberta::BASE_PREFIX) = "deberta",
    DebertaV2(DebertaV2ForSequenceClassification, DebertaV2Config, deberta_v2::BASE_PREFIX) = "deberta-v2",
    Gpt2(Gpt2ForSequenceClassification, Gpt2Config, gpt2::BASE_PREFIX) = "gpt2",
    Llama(LlamaForSequenceClassification, LlamaConfig, llama::BASE_PREFIX) = "llama" | "mistral" | "qwen2" | "qwen3",
    Gemma(GemmaForSequenceClassification, GemmaConfig, gemma::BASE_PREFIX) = "gemma2" | "gemma3_text",
    Phi3(Phi3ForSequenceClassification, Phi3Config, phi3::BASE_PREFIX) = "phi3",
    Bloom(BloomForSequenceClassification, BloomConfig, bloom::BASE_PREFIX) = "bloom",
    Opt(OptForSequenceClassification, OptConfig, opt::BASE_PREFIX) = "opt",
    GptNeo(GptNeoForSequenceClassification, GptNeoConfig, gpt_neo::BASE_PREFIX) = "gpt_neo",
    GptJ(GptJForSequenceClassification, GptJConfig, gptj::BASE_PREFIX) = "gptj",
    GptNeoX(GptNeoXForSequenceClassification, GptNeoXConfig, gpt_neox::BASE_PREFIX) = "gpt_neox",
    ModernBert(ModernBertForSequenceClassification, ModernBertConfig, modernbert::BASE_PREFIX) = "modernbert",
    Roberta(RobertaForSequenceClassification, RobertaConfig, roberta::BASE_PREFIX) = "roberta" | "xlm-roberta",
}

architectures! { $
    /// A model that scores every token, of any known architecture.
    AutoTokenClassifier, token_classifier!, "token classification":
    Bert(BertForTokenClassification, BertConfig, bert::BASE_PREFIX) = "bert",
    Deberta(DebertaForTokenClassification, DebertaConfig, deberta::BASE_PREFIX) = "deberta",
    DebertaV2(DebertaV2ForTokenClassification, DebertaV2Config, deberta_v2::BASE_PREFIX) = "deberta-v2",
    Gpt2(Gpt2ForTokenClassification, Gpt2Config, gpt2::BASE_PREFIX) = "gpt2",
    Bloom(BloomForTokenClassification, BloomConfig, bloom::BASE_PREFIX) = "bloom",
    Opt(OptForTokenClassification, OptConfig, opt::BASE_PREFIX) = "opt",
    GptNeo(GptNeoForTokenClassification, GptNeoConfig, gpt_neo::BASE_PREFIX) = "gpt_neo",
    GptJ(GptJForTokenClassification, GptJConfig, gptj::BASE_PREFIX) = "gptj",
    GptNeoX(GptNeoXForTokenClassification, GptNeoXConfig, gpt_neox::BASE_PREFIX) = "gpt_neox",
    Llama(LlamaForTokenClassification, LlamaConfig, llama::BASE_PREFIX) = "llama" | "mistral" | "qwen2" | "qwen3",
    Gemma(GemmaForTokenClassification, GemmaConfig, gemma::BASE_PREFIX) = "gemma2" | "gemma3_text",
    Phi3(Phi3ForTokenClassification, Phi3Config, phi3::BASE_PREFIX) = "phi3",
    ModernBert(ModernBertForTokenClassification, ModernBertConfig, modernbert::BASE_PREFIX) = "modernbert",
    Roberta(RobertaForTokenClassification, RobertaConfig, roberta::BASE_PREFIX) = "roberta" | "xlm-roberta",
}

architectures! { $
    /// A model that finds answers, of any known architecture.
    AutoQuestionAnswerer, question_answerer!, "question answering":
    Bert(BertForQuestionAnswering, BertConfig, bert::BASE_PREFIX) = "bert",
    Deberta(DebertaForQuestionAnswering, DebertaConfig, deberta::BASE_PREFIX) = "deberta",
    DebertaV2(DebertaV2ForQuestionAnswering, DebertaV2Config, deberta_v2::BASE_PREFIX) = "deberta-v2",
    Gpt2(Gpt2ForQuestionAnswering, Gpt2Config, gpt2::BASE_PREFIX) = "gpt2",
    ModernBert(ModernBertForQuestionAnswering, ModernBertConfig, modernbert::BASE_PREFIX) = "modernbert",
    Roberta(RobertaForQuestionAnswering, RobertaConfig, roberta::BASE_PREFIX) = "roberta" | "xlm-roberta",
}

architectures! { $
    /// A model that guesses the words behind masks, of any known architecture.
    AutoMaskedLm, masked_lm!, "masked language models":
    Bert(BertForMaskedLm, BertConfig, bert::BASE_PREFIX) = "bert",
    Deberta(DebertaForMaskedLm, DebertaConfig, deberta::BASE_PREFIX) = "deberta",
    DebertaV2(DebertaV2ForMaskedLm, DebertaV2Config, deberta_v2::BASE_PREFIX) = "deberta-v2",
    ModernBert(ModernBertForMaskedLm, ModernBertConfig, modernbert::BASE_PREFIX) = "modernbert",
    Roberta(RobertaForMaskedLm, RobertaConfig, roberta::BASE_PREFIX) = "roberta" | "xlm-roberta",
}

architectures! { $
    /// A model that reads a source and writes a target, of any known architecture.
    AutoSeq2SeqLm, seq2seq_lm!, "sequence to sequence":
    Bart(BartForConditionalGeneration, BartConfig, bart::BASE_PREFIX) = "bart" | "mbart",
    T5(T5ForConditionalGeneration, T5Config, t5::BASE_PREFIX) = "t5" | "mt5",
}

architectures! { $
    /// A model that turns tokens into vectors, of any known architecture.
    AutoFeatureExtractor, feature_extractor!, "feature extraction":
    Bert(BertModel, BertConfig, bert::BASE_PREFIX) = "bert",
    Deberta(DebertaModel, DebertaConfig, deberta::BASE_PREFIX) = "deberta",
    DebertaV2(DebertaV2Model, DebertaV2Config, deberta_v2::BASE_PREFIX) = "deberta-v2",
    Gpt2(Gpt2Model, Gpt2Config, gpt2::BASE_PREFIX) = "gpt2",
    Llama(LlamaModel, LlamaConfig, llama::BASE_PREFIX) = "llama" | "mistral" | "qwen2" | "qwen3",
    Gemma(GemmaModel, GemmaConfig, gemma::BASE_PREFIX) = "gemma2" | "gemma3_text",
    Phi3(Phi3Model, Phi3Config, phi3::BASE_PREFIX) = "phi3",
    Bloom(BloomModel, BloomConfig, bloom::BASE_PREFIX) = "bloom",
    Opt(OptModel, OptConfig, opt::BASE_PREFIX) = "opt",
    GptNeo(GptNeoModel, GptNeoConfig, gpt_neo::BASE_PREFIX) = "gpt_neo",
    GptJ(GptJModel, GptJConfig, gptj::BASE_PREFIX) = "gptj",
    GptNeoX(GptNeoXModel, GptNeoXConfig, gpt_neox::BASE_PREFIX) = "gpt_neox",
    ChatGlm(ChatGlmModel, ChatGlmConfig, chatglm::BASE_PREFIX) = "chatglm",
    ModernBert(ModernBertModel, ModernBertConfig, modernbert::BASE_PREFIX) = "modernbert",
    Roberta(RobertaModel, RobertaConfig, roberta::BASE_PREFIX) = "roberta" | "xlm-roberta",
}

/// What a classifier is to be, where its folder does not say or says something else.
#[derive(Debug, Clone, Default)]
pub struct ClassifierOptions {
    /// Number of outputs.
    pub num_labels: Option<usize>,
    /// `regression`, `single_label_classification` or `multi_label_classification`.
    pub problem_type: Option<String>,
    /// The padding token, which decoders must know to find a row's last word.
    pub pad_token_id: Option<i64>,
    /// Seed of a head that the checkpoint lacks.
    pub seed: u64,
}

/// The weights of a folder, to be kept in these numbers.
fn open(folder: impl AsRef<Path>, dtype: BaseDtype) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(folder)?;
    if dtype.rounds(checkpoint.float_type()) {
        tracing::warn!(
            "weights are rounded to {dtype}: this is another base than the file's; `auto` keeps its numbers"
        );
    }
    Ok(checkpoint.keeping(dtype))
}

/// Reads a model that predicts the next token. The report names what the folder holds beyond it.
pub fn load_causal_lm(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<(AutoCausalLm, LoadReport)> {
    let Placement { device, dtype } = &place.into();
    let mut raw = RawConfig::read(&folder)?;
    let mut model = AutoCausalLm::from_config(&raw, device)?;
    let mut checkpoint = open(&folder, *dtype)?;
    if Adaptable::is_tied(&model) && has_another_head(&checkpoint)? {
        tracing::warn!("`tie_word_embeddings` does not hold: the head differs from the embedding table and is used");
        raw.json.insert("tie_word_embeddings".to_owned(), json!(false));
        model = AutoCausalLm::from_config(&raw, device)?;
    }
    if Adaptable::is_tied(&model) {
        table_is_also_under(&mut checkpoint, &model, &HEADS);
    }
    let prefix = model.base_prefix();
    checkpoint.load(model, prefix, &[])
}

/// Reads a classifier. A head that the folder lacks starts from N(0, `initializer_range`); the report lists it as
/// missing.
pub fn load_sequence_classifier(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
    options: &ClassifierOptions,
) -> Result<(AutoSequenceClassifier, LoadReport)> {
    let Placement { device, dtype } = &place.into();
    let mut raw = RawConfig::read(&folder)?;
    options.write_into(&mut raw);
    let model = AutoSequenceClassifier::from_config(&raw, device)?;
    let prefix = model.base_prefix();
    let (model, report) = open(&folder, *dtype)?.load(model, prefix, &["score", "classifier", "pooler", "head"])?;
    Ok((start(model, &report.missing, &raw, options.seed, device), report))
}

/// Reads a model that labels tokens. A head that the folder lacks starts as [`load_sequence_classifier`] says.
pub fn load_token_classifier(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
    options: &ClassifierOptions,
) -> Result<(AutoTokenClassifier, LoadReport)> {
    let Placement { device, dtype } = &place.into();
    let mut raw = RawConfig::read(&folder)?;
    options.write_into(&mut raw);
    let model = AutoTokenClassifier::from_config(&raw, device)?;
    let prefix = model.base_prefix();
    let (model, report) = open(&folder, *dtype)?.load(model, prefix, &["classifier", "score", "head"])?;
    Ok((start(model, &report.missing, &raw, options.seed, device), report))
}

/// Reads a model that finds answers. A head that the folder lacks starts from N(0, `initializer_range`), drawn by `seed`.
pub fn load_question_answerer(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
    seed: u64,
) -> Result<(AutoQuestionAnswerer, LoadReport)> {
    let Placement { device, dtype } = &place.into();
    let raw = RawConfig::read(&folder)?;
    let model = AutoQuestionAnswerer::from_config(&raw, device)?;
    let prefix = model.base_prefix();
    let (model, report) = open(&folder, *dtype)?.load(model, prefix, &["qa_outputs", "classifier", "head"])?;
    Ok((start(model, &report.missing, &raw, seed, device), report))
}

/// Reads a model that reads a source and writes a target. The report names what the folder holds beyond it.
///
/// Whether the head is the table of words is seen from the checkpoint, as the reference does: files of T5 say that it is
/// either way.
pub fn load_seq2seq_lm(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<(AutoSeq2SeqLm, LoadReport)> {
    let Placement { device, dtype } = &place.into();
    let mut raw = RawConfig::read(&folder)?;
    let mut checkpoint = open(&folder, *dtype)?;
    let tied = !has_another_head(&checkpoint)?;
    // What T5's files say by this field, besides.
    let scaled = raw.json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
    raw.json.entry("scale_decoder_outputs").or_insert(json!(scaled));
    raw.json.insert("tie_word_embeddings".to_owned(), json!(tied));
    let model = AutoSeq2SeqLm::from_config(&raw, device)?;
    if tied {
        table_is_also_under(&mut checkpoint, &model, &HEADS);
    }
    table_is_also_under(&mut checkpoint, &model, &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]);
    let prefix = model.base_prefix();
    checkpoint.load(model, prefix, &["final_logits_bias"])
}

/// Reads a model that guesses the words behind masks. Unlike a classifier's, its head is part of the folder.
pub fn load_masked_lm(folder: impl AsRef<Path>, place: impl Into<Placement>) -> Result<(AutoMaskedLm, LoadReport)> {
    let Placement { device, dtype } = &place.into();
    let mut raw = RawConfig::read(&folder)?;
    let checkpoint = open(&folder, *dtype)?;
    if has_another_head(&checkpoint)? {
        tracing::warn!("`tie_word_embeddings` does not hold: the head differs from the embedding table and is used");
        raw.json.insert("tie_word_embeddings".to_owned(), json!(false));
    }
    let model = AutoMaskedLm::from_config(&raw, device)?;
    let prefix = model.base_prefix();
    checkpoint.load(model, prefix, &[])
}

/// Reads a model that turns tokens into vectors.
///
/// A pooler takes no part in the last hidden state: where the folder lacks it, it starts at random.
pub fn load_feature_extractor(
    folder: impl AsRef<Path>,
    place: impl Into<Placement>,
) -> Result<(AutoFeatureExtractor, LoadReport)> {
    let Placement { device, dtype } = &place.into();
    let raw = RawConfig::read(&folder)?;
    let model = AutoFeatureExtractor::from_config(&raw, device)?;
    let prefix = model.base_prefix();
    let (model, report) = open(&folder, *dtype)?.load(model, prefix, &["pooler"])?;
    Ok((start(model, &report.missing, &raw, 0, device), report))
}

impl CausalLm for AutoCausalLm {
    fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        causal_lm!(self, it => it.hidden(input, cache))
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        causal_lm!(self, it => it.head(hidden))
    }

    fn head_weight(&self) -> Option<Tensor<2>> {
        causal_lm!(self, it => it.head_weight())
    }

    fn cache_limit(&self) -> Option<usize> {
        causal_lm!(self, it => it.cache_limit())
    }

    fn supports_packing(&self) -> bool {
        causal_lm!(self, it => it.supports_packing())
    }

    fn is_tied(&self) -> bool {
        causal_lm!(self, it => CausalLm::is_tied(it))
    }

    fn untie(&mut self) {
        causal_lm!(self, it => it.untie());
    }
}

impl AutoSequenceClassifier {
    /// What the labels are.
    pub fn labels(&self) -> &LabelConfig {
        sequence_classifier!(self, it => it.labels())
    }

    /// Whether every token sees the whole text. A decoder's classifier looks at the last token, so that it must know
    /// which is padding.
    pub fn is_encoder(&self) -> bool {
        matches!(self, Self::Bert(_) | Self::Deberta(_) | Self::DebertaV2(_) | Self::ModernBert(_) | Self::Roberta(_))
    }
}

impl SequenceClassifier for AutoSequenceClassifier {
    fn logits(&self, input: &ModelInput) -> Tensor<2> {
        sequence_classifier!(self, it => it.logits(input))
    }

    fn num_labels(&self) -> usize {
        self.labels().num_labels()
    }

    fn problem_type(&self) -> Option<&str> {
        self.labels().problem_type.as_deref()
    }
}

impl AutoTokenClassifier {
    /// What the labels are.
    pub fn labels(&self) -> &LabelConfig {
        token_classifier!(self, it => it.labels())
    }
}

impl TokenClassifier for AutoTokenClassifier {
    fn logits(&self, input: &ModelInput) -> Tensor<3> {
        token_classifier!(self, it => it.logits(input))
    }

    fn num_labels(&self) -> usize {
        self.labels().num_labels()
    }
}

impl MaskedLm for AutoMaskedLm {
    fn logits(&self, input: &ModelInput) -> Tensor<3> {
        masked_lm!(self, it => it.logits(input))
    }
}

impl QuestionAnswerer for AutoQuestionAnswerer {
    fn logits(&self, input: &ModelInput) -> Tensor<3> {
        question_answerer!(self, it => it.logits(input))
    }
}

impl Seq2SeqLm for AutoSeq2SeqLm {
    fn encode(&self, source: &ModelInput) -> Encoded {
        seq2seq_lm!(self, it => it.encode(source))
    }

    fn decode(&self, target: &ModelInput, source: &Encoded, cache: Option<&mut Seq2SeqCache>) -> Tensor<3> {
        seq2seq_lm!(self, it => it.decode(target, source, cache))
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        seq2seq_lm!(self, it => it.head(hidden))
    }

    fn shift_right(&self, labels: Tensor<2, Int>) -> Result<Tensor<2, Int>> {
        seq2seq_lm!(self, it => it.shift_right(labels))
    }

    fn decoder_start(&self) -> Option<u32> {
        seq2seq_lm!(self, it => it.decoder_start())
    }

    fn is_tied(&self) -> bool {
        seq2seq_lm!(self, it => Seq2SeqLm::is_tied(it))
    }

    fn untie(&mut self) {
        seq2seq_lm!(self, it => it.untie());
    }
}

impl FeatureExtractor for AutoFeatureExtractor {
    fn last_hidden_state(&self, input: &ModelInput) -> Tensor<3> {
        feature_extractor!(self, it => it.last_hidden_state(input))
    }
}

impl ClassifierOptions {
    /// Has `config.json` say what was asked for.
    fn write_into(&self, raw: &mut RawConfig) {
        let mut set = |field: &str, value: Value| raw.json.insert(field.to_owned(), value);
        if let Some(labels) = self.num_labels {
            set("num_labels", json!(labels));
        }
        if let Some(kind) = &self.problem_type {
            set("problem_type", json!(kind));
        }
        if let Some(pad) = self.pad_token_id {
            set("pad_token_id", json!(pad));
        }
    }
}

fn unknown(model_type: &str, task: &str, known: &[&str]) -> PeftError {
    let reason = format!("for {task} this version knows {}", known.join(", "));
    PeftError::unsupported(format!("model_type `{model_type}`"), reason)
}

/// Names of heads that score words.
const HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

fn key_with_ending<'a>(checkpoint: &'a Checkpoint, ending: &str) -> Option<&'a str> {
    checkpoint.keys().find(|key| *key == ending || key.ends_with(&format!(".{ending}")))
}

/// A table of words that is read in several places is stored once, under the name of any of them.
fn table_is_also_under(checkpoint: &mut Checkpoint, model: &impl Adaptable, endings: &[&str]) {
    let Some(prompts) = model.spec().prompts else { return };
    if let Some(key) = endings.iter().find_map(|it| key_with_ending(checkpoint, it)).map(str::to_owned) {
        checkpoint.also_under(format!("{}.weight", prompts.table), key);
    }
}

/// Whether a checkpoint holds a head that is not its embedding table.
///
/// The reference then unties the two whatever `config.json` says.
fn has_another_head(checkpoint: &Checkpoint) -> Result<bool> {
    let find = |ending: &str| {
        let key = key_with_ending(checkpoint, ending)?;
        Some((checkpoint.file(key)?, key))
    };
    let table = ["wte", "shared", "embed_tokens", "word_embeddings", "embed_in", "tok_embeddings"]
        .iter()
        .find_map(|it| find(&format!("{it}.weight")));
    let head = HEADS.into_iter().chain(["decoder.weight"]).find_map(find);
    let (Some((head_file, head)), Some((table_file, table))) = (head, table) else {
        return Ok(false);
    };
    if head_file.shape(head) != table_file.shape(table) {
        return Ok(true);
    }
    if head_file.dtype(head) == table_file.dtype(table) {
        return Ok(head_file.kept(head, BaseDtype::Auto)? != table_file.kept(table, BaseDtype::Auto)?);
    }
    Ok(head_file.floats(head)? != table_file.floats(table)?)
}

/// Gives parameters that no checkpoint holds their starting values: weights are normal, those of norms 1, biases zero.
fn start<M: Module>(model: M, absent: &[String], raw: &RawConfig, seed: u64, device: &Device) -> M {
    if absent.is_empty() {
        return model;
    }
    let std = raw.json.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
    let spec = ModelSpec::of(&model);
    model.map(&mut DrawMissing { at: PathStack::default(), spec: &spec, absent, std, seed, device })
}

struct DrawMissing<'a> {
    at: PathStack,
    spec: &'a ModelSpec,
    absent: &'a [String],
    std: f64,
    seed: u64,
    device: &'a Device,
}

impl ModuleMapper for DrawMissing<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.at.path();
        let Some(spec) = self.spec.get(&path).filter(|_| self.absent.contains(&path)) else { return param };
        let shape: [usize; D] = std::array::from_fn(|axis| spec.shape[axis]);
        let mut init = Init::new(self.seed, "base", spec, self.device);
        let start = match (spec.name.as_str(), D) {
            ("bias", _) => init.constant(shape, 0.0),
            // A norm.
            (_, 1) => init.constant(shape, 1.0),
            _ => init.normal(shape, self.std),
        };
        let id = param.id;
        param.transform_for_load(start.val().detach(), id)
    }
}
