//! Models and adapters by name: a folder, or an id on the hub.

use std::path::{Path, PathBuf};

use peft_core::Result;

use crate::load::hub::{Hub, What};

/// The folder of a base model: the name itself if it is one, else what the hub has under this id, downloaded once with a
/// progress bar.
///
/// # Errors
/// If there is neither such a folder nor such an id.
pub fn model_folder(name: &str) -> Result<PathBuf> {
    folder(name, What::Model)
}

/// The same for an adapter.
///
/// # Errors
/// As [`model_folder`].
pub fn adapter_folder(name: &str) -> Result<PathBuf> {
    // A file is an adapter of an image program, which only those commands read that know such.
    let is_file = name.ends_with(".safetensors") && Path::new(name).is_file();
    if is_file { Ok(PathBuf::from(name)) } else { folder(name, What::Adapter) }
}

fn folder(name: &str, what: What) -> Result<PathBuf> {
    // An existing folder is itself, whatever its name looks like.
    match Path::new(name).is_dir() {
        true => Ok(PathBuf::from(name)),
        false => Hub::from_env().with_progress(true).resolve(name, what),
    }
}
