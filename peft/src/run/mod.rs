//! A run: from a data file to a task.

pub mod labels;
pub mod prepare;
