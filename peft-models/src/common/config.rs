//! What `config.json` says, whatever the architecture.

use std::path::Path;

use burn::tensor::Tensor;
use peft_core::files::plain::read_text;
use peft_core::nn::Dropout;
use peft_core::quant::StoredQuant;
use peft_core::{Labels, PeftError, Result, is_off, ops};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// `config.json`, read but not yet understood.
#[derive(Debug, Clone)]
pub struct RawConfig {
    path: std::path::PathBuf,
    /// The JSON object.
    pub json: Map<String, Value>,
}

impl RawConfig {
    /// Reads `config.json` of a folder, or `model_index.json` of a pipeline of diffusers.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let files = ["config.json", "model_index.json"].map(|it| folder.join(it));
        let [path, _] = &files;
        let path = files.iter().find(|it| it.is_file()).unwrap_or(path).clone();
        if !path.is_file() {
            let reason = "it has no `config.json`; give the folder of a Hugging Face checkpoint";
            return Err(PeftError::bad_file(folder, reason));
        }
        let text = read_text(&path)?;
        let json = serde_json::from_str(&text).map_err(|error| PeftError::bad_file(&path, error))?;
        Ok(Self { path, json })
    }

    /// The same from text, for configurations that lie in no folder.
    pub fn parse_text(text: &str) -> Result<Self> {
        let path = std::path::PathBuf::from("config.json");
        let json = serde_json::from_str(text).map_err(|error| PeftError::bad_file(&path, error))?;
        Ok(Self { path, json })
    }

    /// A configuration that is yet to be written.
    pub fn of(json: Map<String, Value>) -> Self {
        Self { path: "config.json".into(), json }
    }

    /// The file that was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `model_type`, by which an implementation is chosen; in files of diffusers the class.
    pub fn model_type(&self) -> Result<&str> {
        ["model_type", "_class_name"]
            .iter()
            .find_map(|field| self.json.get(*field)?.as_str())
            .ok_or_else(|| PeftError::bad_file(&self.path, "it names no `model_type`"))
    }

    /// The same with other names of fields, given as (other, own): an architecture may know two names of one thing.
    pub fn renamed(&self, names: &[(&str, &str)]) -> Self {
        let mut raw = self.clone();
        for (other, own) in names {
            if let Some(value) = raw.json.remove(*other).filter(|it| !it.is_null()) {
                raw.json.insert((*own).to_owned(), value);
            }
        }
        raw
    }

    /// The fields that an architecture reads.
    ///
    /// `must_be_off` are switches of the reference's implementation that change numbers and that ours does not have.
    pub fn parse<T: DeserializeOwned>(&self, must_be_off: &[&str]) -> Result<T> {
        self.refuse(UNKNOWN_TO_ALL.iter().chain(&["is_encoder_decoder"]).chain(must_be_off))?;
        self.understand()
    }

    /// [`RawConfig::parse`] for architectures that read a source and write a target.
    pub fn parse_encoder_decoder<T: DeserializeOwned>(&self, must_be_off: &[&str]) -> Result<T> {
        self.refuse(UNKNOWN_TO_ALL.iter().chain(must_be_off))?;
        self.understand()
    }

    /// How the linear layers of the checkpoint are stored, if not in full.
    ///
    /// # Errors
    /// If they are stored in a way that cannot be read.
    pub fn quantization(&self) -> Result<Option<StoredQuant>> {
        match self.json.get("quantization_config") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(config)) => {
                StoredQuant::from_json(config).map(Some).map_err(|error| error.in_file(&self.path))
            }
            Some(_) => Err(PeftError::bad_file(&self.path, "`quantization_config` is no object")),
        }
    }

    fn refuse<'a>(&self, must_be_off: impl Iterator<Item = &'a &'a str>) -> Result<()> {
        for field in must_be_off {
            if let Some(value) = self.json.get(*field).filter(|it| !is_off(it)) {
                let reason = format!("is {value} in {}, which this version cannot compute", self.path.display());
                return Err(PeftError::config(*field, reason));
            }
        }
        Ok(())
    }

    /// Refuses what would be allocated, or overflow, before anybody could compare it with the weights.
    fn check_size(&self, field: &str, value: &Value) -> Result<()> {
        if let Value::Object(fields) = value {
            return fields.iter().try_for_each(|(name, value)| self.check_size(name, value));
        }
        if let Value::Array(values) = value {
            return values.iter().try_for_each(|it| self.check_size(field, it));
        }
        // Nothing can be computed with the root or the power of such a number.
        let is_positive = ["eps", "epsilon", "theta", "initializer_range"].iter().any(|it| field.ends_with(it));
        let is_factor = ["factor", "low_freq_factor", "high_freq_factor"].contains(&field);
        if value.as_f64().is_some_and(|it| (is_positive && it < 0.0) || (is_factor && it <= 0.0)) {
            return Err(PeftError::bad_file(&self.path, format!("`{field}` is {value}, which must be positive")));
        }
        // A wavelength is no size.
        let Some(number) = value.as_u64().filter(|_| !field.contains("theta")) else { return Ok(()) };
        let limit = match field {
            _ if LAYERS.contains(&field) => MOST_LAYERS,
            _ if SIDES.contains(&field) => LARGEST_SIDE,
            _ => LARGEST_SIZE,
        };
        match number > limit {
            true => Err(PeftError::bad_file(&self.path, format!("`{field}` is {number}, and {limit} is the limit"))),
            false => Ok(()),
        }
    }

    fn understand<T: DeserializeOwned>(&self) -> Result<T> {
        self.quantization()?;
        self.json.iter().try_for_each(|(field, value)| self.check_size(field, value))?;
        serde_json::from_value(Value::Object(self.json.clone())).map_err(|error| PeftError::bad_file(&self.path, error))
    }
}

