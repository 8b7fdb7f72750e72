//! Safetensors files: whole checkpoints, sharded or not, and single files, read through a memory map and written so
//! that an interrupted save leaves the old file whole.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{AllocationProperty, DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
pub use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{SafeTensors, View};

use crate::error::{LoadReport, PeftError, Result};
use crate::spec::{ModelSpec, PathStack};

/// One safetensors file, mapped into memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mmap>,
    data_start: usize,
    metadata: Metadata,
}

impl TensorFile {
    /// Maps a file and checks its header: every tensor must lie inside the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(PeftError::io("read", path))?;
        // SAFETY: the map is read only. A process that shortens the file while it is mapped could make reads fail with
        // a signal; writers of this workspace never change a file in place, they rename a new one over it.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(PeftError::io("read", path))?;
        let reason = |error: safetensors::SafeTensorError| {
            PeftError::bad_file(path, format!("{error}; the file is truncated or no safetensors file: fetch it again"))
        };
        SafeTensors::deserialize(&map).map_err(reason)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(reason)?;
        Ok(Self { path: path.to_path_buf(), map: Arc::new(map), data_start: header + size_of::<u64>(), metadata })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.metadata.tensors().into_keys().collect();
        keys.sort();
        keys
    }

    /// Free text that the writer left in the header.
    pub fn header(&self) -> &Option<HashMap<String, String>> {
        self.metadata.metadata()
    }

    /// Shape of a tensor, if the file has it.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.metadata.info(key).map(|it| it.shape.as_slice())
    }

    /// Element type of a tensor, if the file has it.
    pub fn dtype(&self, key: &str) -> Option<Dtype> {
        self.metadata.info(key).map(|it| it.dtype)
    }

    /// Bytes that a tensor takes in the file.
    pub fn bytes(&self, key: &str) -> Option<usize> {
        self.metadata.info(key).map(|it| it.data_offsets.1 - it.data_offsets.0)
    }

    /// A tensor as floats, cast once.
    pub fn floats(&self, key: &str) -> Result<TensorData> {
        let (info, bytes) = self.tensor(key)?;
        let values = self.cast(key, info, bytes)?;
        self.forget(info);
        Ok(TensorData::new(values, info.shape.clone()))
    }

    /// A tensor in the numbers that a base is kept in. Where the file has those, they are the file's own memory.
    ///
    /// # Errors
    /// Also if a number is too large for half precision.
    pub fn kept(&self, key: &str, dtype: BaseDtype) -> Result<TensorData> {
        let (info, bytes) = self.tensor(key)?;
        let kept = dtype.of(info.dtype);
        let is_whole = bytes.as_ptr().align_offset(kept.size()) == 0 && cfg!(target_endian = "little");
        if dtype != BaseDtype::Float32 && is_dtype(info.dtype, kept) && is_whole {
            let start = self.data_start + info.data_offsets.0;
            let shared = bytes::Bytes::from_owner(Shared(self.map.clone())).slice(start..start + bytes.len());
            let bytes = burn::tensor::Bytes::from_shared(shared, AllocationProperty::File);
            return Ok(TensorData::from_bytes(bytes, info.shape.clone(), kept));
        }
        let floats = self.floats(key)?;
        if kept == DType::F16 {
            let largest = f16::MAX.to_f32();
            let beyond = |it: &f32| it.is_finite() && it.abs() > largest;
            if let Some(number) = floats.iter::<f32>().find(beyond) {
                let reason = format!("`{key}` holds {number}, which is too large for float16; use bfloat16 or auto");
                return Err(PeftError::bad_file(&self.path, reason));
            }
        }
        Ok(floats.convert_dtype(kept))
    }

    /// Gives back the memory that a tensor of the file takes once it is read, so that a checkpoint of several shards is
    /// never in memory beside the model that it fills. Reading it again takes it from the file again.
    fn forget(&self, info: &TensorInfo) {
        #[cfg(unix)]
        {
            let (start, end) = info.data_offsets;
            let range = (self.data_start + start, end - start);
            // SAFETY: the map is of a file and read only, so pages that are given back have nothing to lose. It is advice:
            // where it is not taken, pages stay until somebody else needs the memory.
            #[allow(unsafe_code)]
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.0, range.1) };
        }
        #[cfg(not(unix))]
        let _ = info;
    }

    /// A tensor as integers.
    pub fn integers(&self, key: &str) -> Result<TensorData> {
        let (info, bytes) = self.tensor(key)?;
        let values: Vec<i64> = match info.dtype {
            Dtype::I64 => each(bytes, i64::from_le_bytes),
            Dtype::I32 => each(bytes, |it| i32::from_le_bytes(it).into()),
            Dtype::U8 | Dtype::BOOL => bytes.iter().map(|it| i64::from(*it)).collect(),
            other => return Err(self.wrong_dtype(key, other, "I64, I32, U8 or BOOL")),
        };
        Ok(TensorData::new(values, info.shape.clone()))
    }

    fn tensor(&self, key: &str) -> Result<(&TensorInfo, &[u8])> {
        let info = self.metadata.info(key).ok_or_else(|| {
            PeftError::bad_file(&self.path, format!("it has no tensor `{key}`; it has {}", self.keys().join(", ")))
        })?;
        let (start, end) = info.data_offsets;
        Ok((info, &self.map[self.data_start + start..self.data_start + end]))
    }

    fn cast(&self, key: &str, info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>> {
        Ok(match info.dtype {
            Dtype::F32 => each(bytes, f32::from_le_bytes),
            Dtype::F16 => each(bytes, |it| f16::from_le_bytes(it).to_f32()),
            Dtype::BF16 => each(bytes, |it| bf16::from_le_bytes(it).to_f32()),
            Dtype::F64 => each(bytes, |it| f64::from_le_bytes(it) as f32),
            Dtype::I64 => each(bytes, |it| i64::from_le_bytes(it) as f32),
            Dtype::I32 => each(bytes, |it| i32::from_le_bytes(it) as f32),
            other => return Err(self.wrong_dtype(key, other, "F32, F16, BF16 or F64")),
        })
    }

    fn wrong_dtype(&self, key: &str, found: Dtype, wanted: &str) -> PeftError {
        PeftError::bad_file(&self.path, format!("`{key}` is stored as {found:?}; {wanted} can be read"))
    }
}

