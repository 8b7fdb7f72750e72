//! Single safetensors files: read through a memory map, and written so that an interrupted save leaves the old file whole.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use burn::tensor::{AllocationProperty, DType, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors, View};

use crate::error::{PeftError, Result};
use crate::files::dtype::{BaseDtype, FloatType};
use crate::mapped;

/// One safetensors file, mapped into memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mmap>,
    /// Whether somebody has been told that its numbers are used where they lie.
    looked_after: Once,
    data_start: usize,
    metadata: Metadata,
    /// The keys of the file, by the names that they are known under; empty where these are the same.
    names: HashMap<String, String>,
}

impl TensorFile {
    /// Maps a file and checks its header: every tensor must lie inside the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Opening a pipe waits for somebody who writes into it, and a device has no end.
        if !fs::metadata(path).map_err(PeftError::io("read", path))?.is_file() {
            return Err(PeftError::bad_file(path, "it is no plain file, which tensors are read from"));
        }
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
        let data_start = header + size_of::<u64>();
        let (map, looked_after) = (Arc::new(map), Once::new());
        Ok(Self { path: path.to_path_buf(), map, looked_after, data_start, metadata, names: HashMap::new() })
    }

    /// The same file, whose tensors are known under other names.
    ///
    /// # Errors
    /// If two tensors get one name.
    pub fn renamed(mut self, name: impl Fn(&str) -> Cow<'_, str>) -> Result<Self> {
        let mut names = HashMap::new();
        for key in self.file_keys() {
            let name = name(&key).into_owned();
            if let Some(other) = names.insert(name.clone(), key.clone()) {
                let reason = format!("`{key}` and `{other}` are the same tensor, `{name}`: remove one");
                return Err(PeftError::bad_file(&self.path, reason));
            }
        }
        self.names = if names.iter().all(|(name, key)| name == key) { HashMap::new() } else { names };
        Ok(self)
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.names.keys().cloned().collect();
        if keys.is_empty() {
            return self.file_keys();
        }
        keys.sort();
        keys
    }

    /// All keys as the file spells them, sorted.
    pub fn file_keys(&self) -> Vec<String> {
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
        self.info(key).map(|it| it.shape.as_slice())
    }

    /// Element type of a tensor, if the file has it.
    pub fn dtype(&self, key: &str) -> Option<Dtype> {
        self.info(key).map(|it| it.dtype)
    }

    /// Bytes that a tensor takes in the file.
    pub fn bytes(&self, key: &str) -> Option<usize> {
        self.info(key).map(|it| it.data_offsets.1 - it.data_offsets.0)
    }

    /// The bytes of a tensor, as they lie in the file.
    ///
    /// # Errors
    /// If the file does not have it.
    pub fn raw(&self, key: &str) -> Result<&[u8]> {
        self.tensor(key).map(|it| it.1)
    }

    /// A tensor as floats, cast once.
    pub fn floats(&self, key: &str) -> Result<TensorData> {
        self.floats_of(self.part(key, None)?)
    }

    fn floats_of(&self, part: Part<'_>) -> Result<TensorData> {
        let values = self.cast(&part)?;
        self.forget(&part);
        Ok(TensorData::new(values, part.shape))
    }

    /// A tensor in the numbers that a base is stored in. Where the file has those, they are the file's own memory.
    ///
    /// # Errors
    /// Also if a number is too large for half precision.
    pub fn numbers(&self, key: &str, dtype: BaseDtype) -> Result<TensorData> {
        self.numbers_of(self.part(key, None)?, dtype)
    }

    /// The same for some rows of a matrix. Others are not read.
    ///
    /// # Errors
    /// As [`numbers`](Self::numbers), or if it has no such rows.
    pub fn rows(&self, key: &str, rows: Range<usize>, dtype: BaseDtype) -> Result<TensorData> {
        self.numbers_of(self.part(key, Some(rows))?, dtype)
    }

    fn numbers_of(&self, part: Part<'_>, dtype: BaseDtype) -> Result<TensorData> {
        let Part { key, stored, ref shape, bytes, start } = part;
        let wanted = dtype.of(stored);
        let is_whole = bytes.as_ptr().align_offset(wanted.size()) == 0 && cfg!(target_endian = "little");
        if dtype != BaseDtype::Float32 && is_dtype(stored, wanted) && is_whole {
            self.looked_after.call_once(|| mapped::look_after(&self.map));
            let shared = bytes::Bytes::from_owner(Shared(self.map.clone())).slice(start..start + bytes.len());
            let bytes = burn::tensor::Bytes::from_shared(shared, AllocationProperty::File);
            return Ok(TensorData::from_bytes(bytes, shape.clone(), wanted));
        }
        let floats = self.floats_of(part)?;
        if wanted == DType::F16 {
            let largest = f16::MAX.to_f32();
            let beyond = |it: &f32| it.is_finite() && it.abs() > largest;
            if let Some(number) = floats.iter::<f32>().find(beyond) {
                let reason = format!("`{key}` holds {number}, which is too large for float16; use bfloat16 or auto");
                return Err(PeftError::bad_file(&self.path, reason));
            }
        }
        Ok(floats.convert_dtype(wanted))
    }

    /// Gives back the memory that a tensor of the file takes once it is read, so that a checkpoint of several shards is
    /// never in memory beside the model that it fills. Reading it again takes it from the file again.
    fn forget(&self, part: &Part<'_>) {
        #[cfg(unix)]
        {
            let range = (part.start, part.bytes.len());
            // SAFETY: the map is of a file and read only, so pages that are given back have nothing to lose. It is advice:
            // where it is not taken, pages stay until somebody else needs the memory.
            #[allow(unsafe_code)]
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.0, range.1) };
        }
        #[cfg(not(unix))]
        let _ = part;
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

    fn info(&self, key: &str) -> Option<&TensorInfo> {
        match self.names.is_empty() {
            true => self.metadata.info(key),
            false => self.metadata.info(self.names.get(key)?),
        }
    }

    fn tensor(&self, key: &str) -> Result<(&TensorInfo, &[u8])> {
        let info = self.info(key).ok_or_else(|| {
            PeftError::bad_file(&self.path, format!("it has no tensor `{key}`; it has {}", self.keys().join(", ")))
        })?;
        let (start, end) = info.data_offsets;
        Ok((info, &self.map[self.data_start + start..self.data_start + end]))
    }

    fn part<'a>(&'a self, key: &'a str, rows: Option<Range<usize>>) -> Result<Part<'a>> {
        let (info, mut bytes) = self.tensor(key)?;
        let mut shape = info.shape.clone();
        let mut start = self.data_start + info.data_offsets.0;
        if let Some(rows) = rows {
            let found = shape.first_mut().filter(|it| rows.start <= rows.end && rows.end <= **it);
            let all = found.ok_or_else(|| PeftError::bad_file(&self.path, format!("`{key}` has no rows {rows:?}")))?;
            let row = bytes.len() / (*all).max(1);
            *all = rows.len();
            start += rows.start * row;
            bytes = &bytes[rows.start * row..rows.end * row];
        }
        Ok(Part { key, stored: info.dtype, shape, bytes, start })
    }

    fn cast(&self, part: &Part<'_>) -> Result<Vec<f32>> {
        let Part { key, stored, bytes, .. } = *part;
        Ok(match stored {
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

/// A tensor of a file, or some of its rows.
struct Part<'a> {
    key: &'a str,
    stored: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
    /// Where the bytes begin in the file.
    start: usize,
}

/// A map that tensors keep alive.
struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn is_dtype(stored: Dtype, wanted: DType) -> bool {
    matches!((stored, wanted), (Dtype::F32, DType::F32) | (Dtype::F16, DType::F16) | (Dtype::BF16, DType::BF16))
}

fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Key in the file.
    pub key: String,
    /// Value; floats are written as f32, integers as i64.
    pub data: TensorData,
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
                let dtype = match float {
                    FloatType::F32 => Dtype::F32,
                    FloatType::F16 => Dtype::F16,
                    FloatType::BF16 => Dtype::BF16,
                };
                (dtype, float.bytes_of(values))
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

/// Refuses tensors that would hold NaN or infinity in a file of these numbers. `next` says what to do about it.
///
/// # Errors
/// Names the tensor, and the number that is too large for half precision.
pub fn check_finite(tensors: &[Stored], float: FloatType, next: &str) -> Result<()> {
    for Stored { key, data } in tensors.iter().filter(|it| it.data.dtype().is_float()) {
        match data.as_slice::<f32>() {
            Ok(values) => check_numbers(key, values, float, next)?,
            Err(_) => check_numbers(key, &data.iter::<f32>().collect::<Vec<_>>(), float, next)?,
        }
    }
    Ok(())
}

/// The same for one tensor.
pub(crate) fn check_numbers(key: &str, values: &[f32], float: FloatType, next: &str) -> Result<()> {
    let what = match values.iter().find(|it| !float.holds(**it)) {
        None => return Ok(()),
        Some(number) if number.is_finite() => format!("{number:e}, too large for {float}"),
        Some(_) => "NaN or infinity".to_owned(),
    };
    Err(PeftError::NotFinite(format!("refusing to write: `{key}` holds {what}; {next}")))
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
