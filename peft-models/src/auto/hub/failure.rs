//! Why something could not be fetched, in words that say what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use peft_core::{PeftError, printable};

use super::name::{RepoName, similar};
use super::settings::Hub;

/// Why a request or a transfer came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server's answer.
    Status(u16),
    /// No answer, or one that broke off; it may work the next time.
    Connection(String),
    /// An answer that no hub gives.
    NotAHub(String),
    /// What came is not the file that was promised.
    Damaged(String),
    /// The settings do not make a request.
    Settings(String),
    /// The cache.
    Cache(PathBuf, io::Error),
}

impl Failure {
    /// For `map_err` of what is done in the cache.
    pub(super) fn cache(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::Cache(path, error)
    }

    /// Whether the same request may succeed later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Connection(_) | Self::Status(408 | 429 | 500..))
    }

    /// The message for a user who asked for a file of a repository.
    pub(super) fn explain(&self, hub: &Hub, repo: &RepoName<'_>, file: &str) -> PeftError {
        let RepoName { id, revision, .. } = repo;
        let endpoint = printable(&hub.endpoint);
        let page = format!("{endpoint}/{id}");
        let reason = match self {
            Self::Status(401 | 403) if hub.token.is_none() => format!(
                "the repository is private or gated, or does not exist; check the spelling, accept its terms at {page} \
                 if it has any, and set HF_TOKEN to a token of an account that may read it"
            ),
            Self::Status(401 | 403) => format!(
                "the token has no access: the repository is private or gated, or does not exist; check the spelling, \
                 accept its terms at {page} if it has any, and check HF_TOKEN"
            ),
            Self::Status(404) => {
                format!("there is no repository {page} with the revision `{revision}`; check the spelling")
            }
            Self::Status(429) => "the server refuses for now because of too many requests; try again later".to_owned(),
            Self::Status(code) => format!("{endpoint} answered with status {code}; try again later"),
            Self::Connection(error) => {
                format!("{error}; check the connection to {endpoint}, or set HF_HUB_OFFLINE=1 to use only the cache")
            }
            Self::NotAHub(error) => format!("{endpoint} does not answer like a hub: {error}; check HF_ENDPOINT"),
            Self::Damaged(error) => format!("{error}; nothing of it was kept, so try again"),
            Self::Settings(error) => error.clone(),
            Self::Cache(path, error) => format!(
                "cannot write {}: {error}; check the space and the permissions of {}",
                path.display(),
                hub.cache.display()
            ),
        };
        let hint = similar(Path::new(id));
        PeftError::Invalid(format!("`{id}` is no local folder, and cannot fetch `{file}` of it: {reason}{hint}"))
    }
}

/// A header or a name of a server as it may be shown: in one line, and not endless.
pub(super) fn shown(text: &str) -> impl fmt::Display {
    const LONGEST: usize = 80;
    let mut short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}
