//! The inputs of a recorded forward pass, by keyword.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::files::checkpoint::{Dtype, TensorFile};
use peft_core::{PeftError, Result};
use peft_models::{ModelInput, Tokens};
use peft_tasks::tasks::loss::Labels;

/// Keyword arguments of a model's forward in transformers, from a safetensors file.
pub struct ForwardInputs<'a> {
    file: TensorFile,
    device: &'a Device,
    /// Whether the model has adapters that are not merged.
    pub adapted: bool,
}

/// Keywords that every task understands.
const KEYWORDS: [&str; 7] =
    ["input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "task_ids", "labels"];

impl<'a> ForwardInputs<'a> {
    /// Opens a file. `more` are keywords that the task understands beside the usual ones.
    ///
    /// # Errors
    /// If the file cannot be read, or holds something that the task does not take.
    pub fn open(path: impl AsRef<Path>, more: &[&str], adapted: bool, device: &'a Device) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let known = [KEYWORDS.as_slice(), more].concat();
        match file.keys().into_iter().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(PeftError::bad_file(
                file.path(),
                format!("it holds `{key}`, which this task does not take; known are {}", known.join(", ")),
            )),
            None => Ok(Self { file, device, adapted }),
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
    /// If they cannot be read.
    pub fn embeddings(&self, key: &str) -> Result<Option<Tensor<3>>> {
        match self.file.shape(key) {
            Some([_, _, _]) => Ok(Some(Tensor::from_data(self.file.floats(key)?, self.device))),
            _ => Ok(None),
        }
    }

    /// One position a row, `[batch]`, if the file has them.
    ///
    /// # Errors
    /// If they have another shape.
    pub fn places(&self, key: &str) -> Result<Option<Tensor<1, Int>>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        let batch: usize = shape.iter().product();
        if batch != shape[0] {
            let reason = format!("`{key}` has the shape {shape:?}, wanted is [batch]");
            return Err(PeftError::bad_file(self.file.path(), reason));
        }
        Ok(Some(Tensor::from_data(flat(self.file.integers(key)?), self.device)))
    }

    /// The labels of a classifier with this many outputs: class ids, or values.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn class_labels(&self, num_labels: usize) -> Result<Option<Labels>> {
        let Some(shape) = self.file.shape("labels") else { return Ok(None) };
        let batch = shape[0];
        let is_integer =
            self.file.dtype("labels").is_some_and(|it| matches!(it, Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL));
        Ok(Some(if is_integer && num_labels > 1 && shape.len() == 1 {
            Labels::Classes(Tensor::from_data(self.file.integers("labels")?, self.device))
        } else {
            let values = Tensor::<1>::from_data(flat(self.file.floats("labels")?), self.device);
            let width = values.dims()[0] / batch.max(1);
            Labels::Values(values.reshape([batch, width]))
        }))
    }

    fn tasks(&self) -> Result<Option<Tensor<1, Int>>> {
        let tasks = self.file.shape("task_ids").map(|_| self.file.integers("task_ids")).transpose()?;
        Ok(tasks.map(|it| Tensor::from_data(it, self.device)))
    }

    /// What goes into the model.
    ///
    /// # Errors
    /// If there is neither `input_ids` nor `inputs_embeds`, or a tensor has a wrong shape.
    pub fn model_input(&self) -> Result<ModelInput> {
        let tokens = match self.integers("input_ids")? {
            Some(ids) => Tokens::Ids(ids),
            None => match self.embeddings("inputs_embeds")? {
                Some(embeddings) => Tokens::Embeddings(embeddings),
                None => return Err(PeftError::bad_file(self.file.path(), "it holds no `input_ids`")),
            },
        };
        let mut input = ModelInput::new(tokens);
        input.attention_mask = self.integers("attention_mask")?;
        input.position_ids = self.integers("position_ids")?;
        input.token_type_ids = self.integers("token_type_ids")?;
        input.task_ids = self.tasks()?;
        Ok(input)
    }
}

fn flat(data: TensorData) -> TensorData {
    let (bytes, shape, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, [shape.num_elements()], dtype)
}