/// A map that tensors keep alive.
struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn is_dtype(stored: Dtype, kept: DType) -> bool {
    matches!((stored, kept), (Dtype::F32, DType::F32) | (Dtype::F16, DType::F16) | (Dtype::BF16, DType::BF16))
}

/// In which numbers the frozen matrices of a base are kept: `dtype` of transformers.
///
/// The matrices are the weights of [`Projection`](crate::nn::Projection), [`Gpt2Linear`](crate::nn::Gpt2Linear) and
/// [`Embedding`](crate::nn::Embedding). Norms, biases and convolutions are kept in single precision, and so are adapters
/// and all that is computed: halves are widened where they meet activations, which changes no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaseDtype {
    /// Single precision, whatever the file has.
    #[default]
    Float32,
    /// What the file has: bf16 and f16 stay as they are, which takes half the memory and gives the same results, bit for
    /// bit. Nothing is copied on the CPU: the matrices are the mapped file, which must stay as it is.
    Auto,
    /// Rounded to bf16, if the file has something else. That is another base, with other results.
    BFloat16,
    /// Rounded to f16, if the file has something else. That is another base, with other results.
    Float16,
}

impl BaseDtype {
    /// In what a tensor of this type is kept.
    fn of(self, stored: Dtype) -> DType {
        match (self, stored) {
            (Self::Auto, Dtype::BF16) | (Self::BFloat16, _) => DType::BF16,
            (Self::Auto, Dtype::F16) | (Self::Float16, _) => DType::F16,
            (Self::Float32 | Self::Auto, _) => DType::F32,
        }
    }

    /// Whether numbers of a file that is stored in `float` are rounded.
    pub fn rounds(self, float: FloatType) -> bool {
        match self {
            Self::Float32 | Self::Auto => false,
            Self::BFloat16 => float != FloatType::BF16,
            Self::Float16 => float != FloatType::F16,
        }
    }
}

const DTYPES: [(&str, BaseDtype); 4] = [
    ("float32", BaseDtype::Float32),
    ("auto", BaseDtype::Auto),
    ("bfloat16", BaseDtype::BFloat16),
    ("float16", BaseDtype::Float16),
];

impl FromStr for BaseDtype {
    type Err = PeftError;

    fn from_str(text: &str) -> Result<Self> {
        let known = DTYPES.iter().find(|it| it.0 == text).map(|it| it.1);
        known.ok_or_else(|| {
            PeftError::Invalid(format!("there is no dtype `{text}`; choose {}", DTYPES.map(|it| it.0).join(", ")))
        })
    }
}

impl fmt::Display for BaseDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DTYPES.iter().find(|it| it.1 == *self).map_or("", |it| it.0))
    }
}

/// Where a base goes, and in which numbers its matrices are kept.
///
/// A device alone means single precision: `load_causal_lm(folder, &device)`.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Where all tensors go.
    pub device: Device,
    /// What the matrices are kept in.
    pub dtype: BaseDtype,
}

