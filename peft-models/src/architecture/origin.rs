//! The folder that a model was loaded from.

use std::path::PathBuf;

/// Where a model came from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The folder that was read.
    pub(crate) folder: PathBuf,
    /// What was asked for: the same folder, or a hub id.
    pub(crate) name: String,
    /// Paths of the parameters that it does not hold: they were drawn.
    pub(crate) drawn: Vec<String>,
}
