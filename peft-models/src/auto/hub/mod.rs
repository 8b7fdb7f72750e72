//! Models and adapters by name: a local folder, or a repository of the Hugging Face Hub.
//!
//! What a server says is not trusted. Hashes and sizes are compared before a file gets its name in the cache, names are
//! checked before they become paths, and the token goes to the server that the user chose and to no other.

#[cfg(feature = "hub")]
mod address;
#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod content;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod failure;
#[cfg(feature = "hub")]
mod listing;
mod name;
mod settings;
#[cfg(feature = "hub")]
mod snapshot;

use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result};

use name::{RepoName, is_path, similar};
pub use settings::{Hub, What};
#[cfg(feature = "hub")]
use snapshot::fetch;

/// The folder that a name stands for; [`Hub::resolve`] with the settings of the environment, without a progress bar.
pub fn resolve(name: &str, what: What) -> Result<PathBuf> {
    Hub::from_env().resolve(name, what)
}

impl Hub {
    /// The folder that a name stands for.
    ///
    /// A local folder is returned as it is. Anything else is the name of a repository, `owner/name` or `name`, with a
    /// branch, tag or commit behind an `@` if it is not to be `main`, and a folder of the repository behind a `:` if it is
    /// not to be the whole: `owner/name@v1.0:sub/folder`. `owner/name/sub/folder` is understood too, unless there is a local
    /// folder `owner`.
    ///
    /// What the cache holds of a revision is used without asking the server whether it has moved on; all files of the
    /// folder are of one commit.
    ///
    /// # Errors
    /// If there is no such folder or repository, it lacks a file that it must have, or what the server sends is not what it
    /// promised. The message says what to do.
    pub fn resolve(&self, name: &str, what: What) -> Result<PathBuf> {
        let path = Path::new(name);
        if path.is_dir() {
            return Ok(path.to_path_buf());
        }
        if path.is_file() {
            return Err(PeftError::bad_file(path, "it is a file; give the folder that it lies in"));
        }
        if is_path(name) {
            return Err(PeftError::bad_file(path, format!("there is no such folder{}", similar(path))));
        }
        match RepoName::parse(name) {
            Some(repo) => fetch(self, &repo, what),
            None => {
                let reason = "is neither a folder nor the name of a repository, which is `owner/name`, \
                              `owner/name@revision` or `owner/name@revision:folder`";
                Err(PeftError::Invalid(format!("`{name}` {reason}{}", similar(path))))
            }
        }
    }
}

#[cfg(not(feature = "hub"))]
fn fetch(_: &Hub, repo: &RepoName<'_>, _: What) -> Result<PathBuf> {
    let reason = "this build is without the feature `hub`: build with `--features hub`, or fetch it with another tool \
                  and give the folder";
    Err(PeftError::unsupported(format!("`{}` is no local folder, and fetching it from a hub", repo.id), reason))
}
