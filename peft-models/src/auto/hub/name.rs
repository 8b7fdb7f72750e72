//! The names of repositories, and what looks like one but is meant as a path.

use std::path::Path;

use peft_core::files::inside::stays_inside;
use peft_core::nearest;

/// The branch that is meant where none is named.
const MAIN: &str = "main";

/// A repository at a revision, and a folder of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
pub(super) struct RepoName<'a> {
    /// `owner/name`, or `name`.
    pub id: &'a str,
    /// A branch, a tag or a commit.
    pub revision: &'a str,
    /// Empty for the repository as a whole.
    pub subfolder: &'a str,
}

impl<'a> RepoName<'a> {
    /// Reads `owner/name@revision:folder`, `owner/name/folder`, or a part of either.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (rest, folder) = name.split_once(':').map_or((name, None), |(rest, folder)| (rest, Some(folder)));
        let (path, revision) = rest.split_once('@').unwrap_or((rest, MAIN));
        let (id, subfolder) = match (path.match_indices('/').nth(1), folder) {
            (None, folder) => (path, folder),
            (Some((at, _)), None) => (&path[..at], Some(&path[at + 1..])),
            (Some(_), Some(_)) => return None,
        };
        let is_plain = |it: &str| it.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
        let is_part = |it: &str| !it.is_empty() && is_plain(it) && !it.contains("..") && it != ".";
        let is_known = id.split('/').all(is_part) && revision.split('/').all(is_part);
        let is_folder = subfolder.is_none_or(stays_inside);
        (is_known && is_folder).then_some(Self { id, revision, subfolder: subfolder.unwrap_or_default() })
    }
}

/// Whether a name can only be meant as a path: a repository's neither starts nor ends like one, and where it has more than
/// two parts, there is no folder here that it could lie in.
pub(super) fn is_path(name: &str) -> bool {
    let path = name.split(['@', ':']).next().unwrap_or_default();
    let first = || path.split('/').next().unwrap_or_default();
    name.starts_with(['.', '/', '~'])
        || path.ends_with('/')
        || name.contains('\\')
        || (path.matches('/').count() > 1 && Path::new(first()).is_dir())
}

/// Folders beside a missing one that are spelled almost like it, as an end of a sentence.
pub(super) fn similar(path: &Path) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_an_id_a_revision_and_a_folder() {
        for (name, id, revision, subfolder) in [
            ("gpt2", "gpt2", "main", ""),
            ("owner/name", "owner/name", "main", ""),
            ("owner/name@v1.0", "owner/name", "v1.0", ""),
            ("owner/name@refs/pr/1", "owner/name", "refs/pr/1", ""),
            ("owner/name:unet", "owner/name", "main", "unet"),
            ("owner/name@v1:a/b c", "owner/name", "v1", "a/b c"),
            ("gpt2:sub", "gpt2", "main", "sub"),
            ("owner/name/sub/folder", "owner/name", "main", "sub/folder"),
            ("owner/name/sub@v1", "owner/name", "v1", "sub"),
        ] {
            assert_eq!(RepoName::parse(name), Some(RepoName { id, revision, subfolder }), "{name}");
        }
        for name in [
            "",
            "a b",
            "a/..b@main",
            "a/b@",
            "a/b@../x",
            "a/b:",
            "a/b:../c",
            "a/b:/c",
            "a/b:c/",
            "a/b/c:d",
            "a/b/../c",
            "a/b:c\\d",
            "a/b@v1@v2",
            "a/b:c:d",
            "a/b\n",
        ] {
            assert_eq!(RepoName::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_path_is_told_from_a_name() {
        for name in ["./a", "../a", "/a/b", "~/a", "a/b/", "C:\\models", "src/auto/missing"] {
            assert!(is_path(name), "{name}");
        }
        for name in ["a", "a/b", "a/b@v1", "a/b/c/d", "a/b@refs/pr/1", "a/b:src/auto"] {
            assert!(!is_path(name), "{name}");
        }
    }
}
