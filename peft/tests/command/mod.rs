//! The `peft` command as a user calls it.

mod adapters;
mod captions;
mod damaged_base;
mod data_forms;
mod devices;
mod inputs;
mod labels;
mod methods;
mod output;
mod quantised;
mod questions;
mod recordings;
mod run_file;
mod run_folder;
mod signals;
mod texts;
