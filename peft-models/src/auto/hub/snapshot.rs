//! One commit of a repository in the cache, filled on demand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use peft_core::files::inside::stays_inside;
use peft_core::{CONFIG_FILE, PeftError, Result, WEIGHTS_FILE};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::cache::RepoCache;
use super::client::Client;
use super::content::is_commit;
use super::download::Downloader;
use super::failure::{Failure, shown};
use super::listing::Listing;
use super::name::RepoName;
use super::settings::{Hub, What};

const MODEL_CONFIG: &str = "config.json";

/// Where a model has its weights; the second name is that of diffusers. Halved ones are taken where there are no others.
const MODEL_WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
];

/// What names the parts of a pipeline of diffusers.
const PIPELINE_INDEX: &str = "model_index.json";

/// The parts of pipelines that are run, and what each must have. Those with a configuration have weights too.
const PIPELINE_PARTS: [(&str, Option<&str>); 7] = [
    ("unet", Some(MODEL_CONFIG)),
    ("vae", Some(MODEL_CONFIG)),
    ("text_encoder", Some(MODEL_CONFIG)),
    ("text_encoder_2", Some(MODEL_CONFIG)),
    ("scheduler", Some("scheduler_config.json")),
    ("tokenizer", None),
    ("tokenizer_2", None),
];

/// As much as a file may hold that is read as a whole. The largest tokenizers take a few tens of megabytes.
const MAX_COMPANION: u64 = 256 << 20;

/// As many files of a repository as a message lists.
const SHOWN: usize = 12;

/// Fetches what a name stands for, as far as the cache does not have it.
pub(super) fn fetch(hub: &Hub, repo: &RepoName<'_>, what: What) -> Result<PathBuf> {
    let cache = RepoCache::new(&hub.cache, repo.id);
    let prefix = if repo.subfolder.is_empty() { String::new() } else { format!("{}/", repo.subfolder) };
    let main = match what {
        What::Model => MODEL_CONFIG,
        What::Adapter => CONFIG_FILE,
    };
    let client = match hub.offline {
        true => None,
        false => Some(Client::new(hub).map_err(|it| it.explain(hub, repo, main))?),
    };
    let downloader = client.as_ref().map(|client| Downloader { hub, client, cache: &cache, id: repo.id });
    let mut snapshot = Snapshot::find(hub, repo, &cache, downloader, prefix, main)?;
    if snapshot.get(main, Some(MAX_COMPANION))?.is_none() {
        let index = if what == What::Model { snapshot.get(PIPELINE_INDEX, Some(MAX_COMPANION))? } else { None };
        let index = index.ok_or_else(|| snapshot.missing(main))?;
        snapshot.pipeline(&index)?;
        return snapshot.finish();
    }
    match what {
        What::Adapter => snapshot.require(WEIGHTS_FILE, None)?,
        What::Model => snapshot.weights()?,
    }
    snapshot.companions()?;
    snapshot.finish()
}

struct Snapshot<'a> {
    hub: &'a Hub,
    repo: &'a RepoName<'a>,
    cache: &'a RepoCache,
    downloader: Option<Downloader<'a>>,
    /// Before the names of files: empty, or the folder with a slash.
    prefix: String,
    commit: String,
    folder: PathBuf,
    /// What is known of the files of the commit.
    listing: Option<Listing>,
    changed: bool,
}

impl<'a> Snapshot<'a> {
    fn find(
        hub: &'a Hub,
        repo: &'a RepoName<'a>,
        cache: &'a RepoCache,
        downloader: Option<Downloader<'a>>,
        prefix: String,
        main: &str,
    ) -> Result<Self> {
        let (commit, listing) = match (cache.commit_of(repo.revision), &downloader) {
            (Some(commit), _) => {
                let kept = Listing::kept(cache, &commit);
                (commit, kept)
            }
            (None, None) => return Err(offline(hub, repo, "it")),
            (None, Some(downloader)) => {
                let file = format!("{prefix}{main}");
                let found = remote_commit(downloader, repo, &file).map_err(|it| it.explain(hub, repo, &file))?;
                found.1.keep(cache, &found.0);
                (found.0, Some(found.1))
            }
        };
        let folder = cache.snapshot(&commit);
        Ok(Self { hub, repo, cache, downloader, prefix, commit, folder, listing, changed: false })
    }

