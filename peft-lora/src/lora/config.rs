//! `adapter_config.json` of LoRA, field for field, and the plan that it makes.

use std::sync::Arc;

use indexmap::IndexMap;
use peft_core::config::fields::{self, Bias, SavedModules};
use peft_core::files::checkpoint::{Stored, TensorFile};
use peft_core::{
    AdapterBuilder, AdapterSet, Indices, MethodInfo, ModelSpec, Names, ParamKind, ParamSpec, Patterns, PeftConfig,
    PeftError, Plan, PlanRow, ProjectedPair, Result, Selection, Tuner, no_parameter_matched, refuse_unknown,
    replacement_row, replacement_row_with_head,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::lora::conv::BuildConv;
use crate::lora::data_init::calibration::DataInit;
use crate::lora::data_init::corda::{self, CordaConfig};
use crate::lora::data_init::eva::EvaConfig;
use crate::lora::default_targets;
use crate::lora::embedding::BuildEmbedding;
use crate::lora::linear::BuildLinear;
use crate::lora::lora_fa;
use crate::methods::trainable_tokens::TokenIndices;

/// `peft_type` of LoRA.
pub const PEFT_TYPE: &str = "LORA";

/// `init_lora_weights`, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InitWeights {
    Kaiming,
    Gaussian,
    Random,
    Orthogonal,
    Pissa(Option<usize>),
    Olora,
    Eva,
    Corda,
}

impl InitWeights {
    pub(crate) fn reads_base(&self) -> bool {
        matches!(self, Self::Pissa(_) | Self::Olora | Self::Corda)
    }
}

/// LoRA's configuration. Defaults are the reference's, except that targets must be given where a model has no defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of the update.
    #[serde(default = "default_rank")]
    pub r: usize,
    /// Numerator of the scale `lora_alpha / r`.
    #[serde(default = "default_alpha", serialize_with = "fields::integer_if_whole")]
    pub lora_alpha: f64,
    /// Share of the adapter's input that is dropped while training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Layers to adapt.
    #[serde(default)]
    pub target_modules: Option<Names>,
    /// Parameters to adapt, by path or its end: `mlp.experts.gate_up_proj`, for experts that lie in one tensor. A matrix or
    /// a stack of three axes; see [`LoraParameter`](crate::LoraParameter).
    #[serde(default)]
    pub target_parameters: Option<Vec<String>>,
    /// Layers to leave out.
    #[serde(default)]
    pub exclude_modules: Option<Names>,
    /// Numbers of the layers that list-style targets are restricted to.
    #[serde(default)]
    pub layers_to_transform: Option<Indices>,
    /// Name of the list of layers.
    #[serde(default)]
    pub layers_pattern: Option<Names>,
    /// Ranks of layers that differ from `r`.
    #[serde(default, deserialize_with = "fields::null_is_default")]
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas of layers that differ from `lora_alpha`.
    #[serde(default, deserialize_with = "fields::null_is_default")]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Modules that are trained and saved whole.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Which biases are trained.
    #[serde(default)]
    pub bias: Bias,
    /// Whether `lora_B` has a bias.
    #[serde(default)]
    pub lora_bias: bool,
    /// Scale by `lora_alpha / √r` (arXiv 2312.03732).
    #[serde(default)]
    pub use_rslora: bool,
    /// Train magnitude and direction apart (arXiv 2402.09353).
    #[serde(default)]
    pub use_dora: bool,
    /// `true`, `false`, `"gaussian"`, `"orthogonal"`, `"olora"`, `"pissa"` or `"pissa_niter_N"`; and, for a configuration that
    /// [`eva::start`](crate::lora::data_init::eva::start) or [`corda::start`](crate::lora::data_init::corda::start) makes, `"eva"` or `"corda"`.
    #[serde(default = "default_init")]
    pub init_lora_weights: Value,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// A head that is tied to a table moves along with it, where `modules_to_save` names `embed_tokens`.
    #[serde(default)]
    pub ensure_weight_tying: bool,
    /// Settings of a start with EVA.
    #[serde(default)]
    pub eva_config: Option<EvaConfig>,
    /// Settings of a start with CorDA.
    #[serde(default)]
    pub corda_config: Option<CordaConfig>,
    /// What data gave to the layers. No file holds it: a folder holds the trained factors.
    #[serde(skip)]
    pub data_init: Option<DataInit>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Rows of tables that are trained beside the adapter.
    #[serde(default)]
    pub trainable_token_indices: Option<TokenIndices>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

