//! The folder of a run: what is in it already, and that nobody else writes to it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use peft_core::{CONFIG_FILE, ENCODER_FILE, LABELS_FILE, PeftError, Result, WEIGHTS_FILE};

use crate::data::new_tokens::SAVED_FILES;
use crate::parallel::group;
use crate::train::log::{LOG_FILE, RunLog};
use crate::train::state::TrainerState;

/// Held by whoever writes to the folder, and free again when its process ends, however it ends.
const LOCK_FILE: &str = ".train.lock";
/// The run as data, which `peft train` leaves beside its adapter.
pub const RUN_FILE: &str = "run.yaml";
/// The picture of the log.
pub const CURVE_FILE: &str = "loss.svg";
const CHECKPOINT: &str = "checkpoint-";
/// What a run does about an earlier one in its folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// Refuses a folder with an earlier run.
    #[default]
    New,
    /// Goes on from its last checkpoint. Without one it starts anew.
    Resume,
    /// Removes it, as `overwrite_output_dir` of transformers allows, before the first step.
    Overwrite,
}

/// `true` resumes.
impl From<bool> for Start {
    fn from(resume: bool) -> Self {
        if resume { Self::Resume } else { Self::New }
    }
}

/// The folder that a run writes to. As long as this lives, no other run can have it.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    start: Start,
    last: Option<PathBuf>,
    has_tokenizer: bool,
    _lock: Option<Lock>,
}

impl RunFolder {
    /// Takes a folder, which is made if it is missing. Nothing in it changes before the first step, but for what runs that
    /// were killed left half done.
    ///
    /// # Errors
    /// If another run has it; if an earlier one left something and `start` does not say what about it; if it is to be
    /// resumed, but is finished and has no checkpoint.
    pub fn open(path: impl Into<PathBuf>, start: Start) -> Result<Self> {
        let path = path.into();
        let mut lock = None;
        // Of the processes of a group the first one has the folder.
        let last = group::on_first(|| {
            let (taken, last) = Self::take(&path, start)?;
            lock = taken;
            Ok(last)
        })?;
        Ok(Self { path, start, last, has_tokenizer: false, _lock: lock })
    }

    /// The lock of the folder, and the checkpoint to go on from.
    fn take(path: &Path, start: Start) -> Result<(Option<Lock>, Option<PathBuf>)> {
        if path.is_file() {
            return Err(PeftError::bad_file(path, "it is a file; give a folder for the run"));
        }
        let made = !path.exists();
        fs::create_dir_all(path).map_err(PeftError::io("create", path))?;
        let lock = Lock::take(path, made)?;
        remove_leftovers(path)?;
        let last = checkpoints(path)?.pop().map(|it| it.1);
        let found = found(path)?;
        match start {
            Start::New if !found.is_empty() => {
                let reason = format!(
                    "it holds {} of an earlier run: go on with it (--resume), remove it (--overwrite-output), or take \
                     another folder",
                    found.join(", ")
                );
                Err(PeftError::bad_file(path, reason))
            }
            Start::Resume if last.is_none() && path.join(WEIGHTS_FILE).is_file() => {
                let reason = "the run in it is finished and left no checkpoint to go on from: remove it \
                              (--overwrite-output), or train its adapter further in another folder (--init-from)";
                Err(PeftError::bad_file(path, reason))
            }
            _ => Ok((lock, last.filter(|_| start == Start::Resume))),
        }
    }

    /// Says whether the earlier run wrote a tokenizer, as runs with new tokens do. It goes with the run then.
    pub fn with_tokenizer(self, has_tokenizer: bool) -> Self {
        Self { has_tokenizer, ..self }
    }

