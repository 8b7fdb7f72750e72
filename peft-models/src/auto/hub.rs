//! Models and adapters by name: a local folder, or a repository of the Hugging Face Hub.

use std::fmt;
use std::path::{Path, PathBuf};

use peft_core::{PeftError, Result, nearest};

/// What a name is to stand for: decides which files are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// `config.json`, the weights whole or in shards, and the tokenizer's files where there are any.
    Model,
    /// `adapter_config.json` and `adapter_model.safetensors`, and `labels.json` where there is one.
    Adapter,
}

/// The folder that a name stands for; [`Hub::resolve`] with the settings of the environment, without a progress bar.
pub fn resolve(name: &str, what: What) -> Result<PathBuf> {
    Hub::from_env().resolve(name, what)
}

/// Where repositories come from and where they are kept.
///
/// The cache is the one of the Python libraries, in both directions.
#[derive(Clone)]
pub struct Hub {
    /// The server, without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--owner--name` folders.
    pub cache: PathBuf,
    /// Sent to the server with every request.
    pub token: Option<String>,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// Whether a progress bar is drawn on stderr while a file is fetched.
    pub progress: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("progress", &self.progress)
            .finish()
    }
}

impl Hub {
    /// The hub that the environment describes: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` or the token file
    /// that a login left, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok(), &std::env::home_dir().unwrap_or_default())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>, user: &Path) -> Self {
        let variable = |name: &str| variable(name).map(|it| it.trim().to_owned()).filter(|it| !it.is_empty());
        let folder = |name: &str| {
            variable(name).map(|it| match it.strip_prefix("~/") {
                Some(rest) => user.join(rest),
                None => PathBuf::from(it),
            })
        };
        let home = folder("HF_HOME")
            .unwrap_or_else(|| folder("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache")).join("huggingface"));
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let read = || std::fs::read_to_string(&token_file).ok();
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(read);
        let is_on = |it: String| ["1", "on", "yes", "true"].contains(&it.to_lowercase().as_str());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: folder("HF_HUB_CACHE")
                .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            token: token.map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(is_on),
            progress: false,
        }
    }

    /// With or without a progress bar.
    pub fn with_progress(mut self, progress: bool) -> Self {
        self.progress = progress;
        self
    }

    /// The folder that a name stands for.
    ///
    /// A local folder is returned as it is. Anything else is the name of a repository, `owner/name` or `name`, with a
    /// branch, tag or commit behind an `@` if it is not to be `main`. What the cache holds of a revision is used
    /// without asking the server whether it has moved on; all files of the folder are of one commit.
    ///
    /// # Errors
    /// If there is no such folder or repository, or it lacks a file that it must have. The message says what to do.
    pub fn resolve(&self, name: &str, what: What) -> Result<PathBuf> {
        let path = Path::new(name);
        if path.is_dir() {
            return Ok(path.to_path_buf());
        }
        if path.is_file() {
            return Err(PeftError::bad_file(path, "it is a file; give the folder that it lies in"));
        }
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        if is_path(id) {
            return Err(PeftError::bad_file(path, format!("there is no such folder{}", similar(path))));
        }
        let is_plain = |it: &str| it.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
        let is_part = |it: &str| !it.is_empty() && is_plain(it) && !it.contains("..") && it != ".";
        if !id.split('/').all(is_part) || !revision.split('/').all(is_part) {
            let reason =
                "is neither a folder nor the name of a repository, which is `owner/name` or `owner/name@revision`";
            return Err(PeftError::Invalid(format!("`{name}` {reason}{}", similar(path))));
        }
        fetch(self, id, revision, what)
    }
}

/// Whether a name can only be meant as a path.
fn is_path(name: &str) -> bool {
    name.starts_with(['.', '/', '~']) || name.ends_with('/') || name.contains('\\') || name.matches('/').count() > 1
}

/// Folders beside a missing one that are spelled almost like it, as an end of a sentence.
fn similar(path: &Path) -> String {
    let Some(name) = path.file_name().and_then(|it| it.to_str()) else { return String::new() };
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let beside: Vec<String> =
        entries.filter(|it| it.path().is_dir()).filter_map(|it| it.file_name().into_string().ok()).collect();
    match nearest(name, beside.iter().map(String::as_str)).first() {
        Some(near) => format!("; did you mean {}?", path.with_file_name(near).display()),
        None => String::new(),
    }
}

