//! Where repositories come from and where they are kept, as the environment says it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `HF_HUB_DOWNLOAD_TIMEOUT` of huggingface_hub where it is not set.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a name is to stand for: decides which files are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// `config.json`, the weights whole or in shards, and what belongs to them, as the files of a tokenizer. Or
    /// `model_index.json` of a pipeline, and the same of its parts.
    Model,
    /// `adapter_config.json`, `adapter_model.safetensors`, and what belongs to them, as labels and a tokenizer.
    Adapter,
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
    /// Sent to the server with every request, and to no other server that it redirects to.
    pub token: Option<String>,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// Whether a progress bar is drawn on stderr while a file is fetched.
    pub progress: bool,
    /// How long a server may be silent before the connection counts as broken.
    pub timeout: Duration,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("progress", &self.progress)
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl Hub {
    /// The hub that the environment describes: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` or the token file
    /// that a login left, `HF_HUB_OFFLINE`, `HF_HUB_DOWNLOAD_TIMEOUT`.
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
            timeout: variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|it| seconds(&it)).unwrap_or(TIMEOUT),
        }
    }

    /// With or without a progress bar.
    pub fn with_progress(mut self, progress: bool) -> Self {
        self.progress = progress;
        self
    }
}

fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse().ok()?).ok().filter(|it| !it.is_zero())
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
        assert_eq!(hub(&[("HF_HUB_DOWNLOAD_TIMEOUT", "2.5")]).timeout, Duration::from_millis(2500));
        for nonsense in ["-1", "0", "nan", "soon"] {
            assert_eq!(hub(&[("HF_HUB_DOWNLOAD_TIMEOUT", nonsense)]).timeout, TIMEOUT, "{nonsense}");
        }
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
