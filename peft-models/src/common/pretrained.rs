//! Where a model came from.

use std::path::{Path, PathBuf};

use peft_core::Result;

/// What has a folder with `config.json`, a tokenizer and perhaps a chat template: a loaded model, or the folder itself.
pub trait Pretrained {
    /// The folder.
    ///
    /// # Errors
    /// If the model was built from a configuration, and so has none.
    fn folder(&self) -> Result<&Path>;
}

impl Pretrained for Path {
    fn folder(&self) -> Result<&Path> {
        Ok(self)
    }
}

impl Pretrained for PathBuf {
    fn folder(&self) -> Result<&Path> {
        Ok(self)
    }
}