/// More than any model has; a model is built of as many blocks before a weight is read.
const MOST_LAYERS: u64 = 10_000;

/// More than any model has of anything. Products of two such numbers do not overflow.
const LARGEST_SIZE: u64 = 1 << 28;

/// Sides of patches and windows, whose squares are sizes.
const SIDES: [&str; 5] = ["patch_size", "patch_sizes", "sr_ratios", "strides", "window_size"];

/// More than any patch or window is wide.
const LARGEST_SIDE: u64 = 1 << 12;

/// The numbers of layers, as architectures call them.
const LAYERS: [&str; 10] = [
    "num_hidden_layers",
    "num_encoder_blocks",
    "depths",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
];

/// Refuses a width that its number of heads does not divide; both with the names of their fields.
///
/// # Errors
/// Names the field of the heads.
pub fn heads_divide(heads: (&str, usize), width: (&str, usize)) -> Result<()> {
    if heads.1 > 0 && width.1.is_multiple_of(heads.1) {
        return Ok(());
    }
    let reason = format!("is {}, which does not divide `{}` = {}", heads.1, width.0, width.1);
    Err(PeftError::config(heads.0, reason))
}

/// What `layer_types` says of windows.
pub(crate) fn types_of(windows: &[Option<usize>]) -> Vec<String> {
    let name = |window: &Option<usize>| if window.is_some() { SLIDING_ATTENTION } else { FULL_ATTENTION };
    windows.iter().map(|it| name(it).to_owned()).collect()
}

/// The window of every layer, as `layer_types` names them.
pub(crate) fn windows_of(types: &[String], layers: usize, window: Option<usize>) -> Result<Vec<Option<usize>>> {
    if types.len() != layers {
        let reason = format!("names {} layers, `num_hidden_layers` is {layers}", types.len());
        return Err(PeftError::config("layer_types", reason));
    }
    let window_of = |kind: &String| match kind.as_str() {
        FULL_ATTENTION => Ok(None),
        SLIDING_ATTENTION if window.is_some() => Ok(window),
        SLIDING_ATTENTION => {
            let reason = "names `sliding_attention`, but no window is given and switched on";
            Err(PeftError::config("layer_types", reason))
        }
        other => Err(PeftError::unsupported(format!("layer type `{other}`"), "only full and sliding attention are")),
    };
    types.iter().map(window_of).collect()
}

