//! The inputs of a recorded forward pass, by keyword. Whatever could lead outside a table of the model is an error here.

use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::files::checkpoint::{Dtype, TensorFile};
use peft_core::ops::IGNORE_INDEX;
use peft_core::{ModelSpec, PeftError, Result};
use peft_models::{ModelInput, Tokens};
use peft_tasks::tasks::loss::Labels;

/// Keyword arguments of a model's forward in transformers, from a safetensors file.
pub struct ForwardInputs<'a> {
    file: TensorFile,
    device: &'a Device,
    /// Whether the model has adapters that are not merged.
    pub adapted: bool,
    limits: Limits,
}

/// What a model has rows for; `None` where that is not known, or has no end.
#[derive(Debug, Clone, Default)]
struct Limits {
    tokens: Option<i64>,
    width: Option<usize>,
    types: Option<i64>,
    positions: Option<Range<i64>>,
    /// Tokens of a row, behind prompts of adapters.
    length: Option<usize>,
}

/// What holds a row for every row of the batch, the first that is there.
const ROWS: [&str; 5] = ["input_ids", "inputs_embeds", "pixel_values", "input_features", "sample"];

impl<'a> ForwardInputs<'a> {
    /// Keywords of models that read text.
    pub const OF_TEXT: [&'static str; 7] =
        ["input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "task_ids", "labels"];

    /// Keywords of a decoder that has an encoder.
    pub const OF_TARGET: [&'static str; 3] = ["decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask"];

    /// Opens a file. `known` are the keywords that the task understands.
    ///
    /// # Errors
    /// If the file cannot be read, or holds something that the task does not take.
    pub fn open(path: impl AsRef<Path>, known: &[&str], adapted: bool, device: &'a Device) -> Result<Self> {
        let file = TensorFile::open(path)?;
        match file.keys().into_iter().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(PeftError::bad_file(
                file.path(),
                format!("it holds `{key}`, which this task does not take; known are {}", known.join(", ")),
            )),
            None => Ok(Self { file, device, adapted, limits: Limits::default() }),
        }
    }

    /// For a model, of which prompts of adapters take up `taken` positions: ids, positions and lengths that it has no room
    /// for are errors from now on.
    pub fn within(mut self, spec: &ModelSpec, taken: usize) -> Self {
        let table = spec.token_table();
        let tokens = table.map(|it| it.shape[0] as i64);
        let types = spec.layers().find(|it| it.module.ends_with("token_type_embeddings"));
        self.limits = Limits {
            tokens,
            width: table.map(|it| it.shape[1]),
            // GPT-2 looks types up among the tokens.
            types: types.map(|it| it.shape[0] as i64).or(tokens),
            positions: spec.positions.clone(),
            length: spec.max_positions().map(|it| it.saturating_sub(taken)),
        };
        self
    }

    fn bad(&self, reason: String) -> PeftError {
        PeftError::bad_file(self.file.path(), reason)
    }

    /// Rows and tokens of the input: its shape without the width of embeddings.
    fn dims(&self) -> Result<[usize; 2]> {
        let shape = ["input_ids", "inputs_embeds"].iter().find_map(|it| self.file.shape(it));
        match shape {
            Some([batch, seq] | [batch, seq, _]) if *batch > 0 && *seq > 0 => Ok([*batch, *seq]),
            Some(shape) => {
                Err(self.bad(format!("its input has the shape {shape:?}, wanted is [batch, seq], at least 1 each")))
            }
            None => Err(self.bad("it holds no `input_ids`".to_owned())),
        }
    }

    /// Rows of the batch.
    ///
    /// # Errors
    /// If the file holds no input, or one without rows.
    pub fn batch(&self) -> Result<usize> {
        match ROWS.iter().find_map(|it| Some((it, self.file.shape(it)?.first().copied().unwrap_or(0)))) {
            Some((key, 0)) => Err(self.bad(format!("`{key}` has no rows"))),
            Some((_, rows)) => Ok(rows),
            None => Err(self.bad(format!("it holds none of `{}`", ROWS.join("`, `")))),
        }
    }

    /// Whether there is text among the inputs.
    pub fn has_text(&self) -> bool {
        ["input_ids", "inputs_embeds"].iter().any(|it| self.file.shape(it).is_some())
    }

    /// Numbers of this rank, if the file has them.
    ///
    /// # Errors
    /// If they have another rank, no element, or are not finite.
    pub fn floats<const D: usize>(&self, key: &str) -> Result<Option<Tensor<D>>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        if shape.len() != D || shape.contains(&0) {
            return Err(self.bad(format!("`{key}` has the shape {shape:?}, wanted are {D} axes, none of them empty")));
        }
        let data = self.file.floats(key)?;
        if data.iter::<f32>().any(|it| !it.is_finite()) {
            return Err(self.bad(format!("`{key}` holds NaN or infinity")));
        }
        Ok(Some(Tensor::from_data(data, self.device)))
    }

    /// Numbers of this rank.
    ///
    /// # Errors
    /// As [`floats`](Self::floats), or if the file has none under this name.
    pub fn required_floats<const D: usize>(&self, key: &str) -> Result<Tensor<D>> {
        self.floats(key)?.ok_or_else(|| self.bad(format!("it holds no `{key}`")))
    }

    /// How noisy each row is: whole numbers or not, one for all or `[batch]`.
    ///
    /// # Errors
    /// If there are none, not as many as rows, or they are not finite.
    pub fn timesteps(&self, batch: usize) -> Result<Tensor<1>> {
        let Some(shape) = self.file.shape("timestep") else {
            return Err(self.bad("it holds no `timestep`".to_owned()));
        };
        let count = shape.iter().product::<usize>();
        if shape.len() > 1 || (count != 1 && count != batch) {
            let reason = format!("`timestep` has the shape {shape:?}, wanted is one for all rows or [{batch}]");
            return Err(self.bad(reason));
        }
        let is_whole = self.file.dtype("timestep").is_some_and(|it| matches!(it, Dtype::I64 | Dtype::I32));
        let values: Vec<f32> = match is_whole {
            true => self.file.integers("timestep")?.iter::<i64>().map(|it| it as f32).collect(),
            false => self.file.floats("timestep")?.iter::<f32>().collect(),
        };
        if values.iter().any(|it| !it.is_finite()) {
            return Err(self.bad("`timestep` holds NaN or infinity".to_owned()));
        }
        Ok(Tensor::from_floats(values.as_slice(), self.device))
    }

    /// Pictures `[batch, channels, height, width]` under `pixel_values`.
    ///
    /// # Errors
    /// If there are none, they have other channels, or are smaller than `least`, height and width.
    pub fn pixel_values(&self, channels: usize, least: [usize; 2]) -> Result<Tensor<4>> {
        let pixels = self.required_floats::<4>("pixel_values")?;
        match pixels.dims() {
            [_, given, height, width] if given == channels && height >= least[0] && width >= least[1] => Ok(pixels),
            shape => Err(self.bad(format!(
                "`pixel_values` has the shape {shape:?}, but the model reads {channels} channels of at least {} × {} pixels",
                least[0], least[1]
            ))),
        }
    }

    /// Classes in the shape of `labels`: one of so many, or `ignored` where nothing is learned.
    ///
    /// # Errors
    /// If there is another number among them, or they have another rank or not as many rows as the input.
    pub fn classes<const D: usize>(&self, classes: usize, ignored: i64) -> Result<Option<Tensor<D, Int>>> {
        let Some(shape) = self.file.shape("labels") else { return Ok(None) };
        let batch = self.batch()?;
        match <[usize; D]>::try_from(shape) {
            Ok(dims) if dims[0] == batch => self.checked("labels", dims, Some(0..classes as i64), Some(ignored)),
            _ => Err(self.bad(format!("`labels` has the shape {shape:?}, wanted are {D} axes for {batch} rows"))),
        }
    }

    /// Integers of this shape, none outside `range` but those of `also`.
    fn checked<const D: usize>(
        &self,
        key: &str,
        dims: [usize; D],
        range: Option<Range<i64>>,
        also: Option<i64>,
    ) -> Result<Option<Tensor<D, Int>>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        if shape != dims {
            return Err(self.bad(format!("`{key}` has the shape {shape:?}, beside the input it must be {dims:?}")));
        }
        let data = self.file.integers(key)?;
        if let Some(range) = range
            && let Some(odd) = data.iter::<i64>().find(|it| !range.contains(it) && Some(*it) != also)
        {
            let more = also.map_or(String::new(), |it| format!(", or {it}"));
            let reason = format!("`{key}` holds {odd}, expected {} to {}{more}", range.start, range.end - 1);
            return Err(self.bad(reason));
        }
        Ok(Some(Tensor::from_data(data, self.device)))
    }

