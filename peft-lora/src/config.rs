//! `adapter_config.json` of LoRA, field for field, and the plan that it makes.

use std::sync::Arc;

use indexmap::IndexMap;
use peft_core::shared::{self, Bias, SavedModules};
use peft_core::{
    About, Build, Indices, Method, Names, Patterns, PeftError, Plan, PlanRow, Result, Selection, Site, SiteKind, Sites,
    Tuner, refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conv::BuildConv;
use crate::defaults;
use crate::embedding::BuildEmbedding;
use crate::linear::BuildLinear;
use crate::tokens::TokenIndices;

/// `peft_type` of LoRA.
pub const PEFT_TYPE: &str = "LORA";

/// `init_lora_weights`, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    Kaiming,
    Gaussian,
    Random,
    Orthogonal,
    Pissa(Option<usize>),
    Olora,
}

impl Start {
    pub(crate) fn reads_base(&self) -> bool {
        matches!(self, Self::Pissa(_) | Self::Olora)
    }
}

/// LoRA's configuration. Defaults are the reference's, except that targets must be given where a model has no defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of the update.
    #[serde(default = "default_rank")]
    pub r: usize,
    /// Numerator of the scale `lora_alpha / r`.
    #[serde(default = "default_alpha", serialize_with = "shared::integer_if_whole")]
    pub lora_alpha: f64,
    /// Share of the adapter's input that is dropped while training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Layers to adapt.
    #[serde(default)]
    pub target_modules: Option<Names>,
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
    #[serde(default, deserialize_with = "shared::null_is_default")]
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas of layers that differ from `lora_alpha`.
    #[serde(default, deserialize_with = "shared::null_is_default")]
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
    /// `true`, `false`, `"gaussian"`, `"orthogonal"`, `"olora"`, `"pissa"` or `"pissa_niter_N"`.
    #[serde(default = "default_init")]
    pub init_lora_weights: Value,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    #[serde(default)]
    pub fan_in_fan_out: bool,
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
            task_type: None,
            trainable_token_indices: None,
            other: Map::new(),
        }
    }
}

/// Fields of LoRA that say nothing about the numbers of a trained adapter.
const HARMLESS: [&str; 7] = [
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "ensure_weight_tying",
];

