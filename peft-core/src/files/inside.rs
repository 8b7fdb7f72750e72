//! File names that come from elsewhere (an index, a listing), and become paths here.

use std::fs;
use std::path::{Path, PathBuf};

/// Whether a name with `/` between its parts stays in the folder that it is relative to, on every system.
///
/// Colons and backslashes are refused with the rest, because Windows reads drives and parts of paths in them, and so are
/// control characters, because names are printed.
pub fn stays_inside(name: &str) -> bool {
    let is_plain = |part: &str| {
        !["", ".", ".."].contains(&part) && !part.contains(['\\', ':']) && !part.chars().any(char::is_control)
    };
    name.split('/').all(is_plain)
}

/// The path of a file of a folder, or why it is not one: its name leaves the folder, or a link does.
///
/// Links from a snapshot of the hub's cache into the `blobs` beside it are how that cache is built, and are followed.
pub fn inside(folder: &Path, name: &str) -> Result<PathBuf, String> {
    if !stays_inside(name) {
        return Err("its name leaves the folder".to_owned());
    }
    let path = folder.join(name);
    // What is not there leads nowhere.
    let (Ok(target), Ok(home)) = (fs::canonicalize(&path), fs::canonicalize(folder)) else { return Ok(path) };
    let snapshots = home.ancestors().find(|it| it.ends_with("snapshots"));
    let blobs = snapshots.and_then(|it| Some(it.parent()?.join("blobs")));
    // Newer versions of huggingface_hub share blobs among repositories, so that a blob may be a link itself.
    let is_blob = |blobs: PathBuf| {
        let link = fs::read_link(&path).ok().and_then(|it| fs::canonicalize(path.parent()?.join(it.parent()?)).ok());
        target.starts_with(&blobs) || link.is_some_and(|it| it == blobs)
    };
    if target.starts_with(&home) || blobs.is_some_and(is_blob) {
        return Ok(path);
    }
    Err("it is a link that leaves the folder; put the file itself there".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_what_lies_below_stay_inside() {
        for name in ["model.safetensors", "a/b.json", "..a", "a..b", "ü.json"] {
            assert!(stays_inside(name), "{name}");
        }
        for name in ["", "/a", "../a", "a/../b", "a/./b", "a//b", "a/", "C:x", "..\\a", "a\u{1b}[2J"] {
            assert!(!stays_inside(name), "{name:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_may_lead_to_the_blobs_of_the_cache_and_nowhere_else_outside() {
        use std::os::unix::fs::symlink;

        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("models--a--b");
        let snapshot = root.join("snapshots/c");
        for folder in [&root.join("blobs"), &snapshot.join("sub"), &place.path().join("else")] {
            fs::create_dir_all(folder).unwrap();
        }
        for file in ["models--a--b/blobs/hash", "else/secret", "models--a--b/snapshots/c/plain"] {
            fs::write(place.path().join(file), "").unwrap();
        }
        symlink("../../blobs/hash", snapshot.join("blob")).unwrap();
        symlink("../../../blobs/hash", snapshot.join("sub/blob")).unwrap();
        symlink("plain", snapshot.join("beside")).unwrap();
        symlink(place.path().join("else/secret"), snapshot.join("secret")).unwrap();
        symlink(place.path().join("else"), snapshot.join("else")).unwrap();
        // A blob that is shared among repositories.
        symlink(place.path().join("else/secret"), root.join("blobs/shared")).unwrap();
        symlink("../../blobs/shared", snapshot.join("shared")).unwrap();
        for name in ["blob", "sub/blob", "beside", "plain", "absent", "shared"] {
            assert_eq!(inside(&snapshot, name), Ok(snapshot.join(name)));
        }
        assert!(inside(&snapshot.join("sub"), "blob").is_ok());
        for name in ["secret", "else/secret", "../c/plain"] {
            assert!(inside(&snapshot, name).unwrap_err().contains("leaves the folder"), "{name}");
        }
        // Elsewhere, a link into a folder that is called `blobs` is like any other.
        symlink(root.join("blobs/hash"), place.path().join("else/blob")).unwrap();
        assert!(inside(&place.path().join("else"), "blob").is_err());
        // The folder may be reached by a link.
        symlink(&snapshot, place.path().join("short")).unwrap();
        assert!(inside(&place.path().join("short"), "plain").is_ok());
    }
}
