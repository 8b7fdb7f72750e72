//! Settings of a training run.

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

use crate::train::schedule::ScheduleConfig;

/// Settings of a run. Names are those of transformers' training arguments where there is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Highest learning rate. LoRA wants about ten times what full fine-tuning does.
    pub learning_rate: f64,
    /// Its course over the run.
    #[serde(flatten)]
    pub schedule: ScheduleConfig,
    /// Rows in a forward pass.
    pub batch_size: usize,
    /// Forward passes in a step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data, if `max_steps` is not given.
    pub num_train_epochs: f64,
    /// Optimizer steps.
    pub max_steps: Option<usize>,
    /// Largest norm of all gradients together; 0 does not clip.
    pub max_grad_norm: f64,
    /// AdamW's decay of the first moment.
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment.
    pub adam_beta2: f64,
    /// AdamW's ε.
    pub adam_epsilon: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// LoRA+: how many times faster than `A` the factor `B` and all vectors learn. Its weight decay is
    /// `loraplus_weight_decay`, not `weight_decay`.
    pub loraplus_lr_ratio: Option<f64>,
    /// LoRA+: weight decay of all but biases and `LayerNorm`s.
    pub loraplus_weight_decay: f64,
    /// LoRA+: highest learning rate of factors on embeddings.
    pub loraplus_lr_embedding: f64,
    /// LoRA-FA: freeze `A` and project the gradient of `B`. The reference's ε is 1e-6 there.
    pub lora_fa: bool,
    /// Multiply with weights in bf16, where the device can: [`within_bf16`](peft_core::ops::within_bf16) says what that is. Evaluations stay in
    /// single precision.
    pub bf16: bool,
    /// Layers keep only their inputs and are computed again in the backward pass: less memory, more time, the same numbers
    /// (see [`gradient_checkpointing`](peft_core::forward::gradient_checkpointing)).
    pub gradient_checkpointing: bool,
    /// Rows of like length together.
    pub group_by_length: bool,
    /// Steps between lines of the log.
    pub logging_steps: usize,
    /// Steps between evaluations; 0 evaluates at the end only.
    pub eval_steps: usize,
    /// Rows in a forward pass of an evaluation.
    pub eval_batch_size: usize,
    /// Steps between checkpoints; 0 writes none.
    pub save_steps: usize,
    /// Checkpoints that are kept; 0 keeps all.
    pub save_total_limit: usize,
    /// Evaluations without improvement after which the run ends; 0 never ends it early. Otherwise the adapter is at the
    /// end the one whose evaluation was best, as with the reference's `load_best_model_at_end`, which it asks for then.
    pub early_stopping_patience: usize,
    /// What order, dropout and starting values depend on.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            schedule: ScheduleConfig::default(),
            batch_size: 8,
            gradient_accumulation_steps: 1,
            num_train_epochs: 3.0,
            max_steps: None,
            max_grad_norm: 1.0,
            // torch's defaults of AdamW
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.01,
            loraplus_lr_ratio: None,
            loraplus_weight_decay: 0.0,
            loraplus_lr_embedding: 1e-6,
            lora_fa: false,
            bf16: false,
            gradient_checkpointing: false,
            group_by_length: false,
            logging_steps: 10,
            eval_steps: 0,
            eval_batch_size: 8,
            save_steps: 0,
            save_total_limit: 2,
            early_stopping_patience: 0,
            seed: 42,
        }
    }
}

impl TrainConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let positive = |field: &str, value: f64| {
            let reason = format!("is {value}, expected a number above 0");
            if value > 0.0 && value.is_finite() { Ok(()) } else { Err(PeftError::config(field, reason)) }
        };
        positive("learning_rate", self.learning_rate)?;
        positive("batch_size", self.batch_size as f64)?;
        positive("gradient_accumulation_steps", self.gradient_accumulation_steps as f64)?;
        positive("adam_epsilon", self.adam_epsilon)?;
        if let Some(ratio) = self.loraplus_lr_ratio {
            positive("loraplus_lr_ratio", ratio)?;
            positive("loraplus_lr_embedding", self.loraplus_lr_embedding)?;
            if self.lora_fa {
                return Err(PeftError::config(
                    "lora_fa",
                    "freezes what `loraplus_lr_ratio` slows down: take one of them",
                ));
            }
        }
        match self.max_steps {
            Some(steps) => positive("max_steps", steps as f64),
            None => positive("num_train_epochs", self.num_train_epochs),
        }
    }

    /// Whether a run with these settings gives the same numbers as one with the others.
    pub(crate) fn gives_numbers_of(&self, other: &Self) -> bool {
        let numbers = |it: &Self| Self {
            gradient_checkpointing: false,
            logging_steps: 0,
            save_steps: 0,
            save_total_limit: 0,
            ..it.clone()
        };
        numbers(self) == numbers(other)
    }
}