    /// What every position of the input is to become, `[batch, seq]`: one of so many classes, or −100 for nothing.
    ///
    /// # Errors
    /// If there is another number among them, or they have another shape than the input.
    pub fn labels(&self, classes: usize) -> Result<Option<Tensor<2, Int>>> {
        self.checked("labels", self.dims()?, Some(0..classes as i64), Some(IGNORE_INDEX))
    }

    /// What a decoder is to write, `[batch, target]`: tokens, or −100 for nothing.
    ///
    /// # Errors
    /// If there is another number among them, or there are not as many rows as in the input.
    pub fn target_labels(&self) -> Result<Option<Tensor<2, Int>>> {
        let Some(dims) = self.target_dims("labels")? else { return Ok(None) };
        self.checked("labels", dims, self.limits.tokens.map(|it| 0..it), Some(IGNORE_INDEX))
    }

    /// Tokens for a decoder, `[batch, target]`, if the file has them.
    ///
    /// # Errors
    /// If the model lacks one of them, or they are too many.
    pub fn target_tokens(&self) -> Result<Option<Tokens>> {
        if let Some(dims) = self.target_dims("decoder_input_ids")? {
            let ids = self.checked("decoder_input_ids", dims, self.limits.tokens.map(|it| 0..it), None)?;
            return Ok(ids.map(Tokens::Ids));
        }
        let embeddings = self.embeddings("decoder_inputs_embeds")?;
        Ok(embeddings.map(Tokens::Embeddings))
    }