    /// A file of the folder, or nothing if the commit does not have it. `limit` is for files that are read whole.
    fn get(&mut self, file: &str, limit: Option<u64>) -> Result<Option<PathBuf>> {
        let name = format!("{}{file}", self.prefix);
        let path = self.folder.join(&name);
        let is_here = path.is_file();
        let size = self.listing.as_ref().and_then(|it| it.size(&name));
        let fault = is_here.then(|| self.cache.fault(&path, size)).flatten();
        if let (true, None) = (is_here, &fault) {
            return Ok(Some(path));
        }
        if let Some(fault) = &fault {
            let next =
                if self.downloader.is_some() { "fetching it again" } else { "it is used as it is (HF_HUB_OFFLINE)" };
            tracing::warn!("{} is damaged or was changed ({fault}); {next}", path.display());
        }
        // A list that lacks a file proves nothing. That the server has been asked for it does.
        let is_listed = self.listing.as_ref().and_then(|it| it.has(&name)) == Some(true);
        let may_exist = is_listed || !self.cache.is_absent(&self.commit, &name);
        let Some(downloader) = self.downloader.as_ref().filter(|_| may_exist) else {
            return Ok(is_here.then_some(path));
        };
        match downloader.fetch(&self.commit, &name, limit) {
            Ok(Some(path)) => {
                self.changed = true;
                Ok(Some(path))
            }
            Ok(None) => {
                self.cache.mark_absent(&self.commit, &name);
                Ok(None)
            }
            Err(error @ Failure::Connection(_)) if is_here => {
                let error = error.explain(self.hub, self.repo, &name);
                tracing::warn!("{error}; going on with what the cache holds");
                Ok(Some(path))
            }
            Err(error) => Err(error.explain(self.hub, self.repo, &name)),
        }
    }

    fn require(&mut self, file: &str, limit: Option<u64>) -> Result<()> {
        match self.get(file, limit)? {
            Some(_) => Ok(()),
            None => Err(self.missing(file)),
        }
    }

    /// The weights of a model, whole or in shards.
    fn weights(&mut self) -> Result<()> {
        for file in MODEL_WEIGHTS {
            if self.get(file, None)?.is_some() {
                return Ok(());
            }
            if let Some(index) = self.get(&format!("{file}.index.json"), Some(MAX_COMPANION))? {
                return shards(&index)?.iter().try_for_each(|it| self.require(it, None));
            }
        }
        Err(self.missing(MODEL_WEIGHTS[0]))
    }