    /// Refuses a folder that a run writes to.
    ///
    /// # Errors
    /// If one does.
    pub fn check_free(path: impl AsRef<Path>) -> Result<()> {
        match path.as_ref().join(LOCK_FILE).exists() {
            // One that was left by a process that is gone is free, and taken away.
            true => Lock::take(path.as_ref(), false).map(drop),
            false => Ok(()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint that the run goes on from, if it goes on from one.
    pub fn checkpoint(&self) -> Option<&Path> {
        self.last.as_deref()
    }

    /// Whether a run was to be resumed.
    pub fn resumes(&self) -> bool {
        self.start == Start::Resume
    }

    /// The log, from where a run is. Where nothing is gone on from, what is left of an earlier run goes first.
    pub(crate) fn begin(&self, state: &TrainerState) -> Result<RunLog> {
        if self.last.is_none() && self.start != Start::New {
            self.clear()?;
        }
        let log = self.path.join(LOG_FILE);
        match state.owes_evaluation {
            true => RunLog::resume_before_evaluation(&log, state.step),
            false => RunLog::resume(log, state.step),
        }
    }

    /// Removes what runs write, and nothing else.
    fn clear(&self) -> Result<()> {
        // What makes a folder look finished goes first: a kill in between leaves nothing that looks whole.
        let own = [WEIGHTS_FILE, CONFIG_FILE, ENCODER_FILE, LABELS_FILE, RUN_FILE, CURVE_FILE, LOG_FILE];
        // What an adapter with new tokens has beside it: left there, another adapter would be read with it. One that no run
        // wrote is not ours to remove.
        let beside: &[&str] = if self.has_tokenizer { &SAVED_FILES } else { &[] };
        for name in own.iter().chain(beside) {
            let path = self.path.join(name);
            if path.is_file() {
                fs::remove_file(&path).map_err(PeftError::io("remove", &path))?;
            }
        }
        checkpoints(&self.path)?.iter().try_for_each(|(_, path)| remove(path))
    }
}

/// What an earlier run left, in words.
fn found(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if fs::metadata(folder.join(LOG_FILE)).is_ok_and(|it| it.len() > 0) {
        found.push("the log".to_owned());
    }
    match checkpoints(folder)?.len() {
        0 => {}
        1 => found.push("a checkpoint".to_owned()),
        many => found.push(format!("{many} checkpoints")),
    }
    if [WEIGHTS_FILE, CONFIG_FILE].iter().any(|it| folder.join(it).is_file()) {
        found.push("the adapter".to_owned());
    }
    Ok(found)
}

/// Folders `checkpoint-N`, oldest first.
pub(crate) fn checkpoints(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let number = |name: &str| name.strip_prefix(CHECKPOINT)?.parse::<usize>().ok();
    let mut found: Vec<_> =
        names(folder)?.into_iter().filter_map(|name| Some((number(&name)?, folder.join(name)))).collect();
    found.sort();
    Ok(found)
}

/// Where the checkpoint of a step is written. It gets its name, [`whole`], when it is complete.
pub(crate) fn partial(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!(".{CHECKPOINT}{step}.partial"))
}

/// The checkpoint of a step.
pub(crate) fn whole(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("{CHECKPOINT}{step}"))
}

/// Removes a checkpoint: first its name, so that what a kill leaves of it does not look like one.
pub(crate) fn remove(checkpoint: &Path) -> Result<()> {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    let aside = checkpoint.with_file_name(format!(".{name}.removed"));
    fs::rename(checkpoint, &aside).map_err(PeftError::io("remove", checkpoint))?;
    fs::remove_dir_all(&aside).map_err(PeftError::io("remove", &aside))
}

/// Removes what was being written, or removed, when a run was killed.
fn remove_leftovers(folder: &Path) -> Result<()> {
    // Names that `write_atomically` gives to a file before it is whole.
    let is_part = |it: &&String| it.strip_prefix(".tmp").is_some_and(|it| it.len() == 6);
    for name in names(folder)?.iter().filter(is_part) {
        let path = folder.join(name);
        if path.is_file() {
            fs::remove_file(&path).map_err(PeftError::io("remove", &path))?;
        }
    }
    let is_leftover = |it: &&String| {
        it.strip_prefix('.').is_some_and(|it| it.starts_with(CHECKPOINT))
            && (it.ends_with(".partial") || it.ends_with(".removed"))
    };
    for name in names(folder)?.iter().filter(is_leftover) {
        let path = folder.join(name);
        fs::remove_dir_all(&path).map_err(PeftError::io("remove", &path))?;
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(PeftError::io("read", folder))? {
        names.extend(entry.map_err(PeftError::io("read", folder))?.file_name().into_string());
    }
    Ok(names)
}

/// A file that is locked. The system frees it when the process ends.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
    /// Whether the folder was made for it.
    made: bool,
}

impl Lock {
    /// The lock of a folder; none where the file system knows no locks.
    fn take(folder: &Path, made: bool) -> Result<Option<Self>> {
        let path = folder.join(LOCK_FILE);
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(PeftError::io("write", &path))?;
            match file.try_lock() {
                // Whoever is done removes its file, perhaps one that was opened here just before.
                Ok(()) if is_at(&file, &path) => return Ok(Some(Self { path, file, made })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let reason = "another run is writing to it: wait until it has ended, or take another folder";
                    return Err(PeftError::bad_file(folder, reason));
                }
                Err(TryLockError::Error(error)) => {
                    tracing::warn!("{} cannot be locked ({error}): start no second run in it", folder.display());
                    return Ok(None);
                }
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still held. A refused run leaves no empty folder; one with something in it stays.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
        if let Some(folder) = self.path.parent().filter(|_| self.made) {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Whether an open file is still the one of this name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |it: &fs::Metadata| (it.dev(), it.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if identity(&a) == identity(&b))
}

/// Elsewhere a name cannot be given to another file as long as this one is open.
#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