impl Placement {
    /// On a device, in single precision.
    pub fn on(device: &Device) -> Self {
        Self { device: device.clone(), dtype: BaseDtype::default() }
    }

    /// With matrices in other numbers.
    pub fn with_dtype(self, dtype: BaseDtype) -> Self {
        Self { dtype, ..self }
    }
}

impl From<&Device> for Placement {
    fn from(device: &Device) -> Self {
        Self::on(device)
    }
}

impl From<&Placement> for Placement {
    fn from(placement: &Placement) -> Self {
        placement.clone()
    }
}

fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}

/// File names under which a folder may keep its weights, in order of preference.
const WEIGHT_FILES: [&str; 2] = ["model.safetensors", "diffusion_pytorch_model.safetensors"];

/// The weights of a Hugging Face folder: one file, or shards with an index.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<TensorFile>,
    keys: BTreeMap<String, usize>,
    /// Path of a parameter to another key that may hold it.
    aliases: HashMap<String, String>,
    dtype: BaseDtype,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if !folder.is_dir() {
            return Err(PeftError::bad_file(folder, "it is not a folder; give the folder that holds `config.json`"));
        }
        for name in WEIGHT_FILES {
            if folder.join(name).is_file() {
                return Self::from_files(folder, vec![TensorFile::open(folder.join(name))?], None);
            }
            let index = folder.join(format!("{name}.index.json"));
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
        let text = fs::read_to_string(index).map_err(PeftError::io("read", index))?;
        let parsed: Index = serde_json::from_str(&text).map_err(|error| PeftError::bad_file(index, error))?;
        let mut names: Vec<&String> = parsed.weight_map.values().collect();
        names.sort();
        names.dedup();
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
        Ok(Self { folder: folder.to_path_buf(), files, keys, aliases: HashMap::new(), dtype: BaseDtype::default() })
    }

    /// The checkpoint whose frozen matrices are kept in these numbers when it is loaded.
    ///
    /// Of what is not in single precision, only the layers of [`nn`](crate::nn) know: a model with those of `burn::nn` is
    /// loaded in [`BaseDtype::Float32`].
    pub fn keeping(mut self, dtype: BaseDtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Says where a parameter lies if it does not lie under its own name: a tied one has as many names as places.
    pub fn also_under(&mut self, path: impl Into<String>, key: impl Into<String>) {
        self.aliases.insert(path.into(), key.into());
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

    /// Element type of the largest tensor: what the checkpoint as a whole is stored in.
    pub fn float_type(&self) -> FloatType {
        let largest = self.keys().max_by_key(|key| self.file(key).and_then(|it| it.bytes(key)));
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
        let spec = ModelSpec::of(&model);
        let mut report = LoadReport::default();
        let mut found: HashMap<String, String> = HashMap::new();
        let mut absent = Vec::new();
        for param in spec.iter() {
            let path = param.path();
            match self.spellings(&path, base_prefix).into_iter().find(|it| self.contains(it)) {
                Some(key) => {
                    let shape = self.file(&key).and_then(|it| it.shape(&key)).unwrap_or(&[]);
                    if shape != param.shape_on_disk() {
                        report.misshapen.push((key.clone(), shape.to_vec(), param.shape_on_disk()));
                    }
                    found.insert(path, key);
                }
                None if optional.iter().any(|it| crate::contains_module(&param.module, it)) => absent.push(path),
                None => report.missing.push(path),
            }
        }
        let used: std::collections::HashSet<&String> = found.values().collect();
        let spare: Vec<String> = self.keys.keys().filter(|key| !used.contains(key)).cloned().collect();
        if !report.is_clean() {
            report.unexpected = spare;
            return Err(PeftError::DoesNotFit { what: format!("checkpoint {}", self.folder.display()), report });
        }
        let mut fill = Fill { at: PathStack::default(), checkpoint: self, found: &found, error: None };
        let model = model.map(&mut fill);
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
        keys
    }
}

struct Fill<'a> {
    at: PathStack,
    checkpoint: &'a Checkpoint,
    found: &'a HashMap<String, String>,
    error: Option<PeftError>,
}

impl Fill<'_> {
    /// Whether the parameter is a weight whose layer takes it in half precision.
    fn is_matrix(&self) -> bool {
        matches!(self.at.owner(), "Projection" | "Gpt2Linear" | "Embedding") && self.at.split().1 == "weight"
    }
}