fn default_init() -> Value {
    Value::Bool(true)
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: default_rank(),
            lora_alpha: default_alpha(),
            lora_dropout: 0.0,
            target_modules: None,
            target_parameters: None,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            modules_to_save: None,
            bias: Bias::None,
            lora_bias: false,
            use_rslora: false,
            use_dora: false,
            init_lora_weights: default_init(),
            fan_in_fan_out: false,
            ensure_weight_tying: false,
            eva_config: None,
            corda_config: None,
            data_init: None,
            task_type: None,
            trainable_token_indices: None,
            other: Map::new(),
        }
    }
}

/// Fields of LoRA that say nothing about the numbers of a trained adapter.
const HARMLESS: [&str; 4] = ["megatron_core", "qalora_group_size", "loftq_config", "lora_ga_config"];

/// Fields that the reference writes whatever their value is, with what means "off".
const WRITTEN: [(&str, &str); 13] = [
    ("alora_invocation_tokens", "null"),
    ("arrow_config", "null"),
    ("kasa_config", "null"),
    ("layer_replication", "null"),
    ("loftq_config", "{}"),
    ("lora_ga_config", "null"),
    ("megatron_config", "null"),
    ("megatron_core", "\"megatron.core\""),
    ("monteclora_config", "null"),
    ("qalora_group_size", "16"),
    ("use_bdlora", "null"),
    ("use_qalora", "false"),
    ("velora_config", "null"),
];

impl LoraConfig {
    /// Rank and alpha, everything else by default.
    pub fn new(r: usize, lora_alpha: f64) -> Self {
        Self { r, lora_alpha, ..Self::default() }
    }

    /// With these target layers.
    pub fn targets<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.target_modules = Some(Names::list(names));
        self
    }

    /// With every linear layer but the head as target.
    pub fn all_linear(mut self) -> Self {
        self.target_modules = Some(Names::Pattern(peft_core::ALL_LINEAR.into()));
        self
    }

    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        let config: Self = fields::parse_config(json)?;
        refuse_unknown(&config.other, &HARMLESS)?;
        Ok(config)
    }

    /// Whether the update counts from where it started, as the reference's counts from a base that it has moved: what was
    /// trained means something else beside the original base.
    pub fn counts_from_its_start(&self) -> bool {
        let moves = |name: &str| ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|it| name.starts_with(it));
        self.init_lora_weights.as_str().is_some_and(|it| moves(&it.to_lowercase()))
    }

    pub(crate) fn start(&self) -> Result<InitWeights> {
        let unknown = |value: &str| {
            let reason = "true, false, gaussian, orthogonal, olora, pissa, pissa_niter_N, eva and corda are known";
            Err(PeftError::unsupported(format!("init_lora_weights = {value}"), reason))
        };
        match &self.init_lora_weights {
            Value::Bool(true) | Value::Null => Ok(InitWeights::Kaiming),
            Value::Bool(false) => Ok(InitWeights::Random),
            Value::String(name) => match name.to_lowercase().as_str() {
                "gaussian" => Ok(InitWeights::Gaussian),
                "orthogonal" => Ok(InitWeights::Orthogonal),
                "olora" => Ok(InitWeights::Olora),
                "pissa" => Ok(InitWeights::Pissa(None)),
                other => match other.strip_prefix("pissa_niter_").and_then(|it| it.parse().ok()) {
                    Some(iterations) => Ok(InitWeights::Pissa(Some(iterations))),
                    // EVA leaves the base as it is: a trained adapter is an ordinary one.
                    None if other == "eva" => Ok(InitWeights::Eva),
                    None if other == "corda" && self.data_init.is_some() => Ok(InitWeights::Corda),
                    None if other == "corda" => {
                        let reason = "without data: a fresh adapter needs `corda::start`, and a folder holds what was \
                                      trained beside another base; save it in Python with \
                                      path_initial_model_for_weight_conversion";
                        Err(PeftError::unsupported("init_lora_weights = \"corda\"", reason))
                    }
                    None => unknown(name),
                },
            },
            other => unknown(&other.to_string()),
        }
    }

    pub(crate) fn saved_modules(&self) -> SavedModules {
        SavedModules::new(self.modules_to_save.as_ref(), self.task_type.as_deref())
    }

    pub(crate) fn selection(&self) -> Selection {
        Selection {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
            modules_to_save: self.saved_modules().names(),
        }
    }

    fn check(&self) -> Result<()> {
        fields::check_positive("r", self.r)?;
        if !self.lora_alpha.is_finite() {
            return Err(PeftError::config("lora_alpha", "must be a finite number"));
        }
        fields::check_dropout("lora_dropout", self.lora_dropout)?;
        self.eva_config.as_ref().map_or(Ok(()), EvaConfig::check)?;
        let start = self.start()?;
        if self.lora_bias && (self.use_dora || start.reads_base() || self.bias != Bias::None) {
            let reason = "cannot be combined with `use_dora`, `bias`, or a start that reads the base (pissa, olora)";
            return Err(PeftError::config("lora_bias", reason));
        }
        self.check_parameters()
    }
}

