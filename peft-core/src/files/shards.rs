//! A checkpoint that is written tensor by tensor: never more than one of them is held here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::error::{PeftError, Result};
use crate::files::dtype::{Dtype, FloatType};
use crate::files::safetensors::{Stored, check_numbers};

/// Most bytes of a file of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSize(pub u64);

impl Default for ShardSize {
    /// That of `save_pretrained` in transformers 5.
    fn default() -> Self {
        Self(50_000_000_000)
    }
}

impl FromStr for ShardSize {
    type Err = PeftError;

    /// `5GB`, `500MB`, `2GiB`, or a number of bytes.
    fn from_str(text: &str) -> Result<Self> {
        let trimmed = text.trim();
        let digits = trimmed.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = match unit.trim().to_ascii_uppercase().as_str() {
            "" | "B" => Some(1.0),
            "KB" => Some(1e3),
            "MB" => Some(1e6),
            "GB" => Some(1e9),
            "TB" => Some(1e12),
            "KIB" => Some(1024.0),
            "MIB" => Some(1048576.0),
            "GIB" => Some(1073741824.0),
            "TIB" => Some(1099511627776.0),
            _ => None,
        };
        match (number.parse::<f64>(), unit) {
            (Ok(number), Some(unit)) if number * unit >= 1.0 && number * unit < 1e18 => {
                Ok(Self((number * unit) as u64))
            }
            _ => Err(PeftError::Invalid(format!("`{text}` is no size; write 5GB, 500MB or 2GiB"))),
        }
    }
}

/// What a file of weights will hold.
#[derive(Debug)]
struct Shard {
    name: String,
    tensors: Vec<(String, Vec<usize>)>,
}

/// Writes the weights of a folder: `model.safetensors`, or shards with an index where they are larger than a limit.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    /// What the names of files begin with.
    stem: &'static str,
    float: FloatType,
    shards: Vec<Shard>,
    /// The shard and the tensor in it that come next.
    next: (usize, usize),
    open: Option<(PathBuf, BufWriter<File>)>,
}

impl ShardWriter {
    /// `tensors` are the keys and shapes of what will be written, in this order. What has no axes is a count, an integer. As in the reference, a shard ends where
    /// the next tensor would make it larger than `limit`.
    pub fn new(folder: &Path, tensors: Vec<(String, Vec<usize>)>, float: FloatType, limit: ShardSize) -> Self {
        Self::called("model", folder, tensors, float, limit)
    }

