//! Batch batches as the tensors that a model takes.

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_models::{ModelInput, Tokens};

use crate::data::batch::Batch;

/// `[rows, width]` of integers.
pub fn grid<T: Copy + Into<i64>>(values: &[T], rows: usize, width: usize, device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = values.iter().map(|it| (*it).into()).collect();
    Tensor::from_data(TensorData::new(values, [rows, width]), device)
}

/// `[n]` of integers.
pub fn line(values: &[i64], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

impl Batch {
    /// The model's input.
    ///
    /// A mask is given only where there is padding, and positions only where they do not simply count: in packed rows
    /// and behind padding on the left.
    pub fn input(&self, device: &Device) -> ModelInput {
        let grid_of = |values: &[u32]| grid(values, self.rows, self.width, device);
        let mut input = ModelInput::new(Tokens::Ids(grid_of(&self.input_ids)));
        if self.attention_mask.contains(&0) {
            input.attention_mask = Some(grid(&self.attention_mask, self.rows, self.width, device));
        }
        let left = self.attention_mask.chunks(self.width).any(|row| row[0] == 0);
        if self.segment_ids.is_some() || left {
            input.position_ids = Some(grid_of(&self.position_ids));
        }
        input.token_type_ids = self.token_type_ids.as_deref().map(grid_of);
        input.segment_ids = self.segment_ids.as_deref().map(grid_of);
        input.task_ids = self.task_ids.as_ref().map(|it| line(it, device));
        input
    }

    /// Number of tokens, filling excluded.
    pub fn tokens(&self) -> usize {
        self.attention_mask.iter().map(|it| usize::from(*it)).sum()
    }
}
