//! Shards of a local folder, which stay in it.

use std::fs;
use std::path::{Path, PathBuf};

use peft::models::auto;

use crate::support::{device, fixtures};

/// A sharded model in `model/`, with a shard more beside that folder. The index names `shard` in place of its first one.
fn model(place: &Path, shard: &str) -> PathBuf {
    let (source, folder) = (fixtures().join("models/llama-sharded"), place.join("model"));
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(source).unwrap().flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let path = folder.join("model.safetensors.index.json");
    let index = fs::read_to_string(&path).unwrap();
    let first = index.split('"').find(|it| it.ends_with(".safetensors")).unwrap();
    fs::copy(folder.join(first), place.join("outside.safetensors")).unwrap();
    fs::write(path, index.replace(first, shard)).unwrap();
    folder
}

#[test]
fn an_index_cannot_name_what_lies_outside() {
    for name in ["../outside.safetensors", "absolute", "a/../../outside.safetensors"] {
        let place = tempfile::tempdir().unwrap();
        let absolute = place.path().join("outside.safetensors").display().to_string();
        let folder = model(place.path(), if name == "absolute" { &absolute } else { name });
        let _ = fs::create_dir(folder.join("a"));
        let error = auto::load_causal_lm(&folder, &device()).unwrap_err().to_string();
        assert!(error.contains("index.json") && error.contains("its name leaves the folder"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_shard_is_no_link_that_leads_outside() {
    use std::os::unix::fs::symlink;

    let place = tempfile::tempdir().unwrap();
    let folder = model(place.path(), "link.safetensors");
    symlink("../outside.safetensors", folder.join("link.safetensors")).unwrap();
    let error = auto::load_causal_lm(&folder, &device()).unwrap_err().to_string();
    assert!(error.contains("link.safetensors") && error.contains("a link that leaves the folder"), "{error}");
    // One that stays in it is as good as the file.
    fs::remove_file(folder.join("link.safetensors")).unwrap();
    fs::rename(place.path().join("outside.safetensors"), folder.join("own.safetensors")).unwrap();
    symlink("own.safetensors", folder.join("link.safetensors")).unwrap();
    auto::load_causal_lm(&folder, &device()).unwrap();
}