/// Fields that the reference writes whatever their value is, with what means "off".
const WRITTEN: [(&str, &str); 17] = [
    ("alora_invocation_tokens", "null"),
    ("arrow_config", "null"),
    ("corda_config", "null"),
    ("ensure_weight_tying", "false"),
    ("eva_config", "null"),
    ("kasa_config", "null"),
    ("layer_replication", "null"),
    ("loftq_config", "{}"),
    ("lora_ga_config", "null"),
    ("megatron_config", "null"),
    ("megatron_core", "\"megatron.core\""),
    ("monteclora_config", "null"),
    ("qalora_group_size", "16"),
    ("target_parameters", "null"),
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
        let config: Self = shared::parse_config(json)?;
        refuse_unknown(&config.other, &HARMLESS)?;
        Ok(config)
    }

    /// Whether the update counts from where it started, as the reference's counts from a base that it has moved: what was
    /// trained means something else beside the original base.
    pub fn counts_from_its_start(&self) -> bool {
        let moves = |name: &str| ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|it| name.starts_with(it));
        self.init_lora_weights.as_str().is_some_and(|it| moves(&it.to_lowercase()))
    }

    fn start(&self) -> Result<Start> {
        let unknown = |value: &str| {
            let reason = "true, false, gaussian, orthogonal, olora, pissa and pissa_niter_N are known";
            Err(PeftError::unsupported(format!("init_lora_weights = {value}"), reason))
        };
        match &self.init_lora_weights {
            Value::Bool(true) | Value::Null => Ok(Start::Kaiming),
            Value::Bool(false) => Ok(Start::Random),
            Value::String(name) => match name.to_lowercase().as_str() {
                "gaussian" => Ok(Start::Gaussian),
                "orthogonal" => Ok(Start::Orthogonal),
                "olora" => Ok(Start::Olora),
                "pissa" => Ok(Start::Pissa(None)),
                other => match other.strip_prefix("pissa_niter_").and_then(|it| it.parse().ok()) {
                    Some(iterations) => Ok(Start::Pissa(Some(iterations))),
                    // EVA starts from data but leaves the base as it is: a trained adapter is an ordinary one.
                    None if other == "eva" => Ok(Start::Kaiming),
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
        shared::check_positive("r", self.r)?;
        if !self.lora_alpha.is_finite() {
            return Err(PeftError::config("lora_alpha", "must be a finite number"));
        }
        shared::check_dropout("lora_dropout", self.lora_dropout)?;
        let start = self.start()?;
        if self.lora_bias && (self.use_dora || start.reads_base() || self.bias != Bias::None) {
            let reason = "cannot be combined with `use_dora`, `bias`, or a start that reads the base (pissa, olora)";
            return Err(PeftError::config("lora_bias", reason));
        }
        Ok(())
    }
}

impl Method for LoraConfig {
    const ABOUT: About = About {
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

impl Tuner for LoraConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn plan(&self, sites: &Sites) -> Result<Plan> {
        self.check()?;
        refuse_unknown(&self.other, &HARMLESS)?;
        let defaults = sites.model_type.as_deref().and_then(defaults::target_modules);
        let selected = self.selection().resolve(sites, defaults)?;
        let ranks = Patterns::new("rank_pattern", &self.rank_pattern)?;
        let alphas = Patterns::new("alpha_pattern", &self.alpha_pattern)?;

        let mut plan = Plan::new("LoRA", sites);
        for site in &selected.sites {
            let rank = ranks.get(&site.module).copied().unwrap_or(self.r);
            let alpha = alphas.get(&site.module).copied().unwrap_or(self.lora_alpha);
            plan.rows.push(self.row(site, rank, alpha)?);
        }
        let adapted: Vec<&str> = selected.sites.iter().map(|it| it.module.as_str()).collect();
        for (field, unused) in [
            ("rank_pattern", ranks.unused(&self.rank_pattern, adapted.iter().copied())),
            ("alpha_pattern", alphas.unused(&self.alpha_pattern, adapted.iter().copied())),
        ] {
            plan.notes.extend(unused.iter().map(|key| format!("{field} `{key}` matches no adapted layer")));
        }
        let foreign =
            selected.sites.iter().any(|it| matches!(it.owner.as_str(), "Linear" | "Conv1d" | "Conv2d" | "Conv3d"));
        if self.lora_dropout > 0.0 && foreign {
            plan.notes.push("lora_dropout acts only in layers that call `adapted`, not in `burn::nn` forwards".into());
        }
        let saved = self.saved_modules();
        self.bias.add_to(&mut plan, sites, &saved);
        if let Some(tokens) = &self.trainable_token_indices {
            tokens.add_to(&mut plan, sites, &saved)?;
        }
        saved.add_to(&mut plan, sites)?;
        plan.unmatched = selected.unmatched;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        let mut json = shared::config_json(self, &self.saved_modules())?;
        for (field, off) in WRITTEN {
            if !json.contains_key(field) {
                let off = serde_json::from_str(off).map_err(|error| PeftError::Invalid(error.to_string()))?;
                json.insert(field.to_owned(), off);
            }
        }
        Ok(json)
    }
}

impl LoraConfig {
    fn row(&self, site: &Arc<Site>, rank: usize, alpha: f64) -> Result<PlanRow> {
        if rank == 0 {
            return Err(PeftError::config("rank_pattern", format!("gives `{}` the rank 0", site.module)));
        }
        let start = self.start()?;
        let scale = alpha / if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        let (d_in, d_out) = site.features();
        if start.reads_base() && rank > d_in.min(d_out) {
            let reason = format!("is {rank}, more than `{}` has singular values ({})", site.module, d_in.min(d_out));
            return Err(PeftError::config("r", reason));
        }
        if start == Start::Orthogonal && !rank.is_multiple_of(2) {
            return Err(PeftError::config("r", format!("is {rank}, but the orthogonal start needs an even rank")));
        }
        let dora = self.use_dora;
        let mut parameters = rank * (d_in + d_out) + if dora { d_out } else { 0 };
        let build: Arc<dyn Build> = match site.kind {
            SiteKind::Embedding if self.lora_bias => {
                return Err(PeftError::config(
                    "lora_bias",
                    format!("cannot be used on the embedding `{}`", site.module),
                ));
            }
            SiteKind::Embedding => Arc::new(BuildEmbedding { rank, scale, start, dora }),
            SiteKind::Conv => Arc::new(BuildConv { rank, scale, start, dora }),
            _ => {
                parameters += if self.lora_bias { d_out } else { 0 };
                let (dropout, bias) = (self.lora_dropout, self.lora_bias);
                Arc::new(BuildLinear { rank, scale, dropout, start, dora, bias })
            }
        };
        let mut label = format!("r={rank} α={alpha}");
        for (on, text) in [(self.use_rslora, " rslora"), (dora, " dora")] {
            label.push_str(if on { text } else { "" });
        }
        Ok(PlanRow { site: site.clone(), label, parameters, build })
    }
}
