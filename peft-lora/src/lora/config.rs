//! `adapter_config.json` of LoRA, field for field.

use indexmap::IndexMap;
use peft_core::config::fields::{self, Bias, SavedModules};
use peft_core::{Indices, Names, PeftError, Result, Selection, refuse_unknown};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::lora::data_init::calibration::DataInit;
use crate::lora::data_init::config::{CordaConfig, EvaConfig};
use crate::lora::init_weights::InitWeights;
use crate::lora::loftq::{Loftq, LoftqConfig};
use crate::trainable_tokens::TokenIndices;

/// `peft_type` of LoRA.
pub const PEFT_TYPE: &str = "LORA";

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
    /// [`eva::start`](crate::lora::data_init::eva::start) or [`corda::start`](crate::lora::data_init::corda::start) makes, `"eva"` or `"corda"`;
    /// and `"loftq"`, which computes with the layers quantised, or is completed by [`loftq::start`](crate::lora::data_init::loftq::start).
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
    /// Settings of a start with LoftQ.
    #[serde(default, deserialize_with = "empty_is_none", serialize_with = "none_is_empty")]
    pub loftq_config: Option<LoftqConfig>,
    /// What data gave to the layers. No file holds it: a folder holds the trained factors.
    #[serde(skip)]
    pub data_init: Option<DataInit>,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Rows of tables that are trained beside the adapter.
    #[serde(default)]
    pub trainable_token_indices: Option<TokenIndices>,
    /// Act only from the last occurrence of these tokens in a row on, and not at all in rows without them: activated LoRA
    /// (arXiv 2504.12397). The file has them as they came.
    #[serde(default)]
    pub alora_invocation_tokens: Option<Vec<i64>>,
    /// Ranges of the base's layers, `[start, end)`, that make a deeper model: `[[0, 4], [2, 5]]` runs the layers 0, 1, 2, 3,
    /// 2, 3, 4. They share the numbers of the base and have adapters of their own.
    #[serde(default)]
    pub layer_replication: Option<Vec<[usize; 2]>>,
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

/// The reference writes `{}` where there is nothing.
fn empty_is_none<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<LoftqConfig>, D::Error> {
    let fields = Option::<Map<String, Value>>::deserialize(from)?.filter(|it| !it.is_empty());
    fields.map(|it| serde_json::from_value(Value::Object(it)).map_err(D::Error::custom)).transpose()
}

/// As the reference writes it.
fn none_is_empty<S: Serializer>(config: &Option<LoftqConfig>, to: S) -> std::result::Result<S::Ok, S::Error> {
    match config {
        Some(config) => config.serialize(to),
        None => Map::<String, Value>::new().serialize(to),
    }
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
            loftq_config: None,
            data_init: None,
            task_type: None,
            trainable_token_indices: None,
            alora_invocation_tokens: None,
            layer_replication: None,
            other: Map::new(),
        }
    }
}

/// Subspace iterations of a start, of which the reference's examples take 4 or 16.
const MOST_ITERATIONS: usize = 1000;

/// Fields of LoRA that say nothing about the numbers of a trained adapter.
pub(crate) const HARMLESS: [&str; 3] = ["megatron_core", "qalora_group_size", "lora_ga_config"];

/// Fields that the reference writes whatever their value is, with what means "off".
pub(crate) const WRITTEN: [(&str, &str); 11] = [
    ("arrow_config", "null"),
    ("kasa_config", "null"),
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
            let reason =
                "true, false, gaussian, orthogonal, olora, pissa, pissa_niter_N, eva, corda and loftq are known";
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
                "loftq" => Loftq::of(&self.loftq_config.clone().unwrap_or_default()).map(InitWeights::Loftq),
                other => match other.strip_prefix("pissa_niter_").and_then(|it| it.parse().ok()) {
                    Some(iterations) if iterations > MOST_ITERATIONS => {
                        let reason = format!("asks for {iterations} iterations, and {MOST_ITERATIONS} are the limit");
                        Err(PeftError::config("init_lora_weights", reason))
                    }
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

    /// The sequence that activates the adapter, if it waits for one. As in the reference, an empty one is none.
    pub fn invocation(&self) -> Option<&[i64]> {
        self.alora_invocation_tokens.as_deref().filter(|it| !it.is_empty())
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
}