#[cfg(not(feature = "hub"))]
fn fetch(_: &Hub, id: &str, _: &str, _: What) -> Result<PathBuf> {
    let reason = "this build is without the feature `hub`: build with `--features hub`, or fetch it with another tool \
                  and give the folder";
    Err(PeftError::unsupported(format!("`{id}` is no local folder, and fetching it from a hub"), reason))
}

#[cfg(feature = "hub")]
use remote::fetch;

#[cfg(feature = "hub")]
mod remote {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Component, Path, PathBuf};

    use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
    use hf_hub::{Cache, Repo, RepoType};
    use peft_core::{CONFIG_FILE, LABELS_FILE, PeftError, Result, WEIGHTS_FILE};
    use serde::Deserialize;

    use super::{Hub, What, similar};

    const MODEL_CONFIG: &str = "config.json";
    const MODEL_WEIGHTS: &str = "model.safetensors";
    const MODEL_INDEX: &str = "model.safetensors.index.json";

    /// Files that a model may come without.
    const OPTIONAL: [&str; 5] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
    ];

    /// Attempts after a transfer that broke off.
    const RETRIES: usize = 3;

    pub(super) fn fetch(hub: &Hub, id: &str, revision: &str, what: What) -> Result<PathBuf> {
        let mut snapshot = Snapshot::find(hub, id, revision, what)?;
        match what {
            What::Adapter => {
                snapshot.require(CONFIG_FILE)?;
                snapshot.require(WEIGHTS_FILE)?;
                snapshot.offer(LABELS_FILE)?;
            }
            What::Model => {
                snapshot.require(MODEL_CONFIG)?;
                match snapshot.get(MODEL_WEIGHTS)? {
                    Some(_) => {}
                    None => match snapshot.get(MODEL_INDEX)? {
                        Some(index) => shards(&index)?.iter().try_for_each(|it| snapshot.require(it))?,
                        None => return Err(snapshot.missing_data(MODEL_WEIGHTS)),
                    },
                }
                OPTIONAL.iter().try_for_each(|it| snapshot.offer(it))?;
            }
        }
        snapshot.finish()
    }

    /// The files that an index lists.
    fn shards(index: &Path) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = fs::read_to_string(index).map_err(PeftError::io("read", index))?;
        let parsed: Index = serde_json::from_str(&text).map_err(|error| PeftError::bad_file(index, error))?;
        let mut names: Vec<String> = parsed.weight_map.into_values().collect();
        names.sort();
        names.dedup();
        // The list comes from elsewhere, and its entries become paths here.
        let leaves = |it: &&String| !Path::new(it).components().all(|part| matches!(part, Component::Normal(_)));
        match names.iter().find(leaves) {
            Some(name) => Err(PeftError::bad_file(index, format!("it lists `{name}`, which leaves the repository"))),
            None => Ok(names),
        }
    }

    /// One commit of a repository in the cache, filled on demand.
    struct Snapshot<'a> {
        hub: &'a Hub,
        id: &'a str,
        revision: &'a str,
        commit: String,
        folder: PathBuf,
        /// Empty files that say what the commit does not have. The Python libraries write and read them too.
        absent: PathBuf,
        api: Option<ApiRepo>,
        changed: bool,
    }

    impl<'a> Snapshot<'a> {
        fn find(hub: &'a Hub, id: &'a str, revision: &'a str, what: What) -> Result<Self> {
            let root = hub.cache.join(repo(id, revision).folder_name());
            let known = fs::read_to_string(root.join("refs").join(revision)).ok().map(|it| it.trim().to_owned());
            let is_commit = || root.join("snapshots").join(revision).is_dir().then(|| revision.to_owned());
            let commit = match known.or_else(is_commit) {
                Some(commit) => commit,
                None if hub.offline => return Err(offline(hub, id, "it")),
                None => remote_commit(hub, id, revision, what)?,
            };
            if !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
                return Err(PeftError::Invalid(format!("`{commit}` is no name of a commit of `{id}`")));
            }
            let api = match hub.offline {
                true => None,
                false => Some(client(hub)?.repo(repo(id, &commit))),
            };
            let folder = root.join("snapshots").join(&commit);
            let absent = root.join(".no_exist").join(&commit);
            Ok(Self { hub, id, revision, commit, folder, absent, api, changed: false })
        }

        /// A file, or nothing if the commit does not have it.
        fn get(&mut self, file: &str) -> Result<Option<PathBuf>> {
            let path = self.folder.join(file);
            if path.is_file() {
                return Ok(Some(path));
            }
            let Some(api) = self.api.as_ref().filter(|_| !self.absent.join(file).exists()) else { return Ok(None) };
            match api.download(file) {
                Ok(path) => {
                    self.changed = true;
                    Ok(Some(path))
                }
                Err(error) if status(&error) == Some(404) => {
                    // A cache that cannot be written costs a request next time.
                    let _ = fs::create_dir_all(&self.absent).and_then(|()| fs::write(self.absent.join(file), ""));
                    Ok(None)
                }
                Err(error) => Err(failed(self.hub, self.id, self.revision, file, &error)),
            }
        }

        fn require(&mut self, file: &str) -> Result<()> {
            match self.get(file)? {
                Some(_) => Ok(()),
                None => Err(self.missing_data(file)),
            }
        }

        /// Fetches a file that may be absent. A server out of reach is no reason to refuse a model that is there.
        fn offer(&mut self, file: &str) -> Result<()> {
            match self.get(file) {
                Err(error) if !self.changed => {
                    tracing::warn!("{error}; going on with what the cache holds");
                    Ok(())
                }
                other => other.map(|_| ()),
            }
        }

        fn missing_data(&self, file: &str) -> PeftError {
            match &self.api {
                None => offline(self.hub, self.id, &format!("`{file}`")),
                Some(api) => missing_data(api, self.id, file),
            }
        }

        fn finish(self) -> Result<PathBuf> {
            if self.changed && self.revision != self.commit {
                let cached = Cache::new(self.hub.cache.clone()).repo(repo(self.id, self.revision));
                cached.create_ref(&self.commit).map_err(PeftError::io("write", &self.hub.cache))?;
            }
            Ok(self.folder)
        }
    }

    fn repo(id: &str, revision: &str) -> Repo {
        Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned())
    }

    fn client(hub: &Hub) -> Result<Api> {
        ApiBuilder::from_cache(Cache::new(hub.cache.clone()))
            .with_endpoint(hub.endpoint.clone())
            .with_token(hub.token.clone())
            .with_progress(hub.progress)
            .with_retries(RETRIES)
            .with_user_agent("peft-rs", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| PeftError::Invalid(format!("cannot set up the connection to {}: {error}", hub.endpoint)))
    }

    /// The commit that a revision names now: every file is then asked for by commit, so that all belong together.
    fn remote_commit(hub: &Hub, id: &str, revision: &str, what: What) -> Result<String> {
        let file = match what {
            What::Model => MODEL_CONFIG,
            What::Adapter => CONFIG_FILE,
        };
        let api = client(hub)?;
        let at = api.repo(repo(id, revision));
        match api.metadata(&at.url(file)) {
            Ok(metadata) => Ok(metadata.commit_hash().to_owned()),
            // The repository is not there, or the file is not in it.
            Err(error) if status(&error) == Some(404) => match at.info() {
                Ok(_) => Err(missing_data(&at, id, file)),
                Err(_) => Err(failed(hub, id, revision, file, &error)),
            },
            Err(error) => Err(failed(hub, id, revision, file, &error)),
        }
    }

    fn status(error: &ApiError) -> Option<u16> {
        match error {
            ApiError::RequestError(inner) => match **inner {
                ureq::Error::StatusCode(code) => Some(code),
                _ => None,
            },
            ApiError::TooManyRetries(inner) => status(inner),
            _ => None,
        }
    }

    fn failed(hub: &Hub, id: &str, revision: &str, file: &str, error: &ApiError) -> PeftError {
        let page = format!("{}/{id}", hub.endpoint);
        let reason = match (status(error), &hub.token) {
            (Some(401 | 403), None) => format!(
                "the repository is private or gated, or does not exist; check the spelling, accept its terms at {page} \
                 if it has any, and set HF_TOKEN to a token of an account that may read it"
            ),
            (Some(401 | 403), Some(_)) => format!(
                "the token has no access: the repository is private or gated, or does not exist; check the spelling, \
                 accept its terms at {page} if it has any, and check HF_TOKEN"
            ),
            (Some(404), _) => {
                format!("there is no repository {page} with the revision `{revision}`; check the spelling")
            }
            (Some(429), _) => "the server refuses for now because of too many requests; try again later".to_owned(),
            (Some(code), _) => format!("{} answered with status {code}; try again later", hub.endpoint),
            (None, _) => match error {
                ApiError::MissingHeader(_) | ApiError::InvalidHeader(_) => {
                    format!("{} does not answer like a hub ({error}); check HF_ENDPOINT", hub.endpoint)
                }
                ApiError::LockAcquisition(path) => {
                    format!("another process is fetching it; wait for it, or remove {}", path.display())
                }
                ApiError::IoError(error) => {
                    format!("{error}; check the space and the permissions of {}", hub.cache.display())
                }
                error => format!(
                    "{error}; check the connection to {}, or set HF_HUB_OFFLINE=1 to use only the cache",
                    hub.endpoint
                ),
            },
        };
        let hint = similar(Path::new(id));
        PeftError::Invalid(format!("`{id}` is no local folder, and cannot fetch `{file}` of it: {reason}{hint}"))
    }

    fn missing_data(api: &ApiRepo, id: &str, file: &str) -> PeftError {
        let files: Vec<String> =
            api.info().map(|it| it.siblings.into_iter().map(|it| it.rfilename).collect()).unwrap_or_default();
        let has = |name: &str| files.iter().any(|it| it == name);
        let next = if file == MODEL_CONFIG && has(CONFIG_FILE) {
            "it is an adapter, no model: give it as the adapter, and its base as the model".to_owned()
        } else if file == CONFIG_FILE && has(MODEL_CONFIG) {
            "it is a model, no adapter".to_owned()
        } else if (file == MODEL_WEIGHTS && files.iter().any(|it| it.ends_with(".bin")))
            || (file == WEIGHTS_FILE && has("adapter_model.bin"))
        {
            "its weights are pickled; save it once from Python with `safe_serialization=True`".to_owned()
        } else if files.is_empty() {
            "choose another repository or revision".to_owned()
        } else {
            format!("it has {}", files.iter().take(12).map(String::as_str).collect::<Vec<_>>().join(", "))
        };
        PeftError::Invalid(format!("the repository `{id}` has no `{file}`: {next}"))
    }

    fn offline(hub: &Hub, id: &str, file: &str) -> PeftError {
        let cache = hub.cache.display();
        PeftError::Invalid(format!(
            "`{id}` is no local folder, {file} is not in the cache {cache}, and HF_HUB_OFFLINE forbids to fetch it; \
             unset HF_HUB_OFFLINE once, or give a folder"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        let find = |name: &str| variables.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned());
        Hub::from_variables(find, Path::new("/home/someone"))
    }

    #[test]
    fn an_empty_environment_means_the_public_hub_and_the_usual_cache() {
        let hub = hub(&[]);
        assert_eq!(hub.endpoint, "https://huggingface.co");
        assert_eq!(hub.cache, Path::new("/home/someone/.cache/huggingface/hub"));
        assert_eq!((hub.token, hub.offline, hub.progress), (None, false, false));
    }

    #[test]
    fn variables_are_honoured_and_the_narrower_wins() {
        let set = hub(&[("HF_HOME", "~/hf"), ("HF_ENDPOINT", "http://mirror/"), ("HF_TOKEN", " secret\n")]);
        assert_eq!(set.cache, Path::new("/home/someone/hf/hub"));
        assert_eq!(set.endpoint, "http://mirror");
        assert_eq!(set.token.as_deref(), Some("secret"));
        assert!(!format!("{set:?}").contains("secret"));

        let set = hub(&[("HF_HOME", "/a"), ("HF_HUB_CACHE", "/b"), ("HF_HUB_OFFLINE", "YES")]);
        assert_eq!(set.cache, Path::new("/b"));
        assert!(set.offline);
        assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn the_token_of_a_login_is_found() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "stored\n").unwrap();
        let home = home.path().to_str().unwrap();
        assert_eq!(hub(&[("HF_HOME", home)]).token.as_deref(), Some("stored"));
        assert_eq!(hub(&[("HF_HOME", home), ("HF_TOKEN", "given")]).token.as_deref(), Some("given"));
    }
}
