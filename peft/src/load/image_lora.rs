//! LoRA files of image programs, read into folders of PEFT: those of diffusers in three generations, and kohya's.
//!
//! One file holds the factors of all parts of a pipeline. Whose they are is told by the beginnings of keys, and which layer
//! by the paths of the model: kohya writes underscores for dots, which only the model can undo, and for SDXL the names of
//! another program (`ldm_names.rs`).
//!
//! Sources: `_convert_unet_lora_key` and `_convert_text_encoder_lora_key` in `diffusers/loaders/lora_conversion_utils.py`,
//! `convert_unet_state_dict_to_peft` in `diffusers/utils/state_dict_utils.py` (0.42).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_core::files::checkpoint::{FloatType, Stored, TensorFile};
use peft_core::spec::keys::KEY_PREFIX;
use peft_core::{ModelSpec, Names, ParamSpec, PeftConfig, PeftError, REFERENCE_VERSION, Result, write_folder_in};
use peft_lora::LoraConfig;
use serde_json::{Map, Value};

use super::ldm_names::ldm_names;

/// The name under which diffusers keeps a LoRA of a pipeline.
pub const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";

/// What diffusers writes into the header: the configurations of PEFT, each field behind the name of its part.
const METADATA: &str = "lora_adapter_metadata";

/// A part of a pipeline that a file may hold factors for.
pub struct Part<'a> {
    /// Its folder: `unet`, `text_encoder`, `text_encoder_2`.
    pub name: &'a str,
    /// Its layers.
    pub spec: &'a ModelSpec,
}

/// What a tensor is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    A,
    B,
    Alpha,
    Magnitude,
}

/// Ends of keys. The longer ones come first.
const ENDS: [(&str, Role); 13] = [
    (".lora_linear_layer.down.weight", Role::A),
    (".lora_linear_layer.up.weight", Role::B),
    ("_lora.down.weight", Role::A),
    ("_lora.up.weight", Role::B),
    (".lora.down.weight", Role::A),
    (".lora.up.weight", Role::B),
    (".lora_down.weight", Role::A),
    (".lora_up.weight", Role::B),
    (".lora_A.weight", Role::A),
    (".lora_B.weight", Role::B),
    (".lora_magnitude_vector", Role::Magnitude),
    (".dora_scale", Role::Magnitude),
    (".alpha", Role::Alpha),
];

/// Beginnings of kohya's keys, for each part.
const KOHYA: [(&str, &str); 4] = [
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
];

/// Ends of layers of the first LoRAs of diffusers, which belonged to attention processors.
const OLD_UNET: [(&str, &str); 4] =
    [(".to_q", ".to_q"), (".to_k", ".to_k"), (".to_v", ".to_v"), (".to_out", ".to_out.0")];
const OLD_TEXT: [(&str, &str); 4] =
    [(".to_q", ".q_proj"), (".to_k", ".k_proj"), (".to_v", ".v_proj"), (".to_out", ".out_proj")];

/// The factors of one layer.
#[derive(Default)]
struct Factors {
    a: Option<TensorData>,
    b: Option<TensorData>,
    alpha: Option<f64>,
    magnitude: Option<TensorData>,
}

/// Which file of a folder, or which file itself, is a LoRA of an image program.
pub fn lora_file(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    let file = path.join(DIFFUSERS_FILE);
    file.is_file().then_some(file)
}

