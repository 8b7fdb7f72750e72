//! Matrices that GPTQ and AWQ have stored in a checkpoint.
//!
//! The codes of a layer lie under `<module>.qweight`, beside them `qzeros`, `scales`, and for GPTQ `g_idx`. How words
//! are filled, `grouped_config` reads.

use super::checkpoint::{Checkpoint, Dtype, TensorFile};
use crate::error::{PeftError, Result};
use crate::quant::grouped::{GroupLayout, GroupedParts};
use crate::quant::{Grouped, GroupedConfig, Packed};

/// Names beside the codes of a layer.
const BESIDE: [&str; 3] = ["qzeros", "scales", "g_idx"];

impl Checkpoint {
    /// Whether a key holds words of codes.
    pub(super) fn is_grouped(&self, key: &str) -> bool {
        key.ends_with(".qweight") && self.contains(key)
    }

    /// Whether a key belongs to words of codes. A bias of zeros does: AutoGPTQ gave one to every layer.
    pub(super) fn is_beside_grouped(&self, key: &str) -> bool {
        let Some((module, name)) = key.rsplit_once('.') else { return false };
        let codes = || self.is_grouped(&format!("{module}.qweight"));
        BESIDE.contains(&name) && codes() || name == "bias" && codes() && self.is_zero(key)
    }

    fn is_zero(&self, key: &str) -> bool {
        self.file(key).and_then(|it| it.floats(key).ok()).is_some_and(|it| it.iter::<f32>().all(|it| it == 0.0))
    }

    /// Rows and columns that words of codes mean, output first.
    ///
    /// # Errors
    /// If there are none.
    pub(super) fn grouped_shape(&self, key: &str) -> Result<[usize; 2]> {
        let (file, config) = self.grouped(key)?;
        let Some([rows, columns]) = file.shape(key).and_then(|it| <[usize; 2]>::try_from(it).ok()) else {
            return Err(PeftError::bad_file(file.path(), format!("`{key}` is no matrix of words")));
        };
        let words = config.bits.in_word();
        let (rows, columns) = match config.layout {
            GroupLayout::Gptq { .. } => (rows.checked_mul(words), Some(columns)),
            GroupLayout::Awq => (Some(rows), columns.checked_mul(words)),
        };
        match (columns, rows) {
            (Some(columns), Some(rows)) if columns.checked_mul(rows).is_some() => Ok([columns, rows]),
            _ => Err(PeftError::bad_file(file.path(), format!("`{key}` has a shape that no matrix has"))),
        }
    }