    /// The parts of a pipeline that its index names, each from a folder of its own.
    fn pipeline(&mut self, index: &Path) -> Result<()> {
        let text = peft_core::files::plain::read_text(index)?;
        let named: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| PeftError::bad_file(index, error))?;
        let outer = self.prefix.clone();
        for (part, main) in PIPELINE_PARTS {
            // A part that is left out is `[null, null]`.
            if named.get(part).and_then(|it| it.get(1)).is_none_or(Value::is_null) {
                continue;
            }
            self.prefix = format!("{outer}{part}/");
            if let Some(main) = main {
                self.require(main, Some(MAX_COMPANION))?;
            }
            if main == Some(MODEL_CONFIG) {
                self.weights()?;
            }
            self.companions()?;
        }
        self.prefix = outer;
        Ok(())
    }

    /// What goes along with the weights. A server out of reach is no reason to refuse a model that is there.
    fn companions(&mut self) -> Result<()> {
        let listing = match (&self.listing, &self.downloader) {
            (Some(listing), _) => listing.clone(),
            (None, None) => return Ok(()),
            (None, Some(downloader)) => match describe(downloader, self.repo, &self.commit) {
                Ok((commit, listing)) if commit == self.commit => {
                    listing.keep(self.cache, &self.commit);
                    listing
                }
                Ok(_) | Err(Failure::Status(_) | Failure::NotAHub(_)) => Listing::default(),
                Err(error) if self.changed => return Err(error.explain(self.hub, self.repo, "the list of files")),
                Err(error) => {
                    let error = error.explain(self.hub, self.repo, "the list of files");
                    tracing::warn!("{error}; going on with what the cache holds");
                    return Ok(());
                }
            },
        };
        let names = listing.companions(&self.prefix);
        self.listing = Some(listing);
        for name in names {
            let file = name.strip_prefix(self.prefix.as_str()).unwrap_or(&name);
            match self.get(file, Some(MAX_COMPANION)) {
                Err(error) if !self.changed => tracing::warn!("{error}; going on with what the cache holds"),
                other => drop(other?),
            }
        }
        Ok(())
    }

    fn missing(&self, file: &str) -> PeftError {
        let name = format!("{}{file}", self.prefix);
        let id = self.repo.id;
        if self.downloader.is_none() {
            return offline(self.hub, self.repo, &format!("`{name}`"));
        }
        let files: Vec<&str> = self.listing.iter().flat_map(Listing::names).collect();
        let has = |file: &str| files.contains(&format!("{}{file}", self.prefix).as_str());
        let here = |it: &&str| it.strip_prefix(self.prefix.as_str()).is_some_and(|it| !it.contains('/'));
        let ending = format!("/{file}");
        let elsewhere: Vec<&str> = files.iter().filter_map(|it| it.strip_suffix(ending.as_str())).take(SHOWN).collect();
        let next = if file == MODEL_CONFIG && has(CONFIG_FILE) {
            "it is an adapter, no model: give it as the adapter, and its base as the model".to_owned()
        } else if file == CONFIG_FILE && has(MODEL_CONFIG) {
            "it is a model, no adapter".to_owned()
        } else if (file == MODEL_WEIGHTS[0] && files.iter().filter(|it| here(it)).any(|it| it.ends_with(".bin")))
            || (file == WEIGHTS_FILE && has("adapter_model.bin"))
        {
            "its weights are pickled; save it once from Python with `safe_serialization=True`".to_owned()
        } else if let Some(first) = elsewhere.first() {
            format!("folders of it have one: {}; name one of them, as in `{id}:{first}`", elsewhere.join(", "))
        } else if files.is_empty() {
            "choose another repository or revision".to_owned()
        } else {
            format!("it has {}", files.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", "))
        };
        PeftError::Invalid(format!("the repository `{id}` has no `{name}`: {next}"))
    }

    fn finish(self) -> Result<PathBuf> {
        if self.changed {
            self.cache.refer(self.repo.revision, &self.commit)?;
        }
        Ok(match self.repo.subfolder {
            "" => self.folder,
            subfolder => self.folder.join(subfolder),
        })
    }
}

/// The files that an index lists.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = peft_core::files::plain::read_text(index)?;
    let parsed: Index = serde_json::from_str(&text).map_err(|error| PeftError::bad_file(index, error))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|it| !stays_inside(it)) {
        Some(name) => {
            Err(PeftError::bad_file(index, format!("it lists `{}`, which leaves the repository", shown(name))))
        }
        None => Ok(names),
    }
}

/// What the server lists of a repository at a revision, and the commit that this is.
fn describe(downloader: &Downloader<'_>, repo: &RepoName<'_>, revision: &str) -> Result<(String, Listing), Failure> {
    Listing::parse(&downloader.client.describe(repo, revision)?)
}

/// The commit that a revision names now: every file is then asked for by commit, so that all belong together.
fn remote_commit(downloader: &Downloader<'_>, repo: &RepoName<'_>, file: &str) -> Result<(String, Listing), Failure> {
    match describe(downloader, repo, repo.revision) {
        Ok((commit, _)) if is_commit(repo.revision) && commit != repo.revision => {
            Err(Failure::NotAHub(format!("asked for commit {} it answers with {commit}", repo.revision)))
        }
        Ok(found) => Ok(found),
        // A server that only hands out files says of each of them which commit it is of.
        Err(Failure::Status(_) | Failure::NotAHub(_)) => match downloader.commit(repo.revision, file)? {
            Some(commit) => Ok((commit, Listing::default())),
            None => Err(Failure::Status(404)),
        },
        Err(error) => Err(error),
    }
}

fn offline(hub: &Hub, repo: &RepoName<'_>, file: &str) -> PeftError {
    let (id, cache) = (repo.id, hub.cache.display());
    PeftError::Invalid(format!(
        "`{id}` is no local folder, {file} is not in the cache {cache}, and HF_HUB_OFFLINE forbids to fetch it; \
         unset HF_HUB_OFFLINE once, or give a folder"
    ))
}