/// The numbers, if a device has such.
fn supported(data: TensorData, device: &Device) -> Result<TensorData> {
    if data.dtype() == DType::F32 || device.supports_dtype(data.dtype()) {
        return Ok(data);
    }
    let what = format!("{:?} on {device:?}", data.dtype());
    Err(PeftError::unsupported(what, "the device does not compute with it: load the base in float32"))
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.at.path();
        let Some(key) = self.found.get(&path).filter(|_| self.error.is_none() && !self.at.in_adapters()) else {
            return param;
        };
        let Some(file) = self.checkpoint.file(key) else { return param };
        let device = param.lazy_device();
        let dtype = if self.is_matrix() { self.checkpoint.dtype } else { BaseDtype::Float32 };
        match file.kept(key, dtype).and_then(|it| supported(it, &device)) {
            Ok(data) => {
                let dtype = data.dtype();
                let mut tensor = Tensor::<D>::from_data(data, (&device, dtype));
                if self.at.owner() == "Linear" && D == 2 {
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

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Key in the file.
    pub key: String,
    /// Value; floats are written as f32, integers as i64.
    pub data: TensorData,
}

/// Every parameter of a plain model as its checkpoint holds it. Adapters are left out: merge them first.
pub fn model_tensors<M: Module>(model: &M) -> Vec<Stored> {
    struct Collect {
        at: PathStack,
        stored: Vec<Stored>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.at.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.at.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.at.in_adapters() {
                return;
            }
            let value = crate::ops::to_f32(param.base());
            let value = if self.at.owner() == "Linear" && D == 2 { value.transpose() } else { value };
            self.stored.push(Stored { key: self.at.path(), data: value.into_data() });
        }
    }
    let mut collect = Collect { at: PathStack::default(), stored: Vec::new() };
    model.visit(&mut collect);
    collect.stored
}

/// Element type of written floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FloatType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, half precision.
    F16,
    /// 16 bits, brain float.
    BF16,
}

struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The bytes of a safetensors file with the metadata `format = pt`, without which transformers refuses to read it.
pub fn serialize(tensors: Vec<Stored>, float: FloatType) -> Result<Vec<u8>> {
    let views: Vec<(String, Bytes)> = tensors
        .into_iter()
        .map(|Stored { key, data }| {
            let shape = data.shape().as_slice().to_vec();
            let (dtype, bytes) = if data.dtype().is_float() {
                let data = data.convert::<f32>();
                let values = data.as_slice::<f32>().expect("converted to f32");
                match float {
                    FloatType::F32 => (Dtype::F32, values.iter().flat_map(|it| it.to_le_bytes()).collect()),
                    FloatType::F16 => {
                        (Dtype::F16, values.iter().flat_map(|it| f16::from_f32(*it).to_le_bytes()).collect())
                    }
                    FloatType::BF16 => {
                        (Dtype::BF16, values.iter().flat_map(|it| bf16::from_f32(*it).to_le_bytes()).collect())
                    }
                }
            } else {
                let data = data.convert::<i64>();
                let values = data.as_slice::<i64>().expect("converted to i64");
                (Dtype::I64, values.iter().flat_map(|it| it.to_le_bytes()).collect())
            };
            (key, Bytes { dtype, shape, bytes })
        })
        .collect();
    let header = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(header))
        .map_err(|error| PeftError::Invalid(format!("cannot serialise: {error}")))
}

/// Writes a safetensors file. See [`write_atomically`].
pub fn write_tensors(path: impl AsRef<Path>, tensors: Vec<Stored>, float: FloatType) -> Result<()> {
    write_atomically(path, &serialize(tensors, float)?)
}

/// Writes a file so that whatever happens the path holds either the old contents or the new, never a part.
pub fn write_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_together(&[(path.as_ref(), bytes)])
}

/// Writes several files as [`write_atomically`] does. None is put in its place before all are written out, so a full
/// disk changes nothing.
pub fn write_together(files: &[(&Path, &[u8])]) -> Result<()> {
    let staged = files.iter().map(|(path, bytes)| Ok((path, stage(path, bytes)?))).collect::<Result<Vec<_>>>()?;
    for (path, file) in staged {
        file.persist(path).map_err(|error| PeftError::io("write", path)(error.error))?;
    }
    Ok(())
}

fn stage(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(PeftError::io("create", folder))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(PeftError::io("write", path))?;
    file.write_all(bytes).map_err(PeftError::io("write", path))?;
    file.as_file().sync_all().map_err(PeftError::io("write", path))?;
    #[cfg(unix)]
    {
        // Temporary files are private; what replaces a user's file should be as readable as any other.
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path).map_or(0o644, |it| it.permissions().mode() & 0o777);
        file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(PeftError::io("write", path))?;
    }
    Ok(file)
}