impl Tuner for LoraConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "LoRA",
        peft_type: PEFT_TYPE,
        what: "two thin factors beside the frozen weight",
        paper: "arXiv 2106.09685",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for LoraConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn keeps_head_tied(&self, spec: &ModelSpec) -> bool {
        // Rows of a tied head are those of its table.
        let has_rows = |head: &String| match &self.trainable_token_indices {
            Some(TokenIndices::ByLayer(tables)) => tables.keys().any(|name| head.ends_with(name.as_str())),
            _ => false,
        };
        self.ensure_weight_tying || spec.heads.iter().any(has_rows)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        self.check()?;
        refuse_unknown(&self.other, &HARMLESS)?;
        let (parameters, unmatched_parameters) = self.parameters(spec)?;
        let (layers, unmatched) = self.layers_beside(&parameters, spec)?;
        if layers.is_empty() && parameters.is_empty() {
            return Err(no_parameter_matched(&unmatched_parameters, spec));
        }
        let mut plan = Plan::new("LoRA", spec);
        plan.rows = layers.iter().map(|it| self.row(it)).collect::<Result<_>>()?;
        for parameter in &parameters {
            plan.rows.push(self.parameter_row(parameter, &parameters, spec)?);
        }
        if self.start()? == InitWeights::Eva && self.data_init.is_none() {
            let reason = "init_lora_weights = \"eva\" starts from data; let `eva::start` complete the configuration";
            plan.missing_data = Some(reason.into());
        }
        let (ranks, alphas) = self.scales()?;
        let mut adapted: Vec<String> = layers.iter().map(|it| it.param.module.clone()).collect();
        adapted.extend(parameters.iter().map(|it| it.param.path()));
        let adapted: Vec<&str> = adapted.iter().map(String::as_str).collect();
        for (field, unused) in [
            ("rank_pattern", ranks.unused(&self.rank_pattern, adapted.iter().copied())),
            ("alpha_pattern", alphas.unused(&self.alpha_pattern, adapted.iter().copied())),
        ] {
            plan.notes.extend(unused.iter().map(|key| format!("{field} `{key}` matches no adapted layer")));
        }
        let foreign =
            layers.iter().any(|it| matches!(it.param.owner.as_str(), "Linear" | "Conv1d" | "Conv2d" | "Conv3d"));
        if self.lora_dropout > 0.0 && foreign {
            plan.notes.push("lora_dropout acts only in layers that call `adapted`, not in `burn::nn` forwards".into());
        }
        let saved = self.saved_modules();
        self.bias.add_to(&mut plan, spec, &saved);
        if let Some(tokens) = &self.trainable_token_indices {
            tokens.add_to(&mut plan, spec, &saved)?;
        }
        let tied = self.tied_table(spec, &layers)?;
        saved.add_with(&mut plan, spec, |param, key| {
            if Some(param) == tied { replacement_row_with_head(param, key) } else { replacement_row(param, key) }
        })?;
        self.check_around(&parameters, &plan)?;
        plan.unmatched = unmatched;
        plan.unmatched_parameters = unmatched_parameters;
        if !parameters.is_empty() && layers.iter().any(|it| it.param.owner == "Gpt2Linear") {
            let note = "Python's PEFT refuses `target_parameters` beside Conv1D layers: it cannot load this adapter";
            plan.notes.push(note.into());
        }
        Ok(plan)
    }

    fn projected_pairs(&self, sets: &[AdapterSet], name: &str) -> Result<Vec<ProjectedPair>> {
        lora_fa::pairs(sets, name)
    }

    fn to_file(&self, tensors: Vec<Stored>) -> Vec<Stored> {
        match &self.data_init {
            Some(data_init) => corda::to_file(data_init, tensors),
            None => tensors,
        }
    }

    fn read_back(&self, file: &TensorFile) -> Result<Option<Vec<Stored>>> {
        let data_init = self.data_init.as_ref().filter(|it| it.are_subtracted());
        data_init.map(|it| corda::from_file(it, file)).transpose()
    }

    fn to_file_json(&self) -> Result<Map<String, Value>> {
        if !self.data_init.as_ref().is_some_and(DataInit::are_subtracted) {
            return self.to_json();
        }
        let grown = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        let mut twice =
            Self { r: 2 * self.r, lora_alpha: grown * self.lora_alpha, init_lora_weights: true.into(), ..self.clone() };
        twice.rank_pattern.values_mut().for_each(|it| *it *= 2);
        twice.alpha_pattern.values_mut().for_each(|it| *it *= grown);
        twice.to_json()
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        let mut json = fields::config_json(self, &self.saved_modules())?;
        for (field, off) in WRITTEN {
            if !json.contains_key(field) {
                let off = serde_json::from_str(off).map_err(|error| PeftError::Invalid(error.to_string()))?;
                json.insert(field.to_owned(), off);
            }
        }
        Ok(json)
    }
}