/// Writes a folder of PEFT for each part that the file holds factors for, below `output`, and gives the names of the parts.
///
/// # Errors
/// If the file is damaged, holds other things than LoRA, or layers that no part has.
pub fn unpack(file: &Path, parts: &[Part<'_>], output: &Path) -> Result<Vec<String>> {
    let tensors = TensorFile::open(file)?;
    let places: Vec<Places<'_>> = parts.iter().map(Places::new).collect();
    let mut found: BTreeMap<usize, BTreeMap<String, Factors>> = BTreeMap::new();
    for key in tensors.keys() {
        let bad = |reason: String| PeftError::bad_file(file, reason);
        let end = ENDS.iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, *end, *role)));
        let Some((stem, end, role)) = end else {
            let reason = "which is no part of LoRA: other methods of LyCORIS and embeddings are not read";
            return Err(bad(format!("it holds `{key}`, {reason}")));
        };
        let place = places.iter().enumerate().find_map(|(at, it)| Some((at, it.layer(stem, end)?)));
        let Some((at, layer)) = place else {
            let names: Vec<&str> = parts.iter().map(|it| it.name).collect();
            return Err(bad(format!("it holds `{key}`, and no layer of {} is called so", names.join(", "))));
        };
        let factors = found.entry(at).or_default().entry(layer.module.clone()).or_default();
        let data = tensors.floats(&key)?;
        match role {
            Role::A => factors.a = Some(fitting(data, layer, true).ok_or_else(|| bad(misshapen(&key, layer)))?),
            Role::B => factors.b = Some(fitting(data, layer, false).ok_or_else(|| bad(misshapen(&key, layer)))?),
            Role::Alpha => factors.alpha = data.iter::<f32>().next().map(f64::from),
            Role::Magnitude => factors.magnitude = Some(data),
        }
    }
    let metadata = metadata(&tensors)?;
    let mut names = Vec::new();
    for (at, layers) in found {
        let name = parts[at].name;
        write(file, name, layers, &metadata, &output.join(name))?;
        names.push(name.to_owned());
    }
    match names.is_empty() {
        true => Err(PeftError::bad_file(file, "it holds no tensor")),
        false => Ok(names),
    }
}

/// The layers of a part, by the names that files may give them.
struct Places<'a> {
    part: &'a str,
    by_path: HashMap<&'a str, &'a ParamSpec>,
    by_underscores: HashMap<String, &'a ParamSpec>,
}

impl<'a> Places<'a> {
    fn new(part: &Part<'a>) -> Self {
        let layers = || part.spec.layers().map(|it| &**it);
        let by_path: HashMap<_, _> = layers().map(|it| (it.module.as_str(), it)).collect();
        let mut by_underscores: HashMap<_, _> = layers().map(|it| (it.module.replace('.', "_"), it)).collect();
        if part.name == "unet" {
            let paths: Vec<&str> = by_path.keys().copied().collect();
            by_underscores
                .extend(ldm_names(&paths).into_iter().map(|(name, path)| (name.replace('.', "_"), by_path[path])));
        }
        Self { part: part.name, by_path, by_underscores }
    }

    /// The layer that a key without its end means.
    fn layer(&self, stem: &str, end: &str) -> Option<&'a ParamSpec> {
        let of_kohya = KOHYA.iter().filter(|it| it.1 == self.part).find_map(|it| stem.strip_prefix(it.0));
        if let Some(name) = of_kohya {
            return self.by_underscores.get(name).copied();
        }
        let path = match stem.strip_prefix(self.part).and_then(|it| it.strip_prefix('.')) {
            Some(path) => path,
            // The first files held nothing but processors of the noise predictor, and did not say so.
            None if self.part == "unet" && stem.contains(".processor.") => stem,
            None => return None,
        };
        // PEFT's own prefix, which some programs leave in.
        let path = path.strip_prefix(KEY_PREFIX).unwrap_or(path).replace(".processor.", ".");
        let is_old = end.starts_with("_lora");
        let old = if self.part == "unet" { OLD_UNET } else { OLD_TEXT };
        let path = match old.iter().find_map(|(old, new)| Some((path.strip_suffix(old)?, new))) {
            Some((head, new)) if is_old => format!("{head}{new}"),
            _ => path,
        };
        // transformers 5 leaves a level out.
        let with_stack = format!("text_model.{path}");
        [path.as_str(), with_stack.as_str()].into_iter().find_map(|it| self.by_path.get(it)).copied()
    }
}

/// A factor in the shape that PEFT gives it: 1 × 1 convolutions and linear layers are written either way.
fn fitting(data: TensorData, layer: &ParamSpec, is_a: bool) -> Option<TensorData> {
    let given = data.shape().as_slice().to_vec();
    let kernel = layer.shape.get(2..).unwrap_or_default();
    let (d_in, d_out) = match kernel.is_empty() {
        true => layer.features(),
        false => (layer.shape[1], layer.shape[0]),
    };
    let rank = *given.get(if is_a { 0 } else { 1 })?;
    let wanted: Vec<usize> = match is_a {
        true => [&[rank, d_in], kernel].concat(),
        false => [&[d_out, rank][..], &vec![1; kernel.len()]].concat(),
    };
    let without_ones = |shape: &[usize]| {
        let end = shape.iter().rposition(|it| *it != 1).map_or(0, |it| it + 1);
        shape[..end.max(2).min(shape.len())].to_vec()
    };
    (without_ones(&given) == without_ones(&wanted)).then(|| {
        let values: Vec<f32> = data.iter::<f32>().collect();
        TensorData::new(values, wanted)
    })
}

