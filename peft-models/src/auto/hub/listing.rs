//! The files of a commit: what the server lists, and which of them belong to a model or an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use peft_core::LABELS_FILE;
use peft_core::files::checkpoint::write_atomically;
use peft_core::files::inside::stays_inside;
use serde::{Deserialize, Serialize};

use super::cache::RepoCache;
use super::content::is_commit;
use super::failure::{Failure, shown};
use crate::common::tokenizer_files::{CHAT_TEMPLATES, SETTINGS, VOCABULARIES};

/// The endings of files that go along with weights: configurations, vocabularies, templates, terms.
const ENDINGS: [&str; 9] = ["json", "txt", "model", "jinja", "spm", "vocab", "codes", "bpe", "tiktoken"];

/// The same, of files without an ending.
const NAMES: [&str; 2] = ["LICENSE", "NOTICE"];

/// Where transformers keeps chat templates beside the first.
const TEMPLATES: &str = "additional_chat_templates/";

/// Files that go along beside those of a tokenizer.
const OTHERS: [&str; 2] = ["generation_config.json", LABELS_FILE];

/// The files that usually go along. They are asked for by name, whatever a list says: a list that lacks one, because a bit of
/// it is wrong or somebody between wants it so, would change what a model computes without a word.
fn usual() -> impl Iterator<Item = &'static str> {
    VOCABULARIES.into_iter().chain(SETTINGS).chain(CHAT_TEMPLATES).chain(OTHERS)
}

/// The files of a commit with their sizes, as far as the server says them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    /// Nothing if the server does not list files.
    files: Option<BTreeMap<String, Option<u64>>>,
}

/// What a server says of a repository at a revision.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    size: Option<u64>,
}

impl Listing {
    /// Reads the description of a repository: its commit and its files.
    pub(super) fn parse(text: &str) -> Result<(String, Self), Failure> {
        let found: Description = serde_json::from_str(text)
            .map_err(|error| Failure::NotAHub(format!("its description of a repository is none ({error})")))?;
        if !is_commit(&found.sha) {
            return Err(Failure::NotAHub(format!("`{}` is no name of a commit", shown(&found.sha))));
        }
        let size = |it: &Sibling| it.lfs.as_ref().and_then(|it| it.size).or(it.size);
        let files = found.siblings.into_iter().map(|it| (it.rfilename.clone(), size(&it)));
        Ok((found.sha, Self { files: Some(files.collect()) }))
    }

    /// The list of a commit that was kept.
    pub(super) fn kept(cache: &RepoCache, commit: &str) -> Option<Self> {
        /// As huggingface_hub keeps it.
        #[derive(Deserialize)]
        struct Tree {
            format_version: u32,
            files: BTreeMap<String, Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            size: u64,
            lfs_size: Option<u64>,
        }
        let [ours, theirs] = cache.listings(commit);
        let text = |path| fs::read_to_string(path).ok();
        let tree = || {
            let tree: Tree = serde_json::from_str(&text(theirs)?).ok()?;
            let files = tree.files.into_iter().map(|(name, it)| (name, Some(it.lfs_size.unwrap_or(it.size))));
            (tree.format_version == 1).then(|| Self { files: Some(files.collect()) })
        };
        text(ours).and_then(|it| serde_json::from_str(&it).ok()).or_else(tree)
    }

    /// Keeps the list of a commit. A cache that cannot be written costs a request next time.
    pub(super) fn keep(&self, cache: &RepoCache, commit: &str) {
        let [ours, _] = cache.listings(commit);
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = write_atomically(ours, &text);
        }
    }

    /// Whether the commit has a file; nothing if that is not known.
    pub(super) fn has(&self, file: &str) -> Option<bool> {
        Some(self.files.as_ref()?.contains_key(file))
    }

    /// The size of a file.
    pub(super) fn size(&self, file: &str) -> Option<u64> {
        *self.files.as_ref()?.get(file)?
    }

    /// All names that are fit to be printed.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|it| it.keys()).map(String::as_str).filter(|it| stays_inside(it))
    }

    /// The files of a folder that go along with weights, those that are listed and the usual ones. `folder` is empty or ends
    /// with a slash.
    pub(super) fn companions(&self, folder: &str) -> BTreeSet<String> {
        let fits = |it: &&str| it.strip_prefix(folder).is_some_and(goes_along);
        let listed = self.names().filter(fits).map(str::to_owned);
        listed.chain(usual().map(|it| format!("{folder}{it}"))).collect()
    }
}

