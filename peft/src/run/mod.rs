//! A run: from a data file to a task.

pub mod labels;

/// The file of a run, where it was before it moved to `peft_tasks`.
pub mod prepare {
    pub use peft_tasks::data::text_data::TextData;
}
