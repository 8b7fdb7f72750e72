//! The weights of Hugging Face folders: whole checkpoints, sharded or not, and models filled from them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::error::{LoadReport, PeftError, Result};
pub use crate::files::dtype::{BaseDtype, Dtype, FloatType, Placement};
use crate::files::grouped_config;
use crate::files::inside::inside;
use crate::files::plain::read_text;
pub use crate::files::safetensors::{
    Stored, TensorFile, check_finite, serialize, write_atomically, write_tensors, write_together,
};
use crate::quant::{GroupedConfig, Packed, QuantConfig, QuantFormat, Quantized, Rounding, packed_tensor};
use crate::sharding::ShardedBase;
use crate::spec::{
    MapParams, ModelSpec, ParamSpec, PathStack, VisitParams, contains_module, is_suffix, map_params, visit_params,
};

/// File names under which a folder may keep its weights, in order of preference.
const WEIGHT_FILES: [&str; 2] = ["model.safetensors", "diffusion_pytorch_model.safetensors"];

/// What diffusers puts into the names of files that hold the same weights in half precision. They are read where there is
/// nothing else.
const HALF_PRECISION: &str = "fp16";

/// The weights of a Hugging Face folder: one file, or shards with an index.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<TensorFile>,
    keys: BTreeMap<String, usize>,
    /// Path of a parameter to another key that may hold it.
    aliases: HashMap<String, String>,
    dtype: BaseDtype,
    quantize: Option<QuantConfig>,
    /// From which size on activations are not rounded to int8, where they are.
    threshold: Option<f32>,
    shards: Option<ShardedBase>,
    /// How words of codes are filled, if there are such.
    groups: Option<GroupedConfig>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if !folder.is_dir() {
            return Err(PeftError::bad_file(folder, "it is not a folder; give the folder that holds `config.json`"));
        }
        let whole = WEIGHT_FILES.map(|name| (name.to_owned(), format!("{name}.index.json")));
        let half = WEIGHT_FILES.map(|name| {
            let stem = name.trim_end_matches(".safetensors");
            (format!("{stem}.{HALF_PRECISION}.safetensors"), format!("{name}.index.{HALF_PRECISION}.json"))
        });
        for (name, index) in whole.iter().chain(&half) {
            if folder.join(name).is_file() {
                return Self::from_files(folder, vec![TensorFile::open(folder.join(name))?], None);
            }
            let index = folder.join(index);
            if index.is_file() {
                return Self::open_shards(folder, &index);
            }
        }
        let torch = folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists();
        let reason = if torch {
            "it has only `pytorch_model.bin`; save it once from Python with `safe_serialization=True`".to_owned()
        } else {
            format!("it has neither `{}` nor an index of shards", WEIGHT_FILES[0])
        };
        Err(PeftError::bad_file(folder, reason))
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = read_text(index)?;
        let parsed: Index = serde_json::from_str(&text).map_err(|error| PeftError::bad_file(index, error))?;
        let mut names: Vec<&String> = parsed.weight_map.values().collect();
        names.sort();
        names.dedup();
        for name in &names {
            let reason = |why: String| PeftError::bad_file(index, format!("it lists the shard `{name}`: {why}"));
            inside(folder, name).map_err(reason)?;
        }
        let absent: Vec<&str> = names.iter().filter(|it| !folder.join(it).is_file()).map(|it| it.as_str()).collect();
        if !absent.is_empty() {
            let reason = format!("it lists shards that are not there: {}; fetch them", absent.join(", "));
            return Err(PeftError::bad_file(index, reason));
        }
        let files = names.iter().map(|it| TensorFile::open(folder.join(it))).collect::<Result<Vec<_>>>()?;
        Self::from_files(folder, files, Some((index, &parsed.weight_map)))
    }

    fn from_files(
        folder: &Path,
        files: Vec<TensorFile>,
        index: Option<(&Path, &BTreeMap<String, String>)>,
    ) -> Result<Self> {
        let mut keys = BTreeMap::new();
        for (at, file) in files.iter().enumerate() {
            keys.extend(file.keys().into_iter().map(|key| (key, at)));
        }
        if let Some((path, listed)) = index
            && let Some((key, shard)) = listed.iter().find(|(key, _)| !keys.contains_key(*key))
        {
            return Err(PeftError::bad_file(path, format!("it lists `{key}` in {shard}, which does not hold it")));
        }
        let groups =
            keys.keys().any(|it| it.ends_with(".qweight")).then(|| grouped_config::config(folder)).transpose()?;
        Ok(Self {
            folder: folder.to_path_buf(),
            groups,
            files,
            keys,
            aliases: HashMap::new(),
            dtype: BaseDtype::default(),
            quantize: None,
            threshold: None,
            shards: None,
        })
    }

    /// The checkpoint whose frozen matrices are stored in these numbers when it is loaded.
    ///
    /// Of what is not in single precision, only the layers of [`nn`](crate::nn) know: a model with those of `burn::nn` is
    /// loaded in [`BaseDtype::Float32`].
    pub fn with_dtype(mut self, dtype: BaseDtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// The checkpoint whose linear layers are quantised when it is loaded, matrix by matrix.
    ///
    /// # Errors
    /// If it is quantised already.
    pub fn with_quantization(mut self, quantize: Option<QuantConfig>) -> Result<Self> {
        if quantize.is_some()
            && let Some(key) = self.keys().find(|it| self.is_quantised(it))
        {
            let reason = format!("`{key}` is quantised already: load the checkpoint as it is, without `quantize`");
            return Err(PeftError::bad_file(&self.folder, reason));
        }
        self.quantize = quantize;
        Ok(self)
    }

    /// The checkpoint whose layers in int8 round what enters them, but for numbers from `threshold` on.
    ///
    /// # Errors
    /// If nothing is in int8, or is to be so.
    pub fn with_llm_int8_threshold(mut self, threshold: Option<f32>) -> Result<Self> {
        let becomes = self.quantize.as_ref().is_some_and(|it| it.format == QuantFormat::Int8);
        if let Some(threshold) = threshold {
            let wrong =
                |reason: &str| Err(PeftError::config("llm_int8_threshold", format!("is {threshold}, {reason}")));
            if !(threshold.is_finite() && threshold >= 0.0) {
                return wrong("expected a size: 0 for none that is too large, or a number above");
            }
            if !becomes && !self.has_int8() {
                return wrong("but no layer is in int8: quantise to int8, or leave it out");
            }
        }
        self.threshold = threshold;
        Ok(self)
    }

    /// From which size on numbers that enter a layer of this format are not rounded, where they are.
    pub(super) fn threshold_of(&self, format: QuantFormat) -> Option<f32> {
        self.threshold.filter(|_| format == QuantFormat::Int8)
    }

    /// The checkpoint of whose matrices this process keeps a part, when it is loaded. See [`crate::sharding`].
    pub fn with_shards(mut self, shards: Option<ShardedBase>) -> Self {
        self.shards = shards;
        self
    }

    /// How words of codes are filled, in a checkpoint of GPTQ or AWQ.
    pub fn groups(&self) -> Option<&GroupedConfig> {
        self.groups.as_ref()
    }

    /// Whether some matrix is stored in codes.
    pub fn has_quantised(&self) -> bool {
        self.keys().any(|it| self.is_quantised(it))
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Says where a parameter lies if it does not lie under its own name: a tied one has as many names as places.
    pub fn also_under(&mut self, path: impl Into<String>, key: impl Into<String>) {
        self.aliases.insert(path.into(), key.into());
    }

    /// Does as if the checkpoint did not hold a tensor.
    pub fn leave_out(&mut self, key: &str) {
        self.keys.remove(key);
    }

    /// All keys of all files, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Whether some file holds the key.
    pub fn contains(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// The file that holds a key.
    pub fn file(&self, key: &str) -> Option<&TensorFile> {
        self.keys.get(key).map(|at| &self.files[*at])
    }

    /// The file that a parameter of a model was read from, whose path may have a prefix more or less than its key.
    pub fn file_of(&self, path: &str) -> Option<&Path> {
        self.file(self.key_of(path)?).map(TensorFile::path)
    }

    /// The numbers of a parameter of a model, found in the same way.
    ///
    /// # Errors
    /// If it is not there, or there in codes.
    pub fn floats_of(&self, path: &str) -> Result<TensorData> {
        match self.key_of(path).and_then(|key| Some((key, self.file(key)?))) {
            Some((key, file)) if !self.is_quantised(key) => file.floats(key),
            _ => Err(PeftError::bad_file(&self.folder, format!("it does not hold `{path}` in full precision"))),
        }
    }

    /// The numbers that a matrix of codes means, `[out, in]`, in single precision.
    ///
    /// # Errors
    /// If the key holds no codes, or what lies beside them is damaged.
    pub fn widened(&self, key: &str) -> Result<TensorData> {
        if !self.is_quantised(key) {
            return Err(PeftError::bad_file(&self.folder, format!("`{key}` is not in codes")));
        }
        self.with_quantised(key, |matrix| Ok(TensorData::new(matrix.widened(), [matrix.lines, matrix.width])))
    }

    fn key_of(&self, path: &str) -> Option<&str> {
        let is_meant = |key: &&str| *key == path || is_suffix(path, key) || is_suffix(key, path);
        let alias = self.aliases.get(path).map(String::as_str);
        alias.or_else(|| self.keys().find(|key| *key == path)).or_else(|| self.keys().find(is_meant))
    }

    /// Element type of the largest tensor of floats: what the checkpoint as a whole is stored in, but for matrices of codes.
    pub fn float_type(&self) -> FloatType {
        let is_float = |key: &&str| {
            let dtype = self.file(key).and_then(|it| it.dtype(key));
            !matches!(dtype, Some(Dtype::U8 | Dtype::I8 | Dtype::I32 | Dtype::I64 | Dtype::BOOL))
                && !self.is_beside_quantised(key)
        };
        let largest = self.keys().filter(is_float).max_by_key(|key| self.file(key).and_then(|it| it.bytes(key)));
        match largest.and_then(|key| self.file(key)?.dtype(key)) {
            Some(Dtype::F16) => FloatType::F16,
            Some(Dtype::BF16) => FloatType::BF16,
            _ => FloatType::F32,
        }
    }

    /// Fills the parameters of a model.
    ///
    /// A model and its checkpoint may differ by the prefix of the base model (`transformer.`, `bert.`, `model.`) in
    /// either direction. Parameters of `optional` modules, such as a new classifier, keep their starting values if the
    /// checkpoint lacks them; everything else must be there. Returns what was optional and absent, and what the
    /// checkpoint holds beyond the model, as heads for another task.
    pub fn load<M: Module>(&self, model: M, base_prefix: &str, optional: &[&str]) -> Result<(M, LoadReport)> {
        self.load_described(model, base_prefix, optional, &ModelSpec::default())
    }

    /// The same for a model that says of itself which layers are not [quantised](Self::with_quantization): heads, unless
    /// a configuration says otherwise, and what stays in [full precision](ModelSpec::full_precision).
    pub fn load_described<M: Module>(
        &self,
        model: M,
        base_prefix: &str,
        optional: &[&str],
        described: &ModelSpec,
    ) -> Result<(M, LoadReport)> {
        let spec = ModelSpec::of(&model);
        let mut report = LoadReport::default();
        let mut found: HashMap<String, String> = HashMap::new();
        let mut absent = Vec::new();
        for param in spec.iter() {
            let path = param.path();
            match self.spellings(&path, base_prefix).into_iter().find(|it| self.contains(it)) {
                Some(key) => {
                    let (shape, wanted) = match self.is_quantised(&key) {
                        true => (self.quantised_shape(&key)?.to_vec(), output_first(param)),
                        false => {
                            let shape = self.file(&key).and_then(|it| it.shape(&key)).unwrap_or(&[]);
                            (shape.to_vec(), param.shape_on_disk())
                        }
                    };
                    if shape != wanted {
                        report.misshapen.push((key.clone(), shape, wanted));
                    }
                    found.insert(path, key);
                }
                None if optional.iter().any(|it| contains_module(&param.module, it)) => absent.push(path),
                None => report.missing.push(path),
            }
        }
        let used: HashSet<&String> = found.values().collect();
        let is_spare = |key: &&String| !used.contains(key) && !self.is_beside_quantised(key);
        let spare: Vec<String> = self.keys.keys().filter(is_spare).cloned().collect();
        if !report.is_clean() {
            report.unexpected = spare;
            return Err(PeftError::DoesNotFit { what: format!("checkpoint {}", self.folder.display()), report });
        }
        let mut fill = Fill {
            checkpoint: self,
            found: &found,
            spec: spec.iter().map(|it| (it.path(), &**it)).collect(),
            described,
            pieces: RefCell::default(),
            error: None,
        };
        let model = map_params(model, &mut fill);
        if fill.error.is_none() {
            fill.error = self.shards.as_ref().and_then(|it| it.agree().err());
        }
        match fill.error {
            Some(error) => Err(error),
            None => Ok((model, LoadReport { missing: absent, unexpected: spare, misshapen: Vec::new() })),
        }
    }

    /// Keys under which a checkpoint may hold a parameter.
    fn spellings(&self, path: &str, base_prefix: &str) -> Vec<String> {
        let mut keys = vec![path.to_owned(), format!("{base_prefix}{path}")];
        keys.extend(path.strip_prefix(base_prefix).map(str::to_owned));
        // The head of GPT-NeoX before transformers 5.
        if path == "lm_head.weight" {
            keys.push("embed_out.weight".to_owned());
        }
        // Norms of checkpoints that were converted from TensorFlow.
        for at in 0..keys.len() {
            let key = &keys[at];
            let old = key.strip_suffix(".weight").map(|it| format!("{it}.gamma"));
            let old = old.or_else(|| key.strip_suffix(".bias").map(|it| format!("{it}.beta")));
            keys.extend(old.filter(|_| path.contains("LayerNorm")));
        }
        keys.extend(self.aliases.get(path).cloned());
        if self.groups.is_some() {
            let codes: Vec<String> = keys.iter().filter_map(|it| grouped_config::codes_of(it)).collect();
            keys.extend(codes);
        }
        keys
    }
}

struct Fill<'a> {
    checkpoint: &'a Checkpoint,
    found: &'a HashMap<String, String>,
    spec: HashMap<String, &'a ParamSpec>,
    described: &'a ModelSpec,
    /// Matrices in pieces, by their keys: several parameters may be one.
    pieces: RefCell<HashMap<String, usize>>,
    error: Option<PeftError>,
}

/// Whether the parameter is a weight whose layer takes it in half precision.
fn may_be_half(param: &ParamSpec) -> bool {
    matches!(param.owner.as_str(), "Projection" | "Gpt2Linear" | "Embedding") && param.name == "weight"
}

/// Whether the parameter is a weight whose layer takes it in codes.
fn may_be_packed(param: &ParamSpec) -> bool {
    matches!(param.owner.as_str(), "Projection" | "Gpt2Linear") && param.name == "weight"
}

/// The shape of a matrix as bitsandbytes stores it: the layers of GPT-2 are turned for it.
fn output_first(param: &ParamSpec) -> Vec<usize> {
    let mut shape = param.shape_on_disk();
    if param.owner == "Gpt2Linear" {
        shape.reverse();
    }
    shape
}

/// The numbers, if a device has such.
fn supported(data: TensorData, device: &Device) -> Result<TensorData> {
    if data.dtype() == DType::F32 || device.supports_dtype(data.dtype()) {
        return Ok(data);
    }
    let what = format!("{:?} on {device:?}", data.dtype());
    Err(PeftError::unsupported(what, "the device does not compute with it: load the base in float32"))
}

impl Fill<'_> {
    /// The matrix as no plain tensor, if it is in codes or in pieces or is to become so.
    fn carried(&self, key: &str, file: &TensorFile, spec: &ParamSpec, device: &Device) -> Result<Option<Tensor<2>>> {
        match self.packed(key, file, spec, device)? {
            Some(packed) => Ok(Some(packed)),
            None => self.in_pieces(key, file, spec, device),
        }
    }

    /// The matrix in pieces, of which only the rows of this process are read.
    fn in_pieces(&self, key: &str, file: &TensorFile, spec: &ParamSpec, device: &Device) -> Result<Option<Tensor<2>>> {
        let Some(shards) = self.checkpoint.shards.as_ref().filter(|_| may_be_half(spec)) else { return Ok(None) };
        let Ok(shape) = <[usize; 2]>::try_from(spec.shape.as_slice()) else { return Ok(None) };
        let Some(rows) = shards.rows(shape[0]) else { return Ok(None) };
        let known = self.pieces.borrow().get(key).copied();
        let matrix = match known {
            Some(matrix) => matrix,
            None => {
                let (part, _, dtype) = file.rows(key, rows, self.checkpoint.dtype)?.into_parts();
                shards.add(key, shape, dtype, part)
            }
        };
        self.pieces.borrow_mut().insert(key.to_owned(), matrix);
        shards.tensor(matrix, device).map(Some)
    }

    /// The matrix in codes, if it is stored so or is to become so; perhaps in pieces.
    fn packed(&self, key: &str, file: &TensorFile, spec: &ParamSpec, device: &Device) -> Result<Option<Tensor<2>>> {
        let is_turned = spec.owner == "Gpt2Linear";
        let as_seen = |matrix: Tensor<2>| if is_turned { matrix.transpose() } else { matrix };
        if self.checkpoint.is_quantised(key) {
            if !may_be_packed(spec) {
                let reason =
                    format!("`{key}` is quantised, but `{}` is no layer that computes with codes", spec.module);
                return Err(PeftError::bad_file(file.path(), reason));
            }
            let matrix = self.checkpoint.with_quantised(key, |it| self.kept(key, &it, device))?;
            return Ok(Some(as_seen(matrix)));
        }
        let Some(config) = self.checkpoint.quantize.as_ref().filter(|_| may_be_packed(spec)) else { return Ok(None) };
        let is_head = self.described.heads.iter().any(|it| contains_module(&spec.module, it));
        let stays = self.described.full_precision.iter().any(|it| contains_module(&spec.module, it));
        if stays || config.skips(&spec.module, is_head)? {
            return Ok(None);
        }
        let floats = file.floats(key)?;
        let (mut shape, mut numbers) = (floats.shape().dims::<2>(), floats.as_slice::<f32>().unwrap_or(&[]).to_vec());
        if is_turned {
            let [rows, columns] = shape;
            numbers = (0..columns)
                .flat_map(|to| (0..rows).map(move |from| from * columns + to))
                .map(|at| numbers[at])
                .collect();
            shape = [columns, rows];
        }
        let quantized = Quantized::new(&numbers, shape, config.format, config.double_quant, Rounding::Single);
        let quantized = quantized.map_err(|error| error.in_file(file.path()))?;
        let threshold = self.checkpoint.threshold_of(config.format);
        let matrix = Packed { threshold, ..quantized.view() };
        self.kept(key, &matrix, device).map(|it| Some(as_seen(it)))
    }

    /// A packed matrix, whole or in pieces.
    fn kept(&self, key: &str, matrix: &Packed<'_>, device: &Device) -> Result<Tensor<2>> {
        match &self.checkpoint.shards {
            Some(shards) => shards.packed(key, matrix, device),
            None => packed_tensor(matrix, device),
        }
    }
}

