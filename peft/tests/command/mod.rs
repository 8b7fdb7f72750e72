//! The `peft` command as a user calls it.

mod adapters;
mod labels;
mod methods;
mod questions;
mod run_file;