fn misshapen(key: &str, layer: &ParamSpec) -> String {
    format!("`{key}` has a shape that does not fit `{}` {:?}", layer.module, layer.shape)
}

/// What diffusers says of configurations in the header.
fn metadata(file: &TensorFile) -> Result<Map<String, Value>> {
    let text = file.header().as_ref().and_then(|it| it.get(METADATA));
    text.map_or(Ok(Map::new()), |text| {
        serde_json::from_str(text)
            .map_err(|error| PeftError::bad_file(file.path(), format!("`{METADATA}` in its header: {error}")))
    })
}

/// Writes the folder of one part.
fn write(
    file: &Path,
    part: &str,
    layers: BTreeMap<String, Factors>,
    metadata: &Map<String, Value>,
    output: &Path,
) -> Result<()> {
    let of_part: Map<String, Value> = metadata
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(part)?.strip_prefix('.')?.to_owned(), value.clone())))
        .collect();
    let said = (!of_part.is_empty()).then(|| LoraConfig::parse(of_part)).transpose();
    let said = said.map_err(|error| error.in_file(file))?;

    let mut tensors = Vec::new();
    let (mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new());
    let mut use_dora = false;
    for (module, factors) in &layers {
        let (Some(a), Some(b)) = (&factors.a, &factors.b) else {
            return Err(PeftError::bad_file(file, format!("a factor of `{module}` of {part} is missing")));
        };
        let rank = a.shape().as_slice()[0];
        if b.shape().as_slice()[1] != rank {
            return Err(PeftError::bad_file(file, format!("the factors of `{module}` of {part} have unlike ranks")));
        }
        ranks.insert(module.clone(), rank);
        // Where nobody says otherwise the update is the product.
        alphas.insert(module.clone(), factors.alpha.unwrap_or(rank as f64));
        let mut push = |name: &str, data: &TensorData| {
            tensors.push(Stored { key: format!("{KEY_PREFIX}{module}.{name}"), data: data.clone() });
        };
        push("lora_A.weight", a);
        push("lora_B.weight", b);
        if let Some(magnitude) = &factors.magnitude {
            use_dora = true;
            push("lora_magnitude_vector", magnitude);
        }
    }
    let config = match said {
        Some(config) => LoraConfig { target_modules: Some(Names::List(layers.into_keys().collect())), ..config },
        None => {
            let (r, lora_alpha) = (ranks.values().copied().max().unwrap_or(1), most_frequent(&alphas));
            LoraConfig {
                r,
                lora_alpha,
                use_dora,
                target_modules: Some(Names::List(layers.into_keys().collect())),
                rank_pattern: ranks.into_iter().filter(|it| it.1 != r).map(|(key, it)| (anchored(&key), it)).collect(),
                alpha_pattern: alphas
                    .into_iter()
                    .filter(|it| it.1 != lora_alpha)
                    .map(|(key, it)| (anchored(&key), it))
                    .collect(),
                ..LoraConfig::default()
            }
        }
    };
    let mut json = config.to_json()?;
    json.insert("peft_type".into(), peft_lora::PEFT_TYPE.into());
    json.insert("peft_version".into(), REFERENCE_VERSION.into());
    json.insert("inference_mode".into(), true.into());
    json.entry("base_model_name_or_path").or_insert(Value::Null);
    write_folder_in(output, &json, tensors, FloatType::F32)
}

/// The whole path of a layer as a pattern.
fn anchored(module: &str) -> String {
    format!("^{}", module.replace('.', r"\."))
}

fn most_frequent(alphas: &BTreeMap<String, f64>) -> f64 {
    let count = |alpha: f64| alphas.values().filter(|it| **it == alpha).count();
    alphas.values().copied().max_by_key(|it| count(*it)).unwrap_or(1.0)
}
