//! Prefix tuning: trained keys and values stand before those of every layer (arXiv 2101.00190; without projection it is
//! P-tuning v2, arXiv 2110.07602).

use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Int, Tensor};
use peft_core::config::fields;
use peft_core::forward::EmbeddingBelow;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, KeyValue, MethodInfo, ModelSpec, ParamSpec, PeftConfig,
    PeftError, Plan, PlanRow, Prompt, PromptAdapter, Result, Tuner, refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Kind, PromptLearning, Sizes};
use crate::dense::{Dense, Table, sequence, sequence_key};
use crate::{NO_WEIGHT, PREFIX_TUNING};

/// How a row of numbers is cut into keys and values.
#[derive(Module, Debug)]
pub(crate) struct Cut {
    layers: usize,
    heads: usize,
    submodules: usize,
    drops_token_types: bool,
}

impl Cut {
    fn new(sizes: &Sizes) -> Self {
        let Sizes { layers, heads, submodules, drops_token_types, .. } = *sizes;
        Self { layers, heads, submodules, drops_token_types }
    }

    /// `[virtual, layers · 2 · heads · d_head]` to a pair for each layer.
    fn keys_values(&self, rows: Tensor<2>) -> Vec<KeyValue> {
        let [virtual_tokens, width] = rows.dims();
        let parts = 2 * self.layers;
        let rows =
            rows.reshape([virtual_tokens, parts, self.heads, width / (parts * self.heads)]).permute([1, 2, 0, 3]);
        // With an encoder, the reference doubles the parts and deals out four to a layer: two for itself and two for
        // cross-attention, which it then throws away. So layers take every other pair, and the round begins again.
        let part = |layer: usize, at: usize| rows.clone().narrow(0, (2 * self.submodules * layer + at) % parts, 1);
        (0..self.layers).map(|layer| (part(layer, 0), part(layer, 1))).collect()
    }

    fn prompt(&self, rows: Tensor<2>) -> Prompt {
        let keys_values = self.keys_values(rows);
        Prompt { keys_values, drops_token_types: self.drops_token_types, ..Prompt::default() }
    }
}

/// Keys and values, as the file holds them.
#[derive(Module, Debug)]
pub struct Prefix {
    /// `[virtual, layers · 2 · kv_heads · d_head]`
    pub prompt_embeddings: Param<Tensor<2>>,
    cut: Cut,
}

impl Adapter for Prefix {
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

impl PromptAdapter for Prefix {
    fn prompt(&self, _tasks: Option<&Tensor<1, Int>>) -> Prompt {
        self.cut.prompt(self.prompt_embeddings.val())
    }
}

/// Two layers that make keys and values of shorter rows. In the adapter file there is only what they make.
#[derive(Module, Debug)]
pub struct PrefixEncoder {
    /// `[virtual, kv_heads · d_head]`
    pub embedding: Table,
    /// Two layers with a tangent between them.
    pub transform: Vec<Dense>,
    cut: Cut,
}

impl PrefixEncoder {
    fn rows(&self) -> Tensor<2> {
        sequence(&self.transform, self.embedding.weight.val(), Tensor::tanh)
    }
}

impl Adapter for PrefixEncoder {
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
        "prompt_encoder."
    }

    fn file_key(&self, _param: &ParamSpec, field: &str) -> String {
        sequence_key("transform", field).unwrap_or_else(|| field.to_owned())
    }

    fn as_prompt(&self) -> Option<&dyn PromptAdapter> {
        Some(self)
    }
}

impl PromptAdapter for PrefixEncoder {
    fn prompt(&self, _tasks: Option<&Tensor<1, Int>>) -> Prompt {
        self.cut.prompt(self.rows())
    }

    fn export_form(&self) -> Option<AnyAdapter> {
        let prompt_embeddings = Param::initialized(ParamId::new(), self.rows().detach());
        Some(AnyAdapter::new(Prefix { prompt_embeddings, cut: self.cut.clone() }))
    }
}

#[derive(Debug)]
struct BuildPrefix {
    sizes: Sizes,
    zero: bool,
    /// Width of the projection; none without one.
    hidden: Option<usize>,
}

impl BuildPrefix {
    fn row_width(&self) -> usize {
        2 * self.sizes.layers * self.sizes.width
    }

    fn len(&self) -> usize {
        let (rows, width) = (self.sizes.virtual_tokens, self.sizes.width);
        match self.hidden {
            None => rows * self.row_width(),
            Some(hidden) => rows * width + Dense::len(width, hidden) + Dense::len(hidden, self.row_width()),
        }
    }

    fn row(self) -> PlanRow {
        let projected = self.hidden.map_or(String::new(), |it| format!(", projected through width {it}"));
        PlanRow {
            param: self.sizes.table.clone(),
            label: format!("{} keys and values before each layer{projected}", self.sizes.virtual_tokens),
            parameters: self.len(),
            build: Arc::new(self),
        }
    }
}

impl AdapterBuilder for BuildPrefix {
    fn build(&self, _base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let (cut, rows, width) = (Cut::new(&self.sizes), self.sizes.virtual_tokens, self.sizes.width);
        let wide = self.row_width();
        let Some(hidden) = self.hidden else {
            let shape = [rows, wide];
            let prompt_embeddings = if self.zero { init.constant(shape, 0.0) } else { init.normal(shape, 1.0) };
            return AnyAdapter::new(Prefix { prompt_embeddings, cut });
        };
        let embedding = Table::new(rows, width, init);
        let first = Dense::new(width, hidden, init);
        let last = if self.zero { Dense::zeros(hidden, wide, init) } else { Dense::new(hidden, wide, init) };
        AnyAdapter::new(PrefixEncoder { embedding, transform: vec![first, last], cut })
    }
}

/// Prefix tuning's configuration. Defaults are the reference's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PrefixTuningConfig {
    /// The fields of all prompt methods.
    #[serde(flatten)]
    pub prompt: PromptLearning,
    /// `"zero"` starts with keys and values of zero.
    #[serde(default)]
    pub init_weights: Option<String>,
    /// Width of the projection; that of a token if not given.
    #[serde(default)]
    pub encoder_hidden_size: Option<usize>,
    /// Whether two layers make the keys and values.
    #[serde(default)]
    pub prefix_projection: bool,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl PrefixTuningConfig {
    /// A prefix of some positions for a task, without projection.
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

impl Tuner for PrefixTuningConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "prefix tuning",
        peft_type: crate::PREFIX_TUNING,
        what: "keys and values before those of every layer",
        paper: "arXiv 2101.00190",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for PrefixTuningConfig {
    fn peft_type(&self) -> &str {
        PREFIX_TUNING
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.prompt.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        refuse_unknown(&self.other, &[])?;
        let sizes = self.prompt.sizes(spec, Kind::Prefix)?;
        let zero = match self.init_weights.as_deref() {
            None => false,
            Some("zero") => true,
            Some(other) => {
                return Err(PeftError::config("init_weights", format!("is `{other}`, expected zero or null")));
            }
        };
        let hidden = self.encoder_hidden_size.unwrap_or(sizes.width);
        fields::check_positive("encoder_hidden_size", hidden)?;
        let mut derived = sizes.derived();
        derived.insert("encoder_hidden_size".into(), hidden.into());
        let plain = BuildPrefix { sizes: sizes.clone(), zero, hidden: None }.row();
        let (row, export_form) = match self.prefix_projection {
            false => (plain, None),
            true => (BuildPrefix { sizes, zero, hidden: Some(hidden) }.row(), Some(plain)),
        };
        self.prompt.plan("prefix tuning", spec, row, export_form, derived)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.prompt.write(self)
    }
}
