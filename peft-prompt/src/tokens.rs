//! Prompt tuning: trained vectors stand before the embeddings of the input (arXiv 2104.08691).

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::config::fields;
use peft_core::forward::EmbeddingBelow;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, MethodInfo, ModelSpec, ParamSpec, PeftConfig, PeftError,
    Plan, PlanRow, Prompt, PromptAdapter, Result, Tuner, refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Kind, PromptLearning, Sizes};
use crate::start::PromptInit;
use crate::{NO_WEIGHT, PROMPT_TUNING};

/// Vectors that stand before the embeddings.
#[derive(Module, Debug)]
pub struct VirtualTokens {
    /// `[virtual · submodules, d_model]`: those of the decoder follow those of the encoder.
    pub prompt_embeddings: Param<Tensor<2>>,
    virtual_tokens: usize,
    drops_token_types: bool,
}

impl VirtualTokens {
    pub(crate) fn new(prompt_embeddings: Param<Tensor<2>>, virtual_tokens: usize, drops_token_types: bool) -> Self {
        Self { prompt_embeddings, virtual_tokens, drops_token_types }
    }
}

/// The prompt of vectors `[rows, d_model]`. Only the first rows come in, as in the reference: those of a decoder are
/// trained by no gradient.
pub(crate) fn prompt_of(vectors: Tensor<2>, virtual_tokens: usize, drops_token_types: bool) -> Prompt {
    let tokens = vectors.narrow(0, 0, virtual_tokens).unsqueeze();
    Prompt { tokens: Some(tokens), drops_token_types, ..Prompt::default() }
}

impl Adapter for VirtualTokens {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        weight
    }

    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        below.forward(ids)
    }

    fn unmergeable(&self) -> Option<&'static str> {
        Some(NO_WEIGHT)
    }

    fn key_prefix(&self) -> &'static str {
        ""
    }

    fn file_key(&self, _param: &ParamSpec, field: &str) -> String {
        field.to_owned()
    }

    fn as_prompt(&self) -> Option<&dyn PromptAdapter> {
        Some(self)
    }
}

impl PromptAdapter for VirtualTokens {
    fn prompt(&self, _tasks: Option<&Tensor<1, Int>>) -> Prompt {
        prompt_of(self.prompt_embeddings.val(), self.virtual_tokens, self.drops_token_types)
    }

    fn virtual_tokens(&self) -> usize {
        self.virtual_tokens
    }
}

#[derive(Debug)]
struct BuildTokens {
    sizes: Sizes,
    start: PromptInit,
}

impl AdapterBuilder for BuildTokens {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let Sizes { virtual_tokens, width, drops_token_types, .. } = self.sizes;
        let values = self.start.values(self.sizes.rows(), width, base, init);
        AnyAdapter::new(VirtualTokens::new(values, virtual_tokens, drops_token_types))
    }
}

/// The row of plain virtual tokens.
pub(crate) fn row(sizes: &Sizes, start: PromptInit) -> PlanRow {
    PlanRow {
        param: sizes.table.clone(),
        label: format!("{} virtual tokens", sizes.virtual_tokens),
        parameters: sizes.rows() * sizes.width,
        build: Arc::new(BuildTokens { sizes: sizes.clone(), start }),
    }
}

/// `prompt_tuning_init`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptTuningInit {
    /// The words of a text.
    Text,
    /// Words drawn at random.
    SampleVocab,
    /// Normal numbers.
    #[default]
    Random,
}

/// Prompt tuning's configuration. Defaults are the reference's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PromptTuningConfig {
    /// The fields of all prompt methods.
    #[serde(flatten)]
    pub prompt: PromptLearning,
    /// Where the vectors start.
    #[serde(default)]
    pub prompt_tuning_init: PromptTuningInit,
    /// The text they start from.
    #[serde(default)]
    pub prompt_tuning_init_text: Option<String>,
    /// Whose tokenizer splits it.
    #[serde(default)]
    pub tokenizer_name_or_path: Option<String>,
    /// Arguments of that tokenizer in Python.
    #[serde(default)]
    pub tokenizer_kwargs: Option<Map<String, Value>>,
    /// The ids of the text; this crate knows no tokenizer. Not part of the file.
    #[serde(skip)]
    pub init_ids: Option<Vec<i64>>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl PromptTuningConfig {
    /// Some virtual tokens for a task, drawn at random.
    pub fn new(num_virtual_tokens: usize, task_type: &str) -> Self {
        Self { prompt: PromptLearning::new(num_virtual_tokens, task_type), ..Self::default() }
    }

    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        let config: Self = fields::parse_config(json)?;
        refuse_unknown(&config.other, &[])?;
        Ok(config)
    }
}

/// The start that a text gives, and what is lacking if its ids are not known.
pub(crate) fn from_text(
    text: Option<&String>,
    tokenizer: Option<&String>,
    ids: Option<&Vec<i64>>,
    spec: &ModelSpec,
) -> Result<(PromptInit, Option<String>)> {
    // The reference opens no folder that lacks one of the two, although it does not split the text again.
    for (field, value) in [("prompt_tuning_init_text", text), ("tokenizer_name_or_path", tokenizer)] {
        if value.is_none_or(String::is_empty) {
            return Ok((PromptInit::Random, Some(format!("`{field}` is missing, which a start from a text needs"))));
        }
    }
    let Some(ids) = ids else {
        let missing_data =
            "`prompt_tuning_init_text` is not split into ids; set `init_ids` to what the tokenizer gives";
        return Ok((PromptInit::Random, Some(missing_data.into())));
    };
    let vocabulary = spec.prompts.as_ref().and_then(|it| spec.get(&format!("{}.weight", it.table)));
    let vocabulary = vocabulary.map_or(0, |it| it.shape[0] as i64);
    if ids.is_empty() || ids.iter().any(|id| !(0..vocabulary).contains(id)) {
        let reason = format!("gives the ids {ids:?}, expected some below {vocabulary}: is it this model's tokenizer?");
        return Err(PeftError::config("prompt_tuning_init_text", reason));
    }
    Ok((PromptInit::Words(ids.clone()), None))
}

impl Tuner for PromptTuningConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "prompt tuning",
        peft_type: crate::PROMPT_TUNING,
        what: "virtual tokens before the input",
        paper: "arXiv 2104.08691",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for PromptTuningConfig {
    fn peft_type(&self) -> &str {
        PROMPT_TUNING
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.prompt.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        refuse_unknown(&self.other, &[])?;
        let sizes = self.prompt.sizes(spec, Kind::Tokens)?;
        let (start, missing_data) = match self.prompt_tuning_init {
            PromptTuningInit::Random => (PromptInit::Random, None),
            PromptTuningInit::SampleVocab => (PromptInit::Vocabulary, None),
            PromptTuningInit::Text => {
                let (text, tokenizer) = (&self.prompt_tuning_init_text, &self.tokenizer_name_or_path);
                from_text(text.as_ref(), tokenizer.as_ref(), self.init_ids.as_ref(), spec)?
            }
        };
        let mut plan = self.prompt.plan("prompt tuning", spec, row(&sizes, start), None, sizes.derived())?;
        plan.missing_data = missing_data;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.prompt.write(self)
    }
}