    /// 1 for tokens that a decoder sees, 0 for padding, in the shape of `tokens`.
    ///
    /// # Errors
    /// If it has another shape.
    pub fn target_mask(&self, tokens: &Tokens) -> Result<Option<Tensor<2, Int>>> {
        self.checked("decoder_attention_mask", tokens.dims(), Some(0..2), None)
    }

    /// Positions of a decoder's tokens, in the shape of `tokens`.
    ///
    /// # Errors
    /// If they have another shape, or the model lacks one of them.
    pub fn target_positions(&self, tokens: &Tokens) -> Result<Option<Tensor<2, Int>>> {
        self.checked("decoder_position_ids", tokens.dims(), self.limits.positions.clone(), None)
    }

    fn target_dims(&self, key: &str) -> Result<Option<[usize; 2]>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        let batch = self.batch()?;
        match shape {
            [rows, target] if *rows == batch && *target > 0 => {
                self.check_length(key, *target)?;
                Ok(Some([*rows, *target]))
            }
            _ => Err(self.bad(format!("`{key}` has the shape {shape:?}, wanted is [{batch}, target]"))),
        }
    }

    fn check_length(&self, key: &str, seq: usize) -> Result<()> {
        match self.limits.length.filter(|it| seq > *it) {
            Some(length) => {
                Err(self
                    .bad(format!("`{key}` has {seq} tokens in a row, but the model only {length} positions for them")))
            }
            None => Ok(()),
        }
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Integers, `[batch, seq]`, if the file has them.
    ///
    /// # Errors
    /// If they have another shape.
    pub fn integers(&self, key: &str) -> Result<Option<Tensor<2, Int>>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        if shape.len() != 2 {
            let reason = format!("`{key}` has the shape {shape:?}, wanted is [batch, seq]");
            return Err(PeftError::bad_file(self.file.path(), reason));
        }
        Ok(Some(Tensor::from_data(self.file.integers(key)?, self.device)))
    }

    /// Embeddings, `[batch, seq, d_model]`, if the file has them.
    ///
    /// # Errors
    /// If they have another shape.
    pub fn embeddings(&self, key: &str) -> Result<Option<Tensor<3>>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        let batch = self.batch()?;
        match shape {
            [rows, seq, width] if *rows == batch && *seq > 0 && self.limits.width.is_none_or(|it| it == *width) => {
                self.check_length(key, *seq)?;
                Ok(Some(Tensor::from_data(self.file.floats(key)?, self.device)))
            }
            _ => {
                let width = self.limits.width.map_or("d_model".to_owned(), |it| it.to_string());
                Err(self.bad(format!("`{key}` has the shape {shape:?}, wanted is [{batch}, seq, {width}]")))
            }
        }
    }

    /// One position a row, `[batch]`, if the file has them.
    ///
    /// # Errors
    /// If they have another shape.
    pub fn places(&self, key: &str) -> Result<Option<Tensor<1, Int>>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        let [batch, _] = self.dims()?;
        if shape.iter().product::<usize>() != batch {
            return Err(self.bad(format!("`{key}` has the shape {shape:?}, wanted is [{batch}]")));
        }
        Ok(Some(Tensor::from_data(flat(self.file.integers(key)?), self.device)))
    }

    /// The labels of a classifier with this many outputs: class ids, or values.
    ///
    /// # Errors
    /// If there are not as many as rows, or a class is none of them.
    pub fn class_labels(&self, num_labels: usize) -> Result<Option<Labels>> {
        let Some(shape) = self.file.shape("labels") else { return Ok(None) };
        let batch = self.batch()?;
        let is_integer =
            self.file.dtype("labels").is_some_and(|it| matches!(it, Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL));
        if is_integer && num_labels > 1 && shape.len() == 1 {
            let classes = self.checked("labels", [batch], Some(0..num_labels as i64), Some(IGNORE_INDEX))?;
            return Ok(classes.map(Labels::Classes));
        }
        let width = shape.iter().product::<usize>() / batch;
        if shape.first() != Some(&batch) || width == 0 {
            return Err(self.bad(format!("`labels` has the shape {shape:?}, beside {batch} rows of input")));
        }
        let values = Tensor::<1>::from_data(flat(self.file.floats("labels")?), self.device);
        Ok(Some(Labels::Values(values.reshape([batch, width]))))
    }

    fn tasks(&self) -> Result<Option<Tensor<1, Int>>> {
        let tasks = self.file.shape("task_ids").map(|_| self.file.integers("task_ids")).transpose()?;
        Ok(tasks.map(|it| Tensor::from_data(it, self.device)))
    }

    /// What goes into the model.
    ///
    /// # Errors
    /// If there is neither `input_ids` nor `inputs_embeds`, a tensor has a wrong shape, or the model has no row for a token,
    /// a position or a type.
    pub fn model_input(&self) -> Result<ModelInput> {
        let dims = self.dims()?;
        let tokens = match self.checked("input_ids", dims, self.limits.tokens.map(|it| 0..it), None)? {
            Some(ids) => {
                self.check_length("input_ids", dims[1])?;
                Tokens::Ids(ids)
            }
            None => match self.embeddings("inputs_embeds")? {
                Some(embeddings) => Tokens::Embeddings(embeddings),
                None => return Err(self.bad("it holds no `input_ids`".to_owned())),
            },
        };
        let mut input = ModelInput::new(tokens);
        input.attention_mask = self.checked("attention_mask", dims, Some(0..2), None)?;
        input.position_ids = self.checked("position_ids", dims, self.limits.positions.clone(), None)?;
        input.token_type_ids = self.checked("token_type_ids", dims, self.limits.types.map(|it| 0..it), None)?;
        input.task_ids = self.tasks()?;
        Ok(input)
    }
}

fn flat(data: TensorData) -> TensorData {
    let (bytes, shape, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, [shape.num_elements()], dtype)
}