/// A layer in which every query sees all that came before.
pub(crate) const FULL_ATTENTION: &str = "full_attention";

/// A layer in which a query sees what came before within a window.
pub(crate) const SLIDING_ATTENTION: &str = "sliding_attention";

/// Switches that change the numbers of several architectures.
const UNKNOWN_TO_ALL: [&str; 6] = [
    "add_cross_attention",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "pruned_heads",
    "num_local_experts",
    "rope_interleaved",
];

/// Fields of heads, in every architecture's `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LabelConfig {
    num_labels: Option<usize>,
    id2label: Option<Map<String, Value>>,
    /// `regression`, `single_label_classification` or `multi_label_classification`.
    pub problem_type: Option<String>,
    /// Padding token, which decoders must know to find a row's last token.
    pub pad_token_id: Option<i64>,
    classifier_dropout: Option<f64>,
    tie_word_embeddings: Option<bool>,
}

impl LabelConfig {
    /// Number of outputs; the reference's default is 2.
    pub fn num_labels(&self) -> usize {
        self.num_labels.or_else(|| self.id2label.as_ref().map(Map::len)).unwrap_or(2)
    }

    /// Whether the masked-LM head is the embedding matrix read the other way.
    pub(crate) fn is_tied(&self) -> bool {
        self.tie_word_embeddings.unwrap_or(true)
    }

    /// What drops elements before a decoder's tokens are scored: as the file says, else as in the layers where they have
    /// such a number, else 0.1.
    pub(crate) fn dropout(&self, hidden_dropout: Option<f64>) -> Dropout {
        Dropout::new(self.classifier_dropout.or(hidden_dropout).unwrap_or(0.1))
    }

    /// What the outputs mean, if somebody named them: `LABEL_0`, `LABEL_1`, … are what transformers fills in.
    pub fn labels(&self) -> Option<Labels> {
        let filled_in = |(id, name): (usize, &String)| *name == format!("LABEL_{id}");
        let names = self.label_names().filter(|names| !names.iter().enumerate().all(filled_in))?;
        Some(Labels { problem_type: self.problem_type.clone(), names })
    }

    /// The names of the labels, if the checkpoint has as many names as labels.
    pub fn label_names(&self) -> Option<Vec<String>> {
        let map = self.id2label.as_ref().filter(|it| it.len() == self.num_labels())?;
        let mut names: Vec<(usize, String)> =
            map.iter().filter_map(|(id, name)| Some((id.parse().ok()?, name.as_str()?.to_owned()))).collect();
        names.sort();
        Some(names.into_iter().map(|(_, name)| name).collect())
    }
}

/// The activation functions that checkpoints name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Exact GELU.
    Gelu,
    /// GELU by a hyperbolic tangent.
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
    /// `x · σ(1.702 x)`
    QuickGelu,
    /// `max(x, 0)`
    Relu,
    /// `x · σ(x)`
    #[serde(alias = "swish")]
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Element by element.
    pub fn apply<const D: usize>(self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => ops::gelu(input),
            Self::GeluNew => ops::gelu_tanh(input),
            Self::QuickGelu => ops::quick_gelu(input),
            Self::Relu => burn::tensor::activation::relu(input),
            Self::Silu => ops::silu(input),
            Self::Tanh => input.tanh(),
        }
    }

    /// `act(gate) · up`, the middle of a gated MLP.
    pub fn gate<const D: usize>(self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Silu => ops::silu_mul(gate, up),
            other => other.apply(gate) * up,
        }
    }
}