/// Ranks and alphas by name.
pub(crate) type Scales<'a> = (Patterns<'a, usize>, Patterns<'a, f64>);

/// A layer to adapt.
pub(crate) struct Layer {
    pub(crate) param: Arc<ParamSpec>,
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) scale: f64,
}

impl LoraConfig {
    /// The table that is trained whole with the head that is tied to it.
    fn tied_table<'a>(&self, spec: &'a ModelSpec, layers: &[Layer]) -> Result<Option<&'a Arc<ParamSpec>>> {
        // The reference knows these names only.
        let is_named = |module: &str| matches!(module.rsplit('.').next(), Some("embed_tokens" | "lm_head"));
        let is_tied = spec.heads.iter().any(|it| is_named(it) && spec.get(&format!("{it}.weight")).is_none());
        if !self.ensure_weight_tying || !is_tied {
            return Ok(None);
        }
        if layers.iter().any(|it| is_named(&it.param.module)) {
            let reason = "with a tied table among `target_modules` is not known: name it in `modules_to_save`";
            return Err(PeftError::config("ensure_weight_tying", reason));
        }
        let table = spec.layers().find(|it| it.kind == ParamKind::Embedding && is_named(&it.module));
        if self.modules_to_save.iter().flatten().any(|it| it == "lm_head") {
            let table = table.map_or("the table", |it| it.module.as_str());
            let reason = format!("names the head `lm_head`, which is tied: name `{table}`, with which it moves");
            return Err(PeftError::config("modules_to_save", reason));
        }
        Ok(table)
    }

    /// The layers that are meant, with their ranks, and the names that mean none.
    pub(crate) fn layers(&self, spec: &ModelSpec) -> Result<(Vec<Layer>, Vec<String>)> {
        let defaults = spec.model_type.as_deref().and_then(default_targets::target_modules);
        let selected = self.selection().resolve(spec, defaults)?;
        let scales = self.scales()?;
        let layers = selected.spec.iter().map(|it| self.layer(&scales, it, &it.module)).collect::<Result<_>>()?;
        Ok((layers, selected.unmatched))
    }

    /// The same beside parameters that are meant, where there need be no layer.
    fn layers_beside(&self, parameters: &[Layer], spec: &ModelSpec) -> Result<(Vec<Layer>, Vec<String>)> {
        if !self.parameter_names().is_empty() {
            let has_defaults = || spec.model_type.as_deref().and_then(default_targets::target_modules).is_some();
            match &self.target_modules {
                None if !has_defaults() => return Ok((Vec::new(), Vec::new())),
                Some(Names::List(names)) if names.is_empty() => return Ok((Vec::new(), Vec::new())),
                _ => {}
            }
        }
        match self.layers(spec) {
            Err(PeftError::NothingMatched { .. }) if !parameters.is_empty() => {
                let names = match &self.target_modules {
                    Some(Names::List(names)) => names.clone(),
                    Some(Names::Pattern(pattern)) => vec![pattern.clone()],
                    None => Vec::new(),
                };
                Ok((Vec::new(), names))
            }
            layers => layers,
        }
    }

    pub(crate) fn scales(&self) -> Result<Scales<'_>> {
        let ranks = Patterns::new("rank_pattern", &self.rank_pattern)?;
        Ok((ranks, Patterns::new("alpha_pattern", &self.alpha_pattern)?))
    }

    /// A parameter with its rank and alpha, which go by `name`.
    pub(crate) fn layer(&self, (ranks, alphas): &Scales, param: &Arc<ParamSpec>, name: &str) -> Result<Layer> {
        let rank = ranks.get(name).copied().unwrap_or(self.r);
        let alpha = alphas.get(name).copied().unwrap_or(self.lora_alpha);
        if rank == 0 {
            return Err(PeftError::config("rank_pattern", format!("gives `{name}` the rank 0")));
        }
        let scale = alpha / if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Layer { param: param.clone(), rank, alpha, scale })
    }

    pub(crate) fn row(&self, layer: &Layer) -> Result<PlanRow> {
        let Layer { param, rank, alpha, scale } = layer;
        let (rank, scale) = (*rank, *scale);
        let start = self.start()?;
        let (d_in, d_out) = param.features();
        if start.reads_base() && rank > d_in.min(d_out) {
            let reason = format!("is {rank}, more than `{}` has singular values ({})", param.module, d_in.min(d_out));
            return Err(PeftError::config("r", reason));
        }
        if start == InitWeights::Orthogonal && !rank.is_multiple_of(2) {
            return Err(PeftError::config("r", format!("is {rank}, but the orthogonal start needs an even rank")));
        }
        let dora = self.use_dora;
        let mut parameters = rank * (d_in + d_out) + if dora { d_out } else { 0 };
        let build: Arc<dyn AdapterBuilder> = match param.kind {
            ParamKind::Embedding if self.lora_bias => {
                return Err(PeftError::config(
                    "lora_bias",
                    format!("cannot be used on the embedding `{}`", param.module),
                ));
            }
            ParamKind::Embedding => Arc::new(BuildEmbedding { rank, scale, start, dora }),
            ParamKind::Conv => Arc::new(BuildConv { rank, scale, start, dora }),
            _ => {
                parameters += if self.lora_bias { d_out } else { 0 };
                let (dropout, bias) = (self.lora_dropout, self.lora_bias);
                let given = self.data_init.as_ref().and_then(|it| it.get(&param.module)).cloned();
                Arc::new(BuildLinear { rank, scale, dropout, start, given, dora, bias })
            }
        };
        let mut label = format!("r={rank} α={alpha}");
        for (on, text) in [(self.use_rslora, " rslora"), (dora, " dora")] {
            label.push_str(if on { text } else { "" });
        }
        Ok(PlanRow { param: param.clone(), label, parameters, build })
    }
}