    /// The same for files whose names begin otherwise: diffusers looks for `diffusion_pytorch_model.safetensors`.
    pub fn called(
        stem: &'static str,
        folder: &Path,
        tensors: Vec<(String, Vec<usize>)>,
        float: FloatType,
        limit: ShardSize,
    ) -> Self {
        let mut shards: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
        let mut filled = 0;
        for (key, shape) in tensors {
            let bytes = bytes_of(&shape, float);
            if filled > 0 && filled + bytes > limit.0 {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            if let Some(last) = shards.last_mut() {
                last.push((key, shape));
            }
        }
        let count = shards.len();
        let name = |at: usize| match count {
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{count:05}.safetensors", at + 1),
        };
        let shards = shards.into_iter().enumerate().map(|(at, tensors)| Shard { name: name(at), tensors }).collect();
        Self { folder: folder.to_path_buf(), stem, float, shards, next: (0, 0), open: None }
    }

    /// Names of the files that are written, without the index.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|it| it.name.as_str())
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// If it is not the next one, a number does not fit the type of the file, or the disk says no.
    pub fn write(&mut self, tensor: Stored) -> Result<()> {
        let Stored { key, data } = tensor;
        let shape = data.shape().as_slice().to_vec();
        let shard = self.shards.get(self.next.0);
        if shard.and_then(|it| it.tensors.get(self.next.1)) != Some(&(key.clone(), shape)) {
            return Err(PeftError::Invalid(format!("`{key}` is not the next tensor of the checkpoint")));
        }
        let is_count = data.shape().num_dims() == 0;
        let counted = if is_count { data.iter::<i64>().next() } else { None };
        let data = data.convert::<f32>();
        let values = data.as_slice::<f32>().map_err(|error| PeftError::Invalid(format!("`{key}`: {error:?}")))?;
        check_numbers(&key, values, self.float, "write bfloat16 or float32")?;
        let (path, file) = match self.open.take() {
            Some(open) => self.open.insert(open),
            None => self.open.insert(open_shard(&self.folder, &self.shards[self.next.0], self.float)?),
        };
        let written = match counted {
            Some(count) => file.write_all(&count.to_le_bytes()),
            None => write_floats(file, values, self.float),
        };
        written.map_err(PeftError::io("write", &path))?;
        self.next.1 += 1;
        if self.next.1 == self.shards[self.next.0].tensors.len() {
            self.close()?;
            self.next = (self.next.0 + 1, 0);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some((path, mut file)) = self.open.take() else { return Ok(()) };
        file.flush().and_then(|()| file.get_ref().sync_all()).map_err(PeftError::io("write", &path))
    }

    /// Ends the last file, and writes the index where there are several.
    ///
    /// # Errors
    /// If tensors are still to come, or the disk says no.
    pub fn finish(mut self) -> Result<Vec<String>> {
        self.close()?;
        if self.next.0 < self.shards.len() {
            return Err(PeftError::Invalid("the checkpoint ends before its last tensor".into()));
        }
        if self.shards.len() > 1 {
            let keys = self.shards.iter().flat_map(|it| it.tensors.iter().map(|(key, _)| (key, &it.name)));
            let keys: BTreeMap<&String, &String> = keys.collect();
            let shapes = || self.shards.iter().flat_map(|it| it.tensors.iter().map(|(_, shape)| shape));
            let index = json!({
                "metadata": {
                    "total_parameters": shapes().map(|it| it.iter().product::<usize>()).sum::<usize>(),
                    "total_size": shapes().map(|it| bytes_of(it, self.float)).sum::<u64>(),
                },
                "weight_map": keys,
            });
            let path = self.folder.join(format!("{}.safetensors.index.json", self.stem));
            let text = serde_json::to_string_pretty(&index).map_err(|error| PeftError::Invalid(error.to_string()))?;
            fs::write(&path, text).map_err(PeftError::io("write", &path))?;
        }
        Ok(self.shards.into_iter().map(|it| it.name).collect())
    }
}

fn bytes_of(shape: &[usize], float: FloatType) -> u64 {
    if shape.is_empty() {
        return size_of::<i64>() as u64;
    }
    shape.iter().map(|it| *it as u64).product::<u64>() * float.bytes() as u64
}

/// A file with its header: the length of what describes the tensors, and that.
fn open_shard(folder: &Path, shard: &Shard, float: FloatType) -> Result<(PathBuf, BufWriter<File>)> {
    // Without `format`, transformers refuses to read the file.
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut start = 0;
    for (key, shape) in &shard.tensors {
        let end = start + bytes_of(shape, float);
        let dtype = if shape.is_empty() { Dtype::I64 } else { float.stored() };
        let dtype: Value = format!("{dtype:?}").into();
        header.insert(key.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
        start = end;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let path = folder.join(&shard.name);
    let write = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        Ok(file)
    };
    let file = write().map_err(PeftError::io("write", &path))?;
    Ok((path, file))
}

fn write_floats(file: &mut impl Write, values: &[f32], float: FloatType) -> std::io::Result<()> {
    values.chunks(1 << 14).try_for_each(|chunk| file.write_all(&float.bytes_of(chunk)))
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::files::checkpoint::Checkpoint;

    fn stored(key: &str, values: Vec<f32>) -> Stored {
        let length = values.len();
        Stored { key: key.to_owned(), data: TensorData::new(values, [length]) }
    }

    #[test]
    fn sizes_are_read_as_the_reference_reads_them() {
        let sizes = [("5GB", 5_000_000_000), ("500 MB", 500_000_000), ("2GiB", 2 << 30), ("12", 12), ("1.5kb", 1500)];
        for (text, bytes) in sizes {
            assert_eq!(text.parse::<ShardSize>().unwrap(), ShardSize(bytes), "{text}");
        }
        for text in ["", "GB", "-1GB", "0", "5XB", "1e30TB"] {
            assert!(text.parse::<ShardSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn shards_hold_all_tensors_and_no_more_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [("b", vec![1.0, -2.5]), ("a", vec![3.0; 5]), ("c", vec![0.5; 3]), ("d", vec![7.0])];
        let shapes = tensors.iter().map(|(key, values)| (key.to_string(), vec![values.len()])).collect();
        let mut writer = ShardWriter::new(folder.path(), shapes, FloatType::F32, ShardSize(16));
        for (key, values) in &tensors {
            writer.write(stored(key, values.clone())).unwrap();
        }
        let names = writer.finish().unwrap();
        // 8 bytes, 20 alone beyond the limit, 12 and 4 together.
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(names[2], "model-00003-of-00003.safetensors");
        let read = Checkpoint::open(folder.path()).unwrap();
        for (key, values) in &tensors {
            let file = read.file(key).unwrap();
            assert_eq!(file.floats(key).unwrap().iter::<f32>().collect::<Vec<f32>>(), *values);
            assert_eq!(file.header().as_ref().unwrap()["format"], "pt");
        }
        let index = fs::read_to_string(folder.path().join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["metadata"]["total_size"], 44);
        assert_eq!(index["metadata"]["total_parameters"], 11);
    }

    #[test]
    fn a_number_that_the_type_cannot_hold_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for (value, float, said) in [
            (7e4, FloatType::F16, "too large for float16"),
            (f32::NAN, FloatType::F32, "NaN"),
            (f32::MAX, FloatType::BF16, "too large for bfloat16"),
        ] {
            let mut writer = ShardWriter::new(folder.path(), vec![("w".into(), vec![1])], float, ShardSize::default());
            let error = writer.write(stored("w", vec![value])).unwrap_err().to_string();
            assert!(error.contains("`w`") && error.contains(said), "{error}");
        }
    }
}
