//! Settings of a training run.

use std::fmt;
use std::str::FromStr;

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

use crate::train::limits::{self, Limit, MOST_ROWS, MOST_STEPS, Range};
use crate::train::schedule::{Schedule, ScheduleConfig};

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
    /// The optimizer.
    #[serde(skip_serializing_if = "Optim::is_default")]
    pub optim: Optim,
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

/// Which optimizer a run has, by the names of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Optim {
    /// AdamW.
    #[default]
    #[serde(rename = "adamw_torch")]
    AdamW,
    /// AdamW whose moments take 8 bits a number, as in bitsandbytes.
    #[serde(rename = "adamw_8bit", alias = "adamw_bnb_8bit")]
    AdamW8bit,
}

impl Optim {
    /// What checkpoints that were written before there was a choice have.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Optim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdamW => "adamw_torch",
            Self::AdamW8bit => "adamw_8bit",
        })
    }
}

impl FromStr for Optim {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "adamw_torch" => Ok(Self::AdamW),
            "adamw_8bit" | "adamw_bnb_8bit" => Ok(Self::AdamW8bit),
            _ => Err(PeftError::config("optim", format!("is `{name}`, expected adamw_torch or adamw_8bit"))),
        }
    }
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
            optim: Optim::default(),
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
    /// Says what makes no sense, before anything is loaded.
    ///
    /// # Errors
    /// If a number is out of its range, or settings do not go together.
    pub fn check(&self) -> Result<()> {
        limits::check(self, &LIMITS)?;
        if self.loraplus_lr_ratio.is_some() && self.lora_fa {
            let reason = "freezes what `loraplus_lr_ratio` slows down: take one of them";
            return Err(PeftError::config("lora_fa", reason));
        }
        if self.lora_fa && self.optim != Optim::default() {
            let reason = format!("is {}, and LoRA-FA has an optimizer of its own: take one of them", self.optim);
            return Err(PeftError::config("optim", reason));
        }
        // How many steps there are does not matter to what it refuses.
        Schedule::new(&self.schedule, 1, self.learning_rate).map(|_| ())
    }
}

/// What the numbers may be. Those of AdamW are what torch takes, but for an ε of 0, which divides by 0.
const LIMITS: [Limit<TrainConfig>; 21] = [
    Limit::number("learning_rate", |it| Some(it.learning_rate), Range::Above(0.0)),
    Limit::number("warmup_steps", |it| Some(it.schedule.warmup_steps), Range::AtLeast(0.0)),
    Limit::number("warmup_ratio", |it| Some(it.schedule.warmup_ratio), Range::Share),
    Limit::whole("batch_size", |it| Some(it.batch_size), 1, MOST_ROWS),
    Limit::whole("gradient_accumulation_steps", |it| Some(it.gradient_accumulation_steps), 1, MOST_ROWS),
    Limit::number("num_train_epochs", |it| Some(it.num_train_epochs), Range::Within(0.0, 1e6)),
    Limit::whole("max_steps", |it| it.max_steps, 1, MOST_STEPS),
    Limit::number("max_grad_norm", |it| Some(it.max_grad_norm), Range::AtLeast(0.0)),
    Limit::number("adam_beta1", |it| Some(it.adam_beta1), Range::BelowOne),
    Limit::number("adam_beta2", |it| Some(it.adam_beta2), Range::BelowOne),
    Limit::number("adam_epsilon", |it| Some(it.adam_epsilon), Range::Above(0.0)),
    Limit::number("weight_decay", |it| Some(it.weight_decay), Range::AtLeast(0.0)),
    Limit::number("loraplus_lr_ratio", |it| it.loraplus_lr_ratio, Range::Above(0.0)),
    Limit::number("loraplus_weight_decay", |it| Some(it.loraplus_weight_decay), Range::AtLeast(0.0)),
    Limit::number("loraplus_lr_embedding", |it| Some(it.loraplus_lr_embedding), Range::Above(0.0)),
    Limit::whole("logging_steps", |it| Some(it.logging_steps), 1, MOST_STEPS),
    Limit::whole("eval_steps", |it| Some(it.eval_steps), 0, MOST_STEPS),
    Limit::whole("eval_batch_size", |it| Some(it.eval_batch_size), 1, MOST_ROWS),
    Limit::whole("save_steps", |it| Some(it.save_steps), 0, MOST_STEPS),
    Limit::whole("save_total_limit", |it| Some(it.save_total_limit), 0, MOST_STEPS),
    Limit::whole("early_stopping_patience", |it| Some(it.early_stopping_patience), 0, MOST_STEPS),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut TrainConfig)) -> String {
        let mut config = TrainConfig::default();
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn every_number_has_a_limit() {
        TrainConfig::default().check().unwrap();
        let known: Vec<&str> = LIMITS.iter().map(|it| it.field).collect();
        let config = TrainConfig { max_steps: Some(1), loraplus_lr_ratio: Some(1.0), ..TrainConfig::default() };
        let json = serde_json::to_value(&config).unwrap();
        let numbers = json.as_object().unwrap().iter().filter(|(_, value)| value.is_number());
        for (field, _) in numbers.filter(|it| it.0 != "seed") {
            assert!(known.contains(&field.as_str()), "`{field}` has no limit");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_by_name() {
        assert_eq!(refused(|it| it.max_grad_norm = f64::NAN), "`max_grad_norm` is NaN, expected a number from 0");
        assert_eq!(refused(|it| it.learning_rate = -1.0), "`learning_rate` is -1, expected a number above 0");
        assert_eq!(refused(|it| it.learning_rate = f64::INFINITY), "`learning_rate` is inf, expected a number above 0");
        assert_eq!(
            refused(|it| it.schedule.warmup_steps = f64::NAN),
            "`warmup_steps` is NaN, expected a number from 0"
        );
        assert_eq!(refused(|it| it.adam_beta2 = 1.0), "`adam_beta2` is 1, expected a number from 0, below 1");
        assert_eq!(
            refused(|it| it.batch_size = 1_000_000_000_000),
            "`batch_size` is 1000000000000, expected a whole number from 1 to 1048576"
        );
        assert_eq!(
            refused(|it| it.num_train_epochs = 1e300),
            "`num_train_epochs` is 1e300, expected a number above 0, at most 1000000"
        );
        assert!(refused(|it| it.num_train_epochs = 0.0).starts_with("`num_train_epochs` is 0,"));
        assert!(refused(|it| it.max_steps = Some(0)).starts_with("`max_steps` is 0, expected a whole number from 1"));
        assert!(refused(|it| it.schedule.lr_scheduler_kwargs.power = Some(2.0)).contains("lr_scheduler_kwargs"));
    }
}
