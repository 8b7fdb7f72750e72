use std::fs;
use std::path::Path;

use super::*;

fn put(folder: &Path, name: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "{\"kind\":\"train\",\"step\":3}\n").unwrap();
}

fn listed(folder: &Path) -> Vec<String> {
    let mut names = names(folder).unwrap();
    names.sort();
    names
}

fn refused(folder: &Path, start: Start) -> String {
    RunFolder::open(folder, start).unwrap_err().to_string()
}

#[test]
fn a_folder_has_one_run_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let held = RunFolder::open(folder.path(), Start::New).unwrap();
    for start in [Start::New, Start::Resume, Start::Overwrite] {
        assert!(refused(folder.path(), start).contains("another run is writing to it"));
    }
    drop(held);
    drop(RunFolder::open(folder.path(), Start::New).unwrap());
    assert_eq!(listed(folder.path()), [""; 0]);
}

#[test]
fn a_folder_that_was_made_for_nothing_goes_again() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b");
    drop(RunFolder::open(&deep, Start::New).unwrap());
    assert!(!deep.exists());
}

#[test]
fn what_an_earlier_run_left_is_named_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = || RunFolder::open(folder.path(), Start::New);
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    fs::write(folder.path().join(LOG_FILE), "").unwrap();
    open().unwrap();
    put(folder.path(), "checkpoint-2/trainer_state.json");
    assert!(refused(folder.path(), Start::New).contains("a checkpoint of an earlier run: go on with it (--resume)"));
    put(folder.path(), "checkpoint-10/trainer_state.json");
    put(folder.path(), LOG_FILE);
    put(folder.path(), WEIGHTS_FILE);
    let error = refused(folder.path(), Start::New);
    assert!(error.contains("the log, 2 checkpoints, the adapter of"), "{error}");
    assert!(error.contains("--overwrite-output"), "{error}");
    let resumed = RunFolder::open(folder.path(), Start::Resume).unwrap();
    assert_eq!(resumed.checkpoint(), Some(&*folder.path().join("checkpoint-10")));
    drop(resumed);
    fs::remove_dir_all(folder.path().join("checkpoint-10")).unwrap();
    fs::remove_dir_all(folder.path().join("checkpoint-2")).unwrap();
    assert!(refused(folder.path(), Start::Resume).contains("finished and left no checkpoint"));
}

/// Only what runs write, and not before the run begins.
#[test]
fn overwriting_removes_the_earlier_run_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let names = [LOG_FILE, WEIGHTS_FILE, CONFIG_FILE, RUN_FILE, CURVE_FILE, "checkpoint-2/a", "checkpoint-x/a", "mine"];
    names.iter().for_each(|it| put(folder.path(), it));
    let run = RunFolder::open(folder.path(), Start::Overwrite).unwrap();
    assert_eq!(run.checkpoint(), None);
    assert_eq!(listed(folder.path()).len(), names.len() + 1);
    drop(run.begin(&TrainerState::default()).unwrap());
    assert_eq!(listed(folder.path()), [LOCK_FILE, "checkpoint-x", "mine", LOG_FILE]);
    assert_eq!(fs::read(folder.path().join(LOG_FILE)).unwrap(), b"");
    drop(run);

    // A tokenizer goes with the run that wrote it, and one of the user stays.
    for wrote in [true, false] {
        [LOG_FILE, "tokenizer.json"].iter().for_each(|it| put(folder.path(), it));
        let run = RunFolder::open(folder.path(), Start::Overwrite).unwrap().with_tokenizer(wrote);
        drop(run.begin(&TrainerState::default()).unwrap());
        assert_eq!(folder.path().join("tokenizer.json").exists(), !wrote);
    }
}

/// A run that was killed before its first checkpoint left a log.
#[test]
fn resuming_without_a_checkpoint_starts_anew() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), LOG_FILE);
    put(folder.path(), ".checkpoint-2.partial/a");
    put(folder.path(), ".checkpoint-1.removed/a");
    put(folder.path(), ".tmpa1B2c3");
    let run = RunFolder::open(folder.path(), Start::Resume).unwrap();
    assert_eq!(listed(folder.path()), [LOCK_FILE, LOG_FILE]);
    assert_eq!((run.checkpoint(), run.resumes()), (None, true));
    drop(run.begin(&TrainerState::default()).unwrap());
    assert_eq!(fs::read(folder.path().join(LOG_FILE)).unwrap(), b"");
}

#[test]
fn a_checkpoint_that_is_removed_loses_its_name_first() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "checkpoint-7/a");
    // What removing it runs into: its place under the other name is taken, so the rename fails and it stays whole.
    put(folder.path(), ".checkpoint-7.removed/b");
    assert!(remove(&folder.path().join("checkpoint-7")).is_err());
    assert!(folder.path().join("checkpoint-7/a").is_file());
    fs::remove_dir_all(folder.path().join(".checkpoint-7.removed")).unwrap();
    remove(&folder.path().join("checkpoint-7")).unwrap();
    assert_eq!(listed(folder.path()), [""; 0]);
}