/// Whether a file goes along with the weights of its folder.
fn goes_along(name: &str) -> bool {
    if let Some(template) = name.strip_prefix(TEMPLATES) {
        return !template.contains('/') && template.ends_with(".jinja");
    }
    // The lists of shards are fetched with the shards.
    let has_ending = || name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending));
    !name.contains('/') && !name.ends_with(".index.json") && (NAMES.contains(&name) || has_ending())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn listing(names: &[&str]) -> Listing {
        let siblings: Vec<_> = names.iter().map(|it| serde_json::json!({"rfilename": it, "size": 1})).collect();
        let text = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        Listing::parse(&text).unwrap().1
    }

    #[test]
    fn what_is_no_weight_and_no_code_goes_along() {
        let all = listing(&[
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "tokenizer.model",
            "merges.txt",
            "chat_template.jinja",
            "additional_chat_templates/tool.jinja",
            "additional_chat_templates/x/y.jinja",
            "modeling.py",
            "README.md",
            ".gitattributes",
            "LICENSE",
            "onnx/model.onnx",
            "onnx/config.json",
            "../evil.json",
            "..\\evil.json",
            "\u{1b}.json",
            "unet/config.json",
        ]);
        let expected = ["LICENSE", "additional_chat_templates/tool.jinja", "config.json"];
        let beyond = |folder: &str| {
            let is_usual = |it: &String| usual().any(|name| *it == format!("{folder}{name}"));
            all.companions(folder).into_iter().filter(|it| !is_usual(it)).collect::<Vec<_>>()
        };
        assert_eq!(beyond(""), expected);
        assert_eq!(beyond("unet/"), ["unet/config.json"]);
        // Whatever a list says of them.
        assert!(all.companions("").contains("tokenizer.json") && all.companions("unet/").contains("unet/vocab.txt"));
        assert_eq!(all.has("../evil.json"), Some(true));
        assert!(all.names().all(|it| !it.contains("evil")));
        assert_eq!(Listing::default().has("config.json"), None);
        assert!(Listing::default().companions("a/").contains("a/spiece.model"));
    }

    #[test]
    fn sizes_are_those_of_the_files_and_not_of_pointers() {
        let text = format!(
            r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "a", "size": 5, "lfs": {{"size": 9, "sha256": ""}}}}, {{"rfilename": "b"}}]}}"#
        );
        let (commit, listing) = Listing::parse(&text).unwrap();
        assert_eq!((commit.as_str(), listing.size("a"), listing.size("b")), (COMMIT, Some(9), None));
    }

    #[test]
    fn a_commit_is_a_plain_hash() {
        for text in
            [r#"{"sha": "../../x", "siblings": []}"#, r#"{"sha": "main", "siblings": []}"#, "<html>", "[]", "{}"]
        {
            assert!(matches!(Listing::parse(text), Err(Failure::NotAHub(_))), "{text}");
        }
    }

    #[test]
    fn a_list_is_kept_and_that_of_python_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(folder.path(), "a/b");
        assert_eq!(Listing::kept(&cache, COMMIT), None);
        let [_, theirs] = cache.listings(COMMIT);
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        let text = r#"{"format_version": 1, "files": {"w": {"size": 134, "blob_id": "x", "lfs_sha256": "y", "lfs_size": 999}}}"#;
        fs::write(theirs, text).unwrap();
        assert_eq!(Listing::kept(&cache, COMMIT).unwrap().size("w"), Some(999));
        for kept in [listing(&["a", "b"]), Listing::default()] {
            kept.keep(&cache, COMMIT);
            assert_eq!(Listing::kept(&cache, COMMIT), Some(kept));
        }
    }
}