    /// Calls `read` with a matrix of codes.
    ///
    /// # Errors
    /// If what lies beside the codes is damaged.
    pub(super) fn with_grouped<R>(&self, key: &str, read: impl FnOnce(Packed<'_>) -> Result<R>) -> Result<R> {
        let (file, config) = self.grouped(key)?;
        let [lines, width] = self.grouped_shape(key)?;
        let module = key.strip_suffix(".qweight").unwrap_or(key);
        let beside = |name: &str| {
            let key = format!("{module}.{name}");
            match self.file(&key) {
                Some(file) => Ok((file, key)),
                None => {
                    let reason = format!("it lacks `{key}`, without which the codes of `{module}` mean nothing");
                    Err(PeftError::bad_file(self.folder(), reason))
                }
            }
        };
        let groups = width.div_ceil(config.group.unwrap_or(width).max(1));
        let shaped = |name: &str, wanted: &[usize]| {
            let (file, key) = beside(name)?;
            match file.shape(&key) {
                Some(shape) if shape == wanted => Ok((file, key)),
                shape => {
                    let shape = shape.unwrap_or_default();
                    let reason = format!(
                        "`{key}` has the shape {shape:?}, where {lines} × {width} in {config} need {wanted:?}: fetch the \
                         checkpoint again, with its config.json"
                    );
                    Err(PeftError::bad_file(file.path(), reason))
                }
            }
        };
        let (zeros_file, zeros) = shaped("qzeros", &[groups, lines / config.bits.in_word()])?;
        let (scales_file, scales) = shaped("scales", &[groups, lines])?;
        let columns = match config.layout {
            GroupLayout::Gptq { .. } if self.contains(&format!("{module}.g_idx")) => Some(shaped("g_idx", &[width])?),
            _ => None,
        };
        let of_column = match columns {
            None => None,
            Some((file, key)) => {
                let numbers = file.integers(&key)?;
                let odd = numbers.iter::<i64>().find(|it| !usize::try_from(*it).is_ok_and(|it| it < groups));
                if let Some(odd) = odd {
                    let reason = format!("`{key}` names the group {odd}, and there are {groups}: fetch the file again");
                    return Err(PeftError::bad_file(file.path(), reason));
                }
                Some(numbers.iter::<i64>().map(|it| it as u32).collect())
            }
        };
        let numbers: Vec<f32> = scales_file.floats(&scales)?.iter::<f32>().collect();
        if let Some(odd) = numbers.iter().find(|it| !it.is_finite()) {
            let reason = format!("`{scales}` holds {odd}, so that the file is damaged: fetch it again");
            return Err(PeftError::bad_file(scales_file.path(), reason));
        }
        let parts =
            GroupedParts { codes: words(file, key)?, zeros: words(zeros_file, &zeros)?, scales: numbers, of_column };
        let matrix = Grouped::new(config, [lines, width], &parts);
        read(matrix.map_err(|error| said_of(error, key, file))?.view())
    }

    fn grouped(&self, key: &str) -> Result<(&TensorFile, &GroupedConfig)> {
        match (self.file(key), self.groups()) {
            (Some(file), Some(config)) => Ok((file, config)),
            _ => {
                Err(PeftError::bad_file(self.folder(), format!("it has no `{key}`, or does not say how it is stored")))
            }
        }
    }
}

/// An error of a matrix, with its key.
fn said_of(error: PeftError, key: &str, file: &TensorFile) -> PeftError {
    PeftError::bad_file(file.path(), format!("`{key}`: {error}"))
}

/// Words of 32 bits.
fn words(file: &TensorFile, key: &str) -> Result<Vec<u32>> {
    match file.dtype(key) {
        Some(Dtype::I32 | Dtype::U32) => {
            Ok(file.raw(key)?.as_chunks::<4>().0.iter().map(|it| u32::from_le_bytes(*it)).collect())
        }
        other => {
            let is = other.map_or("missing".to_owned(), |it| format!("{it:?}"));
            Err(PeftError::bad_file(file.path(), format!("`{key}` is {is}, and words of int32 are read")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use half::f16;
    use safetensors::tensor::TensorView;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    /// The tensors of a layer of 8 × 16 in two groups: name, type, shape, bytes.
    type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

    fn layer() -> Tensors {
        let words = |count: usize| {
            (0..count).flat_map(|it| (it as u32).wrapping_mul(0x1234_5678).to_le_bytes()).collect::<Vec<u8>>()
        };
        let scales: Vec<u8> = (1..=16_u8).flat_map(|it| f16::from_f32(f32::from(it) / 16.0).to_le_bytes()).collect();
        let groups: Vec<u8> = (0..16_i32).flat_map(|it| (it % 2).to_le_bytes()).collect();
        vec![
            ("l.qweight".into(), Dtype::I32, vec![2, 8], words(16)),
            ("l.qzeros".into(), Dtype::I32, vec![2, 1], words(2)),
            ("l.scales".into(), Dtype::F16, vec![2, 8], scales),
            ("l.g_idx".into(), Dtype::I32, vec![16], groups),
            ("l.bias".into(), Dtype::F16, vec![8], vec![0; 16]),
        ]
    }

    fn folder(tensors: &Tensors, config: &Value) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        fs::write(folder.path().join("config.json"), json!({"quantization_config": config}).to_string()).unwrap();
        folder
    }

    fn read(folder: &Path) -> Result<Vec<f32>> {
        Checkpoint::open(folder)?.with_quantised("l.qweight", |it| Ok(it.widened()))
    }

    fn gptq() -> Value {
        json!({"quant_method": "gptq", "bits": 4, "group_size": 8, "checkpoint_format": "gptq"})
    }

    #[test]
    fn a_layer_is_read_and_what_lies_beside_its_codes_is_known() {
        let folder = folder(&layer(), &gptq());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.quantised_shape("l.qweight").unwrap(), [8, 16]);
        assert!(checkpoint.keys().all(|it| it == "l.qweight" || checkpoint.is_beside_quantised(it)));
        // The code of row 3, column 9: word [1, 3], its second code; group 1. The word is 11 · 0x12345678.
        let word = 11_u32.wrapping_mul(0x1234_5678);
        let zero = (0x1234_5678_u32 >> 12 & 15) + 1;
        let wanted = ((word >> 4 & 15) as f32 - zero as f32) * 12.0 / 16.0;
        assert_eq!(read(folder.path()).unwrap()[3 * 16 + 9], wanted);
        // A bias that is not zero belongs to a layer that has one.
        let mut biased = layer();
        biased[4].3[1] = 60;
        let folder = self::folder(&biased, &gptq());
        assert!(!Checkpoint::open(folder.path()).unwrap().is_beside_quantised("l.bias"));
    }

    #[test]
    fn damage_is_named() {
        type Change = fn(&mut Tensors);
        let changes: [(Change, &str); 8] = [
            (|it| drop(it.remove(2)), "it lacks `l.scales`"),
            (|it| it[2].3[3] = 0x7e, "`l.scales` holds NaN"),
            (|it| it[3].3[4] = 2, "`l.g_idx` names the group 2, and there are 2"),
            (|it| it[3].3[4..8].fill(0xff), "`l.g_idx` names the group -1"),
            (|it| (it[2].2, it[2].3) = (vec![1, 8], it[2].3[..16].to_vec()), "`l.scales` has the shape [1, 8]"),
            (
                |it| (it[0].2, it[0].3) = (vec![1, 8], it[0].3[..32].to_vec()),
                "`l.qzeros` has the shape [2, 1], where 8 × 8",
            ),
            (|it| it[0].2 = vec![16], "`l.qweight` is no matrix"),
            (|it| it[0].1 = Dtype::F32, "`l.qweight` is F32"),
        ];
        for (change, wanted) in changes {
            let mut tensors = layer();
            change(&mut tensors);
            let error = read(folder(&tensors, &gptq()).path()).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains(".safetensors") | error.contains("lacks"), "{error}");
        }
        for (config, wanted) in [
            (json!({"quant_method": "gptq", "bits": 3, "group_size": 8}), "`bits` is 3"),
            (json!({"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemv"}), "`version` is \"gemv\""),
            (json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "says bitsandbytes"),
            (Value::Null, "no `quantization_config`"),
            // Groups of another size than the file has.
            (json!({"quant_method": "gptq", "bits": 4, "group_size": 16}), "`l.qzeros` has the shape [2, 1]"),
            (json!({"quant_method": "awq", "bits": 4, "group_size": 8}), "`l.qzeros` has the shape [2, 1]"),
        ] {
            let error = read(folder(&layer(), &config).path()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn older_folders_say_it_in_a_file_of_its_own() {
        let folder = folder(&layer(), &Value::Null);
        fs::write(folder.path().join("quantize_config.json"), r#"{"bits": 4, "group_size": 8, "desc_act": true}"#)
            .unwrap();
        let wanted = self::folder(&layer(), &gptq());
        assert_eq!(read(folder.path()).unwrap(), read(wanted.path()).unwrap());
    }
}