impl MapParams for Fill<'_> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = at.path();
        let Some(key) = self.found.get(&path).filter(|_| self.error.is_none() && !at.in_adapters()) else {
            return param;
        };
        let (Some(file), Some(spec)) = (self.checkpoint.file(key), self.spec.get(&path)) else { return param };
        let device = param.lazy_device();
        if let Some(carried) = self.carried(key, file, spec, &device).transpose() {
            return match carried {
                Ok(matrix) => {
                    let id = param.id;
                    // Such a matrix has two axes, and so has the parameter.
                    param.transform_for_load(Tensor::from_dispatch(matrix.into_dispatch()), id)
                }
                Err(error) => {
                    self.error = Some(error);
                    param
                }
            };
        }
        let dtype = if may_be_half(spec) { self.checkpoint.dtype } else { BaseDtype::Float32 };
        match file.numbers(key, dtype).and_then(|it| supported(it, &device)) {
            Ok(mut data) => {
                if data.shape().num_dims() != D {
                    // A count has no axes.
                    data = TensorData::new(data.iter::<f32>().collect(), spec.shape.clone());
                }
                let dtype = data.dtype();
                let mut tensor = Tensor::<D>::from_data(data, (&device, dtype));
                if spec.is_transposed_on_disk() {
                    tensor = tensor.transpose();
                }
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}

/// Every parameter of a plain model as its checkpoint holds it. Adapters are left out: merge them first.
pub fn model_tensors<M: Module>(model: &M) -> Vec<Stored> {
    struct Collect {
        params: HashMap<String, Arc<ParamSpec>>,
        stored: Vec<Stored>,
    }
    impl VisitParams for Collect {
        fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
            if at.in_adapters() {
                return;
            }
            let (key, value) = (at.path(), crate::ops::to_f32(param.base()));
            let data = match self.params.get(&key) {
                Some(param) if param.is_transposed_on_disk() => value.transpose().into_data(),
                Some(param) => param.stored(value.into_data()),
                None => value.into_data(),
            };
            self.stored.push(Stored { key, data });
        }
    }
    let spec = ModelSpec::of(model);
    let params = spec.iter().map(|it| (it.path(), it.clone())).collect();
    let mut collect = Collect { params, stored: Vec::new() };
    visit_params(model, &mut collect);
    collect.stored
}
