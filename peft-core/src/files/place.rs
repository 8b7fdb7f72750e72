//! Folders that appear whole: built beside their place, and put there in one step.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{PeftError, Result};

/// A folder that is built beside the place that it is meant for. Dropped before [`put`](StagedFolder::put), it leaves
/// nothing behind; what a killed process left is cleared by the next one that builds for the same place.
#[derive(Debug)]
pub struct StagedFolder {
    path: PathBuf,
    target: PathBuf,
    /// Held as long as the process lives: a folder whose lock is free belongs to nobody.
    _lock: Option<File>,
}

impl StagedFolder {
    /// An empty folder beside `target`, which may be there or not.
    ///
    /// # Errors
    /// If `target` is a file, or the disk says no.
    pub fn beside(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref();
        if target.is_file() {
            return Err(PeftError::bad_file(target, "it is a file; give a folder"));
        }
        // A link leads to the folder that is replaced; `..` and `.` have no name to put another beside.
        let target = match target.canonicalize() {
            Ok(found) => found,
            Err(_) => target.to_path_buf(),
        };
        let Some(name) = target.file_name() else {
            return Err(PeftError::bad_file(&target, "it has no name of its own; give a folder"));
        };
        let parent = target.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
        fs::create_dir_all(&parent).map_err(PeftError::io("create", &parent))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".partial-");
        clear_dead(&parent, &prefix);
        for number in 0.. {
            let mut own = prefix.clone();
            own.push(format!("{}-{number}", std::process::id()));
            let path = parent.join(own);
            match fs::create_dir(&path) {
                Ok(()) => {
                    let lock = lock(&path);
                    return Ok(Self { path, target, _lock: lock });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(PeftError::io("create", &path)(error)),
            }
        }
        unreachable!("numbers do not end")
    }

    /// Where it is built.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the folder into its place. What was there goes, if its name is in the new folder too or `replaces` says so;
    /// all else stays.
    ///
    /// Where the system can exchange two folders, the place holds the old one or the new one at any time. Elsewhere, and
    /// in the working directory of this process, the files are moved one by one, configurations last.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn put(self, replaces: impl Fn(&str) -> bool) -> Result<()> {
        let (new, old) = (&self.path, &self.target);
        if !old.exists() {
            return fs::rename(new, old).map_err(PeftError::io("write", old));
        }
        let replaces = |name: &OsStr| name.to_str().is_some_and(&replaces);
        let own = names(new).map_err(PeftError::io("read", new))?;
        let goes = |name: &OsStr| own.contains(name) || replaces(name);
        if !holds_working_directory(old) && link_others(old, new, &goes).is_ok() && exchange(new, old).is_ok() {
            // What came into the old folder in the meantime.
            let late = names(new).map_err(PeftError::io("read", new))?;
            for name in late.iter().filter(|it| !goes(it) && !old.join(it).exists()) {
                fs::rename(new.join(name), old.join(name)).map_err(PeftError::io("write", old.join(name)))?;
            }
            return Ok(());
        }
        let mut own: Vec<OsString> = own.into_iter().collect();
        own.sort_by_key(|name| (name.to_string_lossy().ends_with("config.json"), name.clone()));
        for name in &own {
            move_file(&new.join(name), &old.join(name)).map_err(PeftError::io("write", old.join(name)))?;
        }
        let there = names(old).map_err(PeftError::io("read", old))?;
        for name in there.iter().filter(|it| !own.contains(it) && replaces(it)) {
            fs::remove_file(old.join(name)).map_err(PeftError::io("remove", old.join(name)))?;
        }
        Ok(())
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        // What was put has no place here any more; what was exchanged lies here and is the old one.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn names(folder: &Path) -> std::io::Result<HashSet<OsString>> {
    fs::read_dir(folder)?.map(|it| Ok(it?.file_name())).collect()
}

/// Removes what processes left that are no more.
fn clear_dead(parent: &Path, prefix: &OsStr) {
    for name in names(parent).into_iter().flatten() {
        let path = parent.join(&name);
        let is_meant = name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        if is_meant && path.is_dir() && lock(&path).is_some() {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// The folder, locked until the file is dropped; nothing if another process holds it, or folders cannot be locked here.
fn lock(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Whether relative paths of this process lead into the folder: they would not follow it if it were exchanged.
fn holds_working_directory(folder: &Path) -> bool {
    let here = std::env::current_dir().and_then(|it| it.canonicalize());
    let folder = folder.canonicalize();
    matches!((here, folder), (Ok(here), Ok(folder)) if here.starts_with(&folder))
}

/// Gives `to` everything of `from` but what `goes`: the same files by other names, nothing is copied.
fn link_others(from: &Path, to: &Path, goes: &dyn Fn(&OsStr) -> bool) -> std::io::Result<()> {
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if goes(&entry.file_name()) {
            continue;
        }
        let (old, new, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            fs::create_dir(&new)?;
            link_others(&old, &new, &|_| false)?;
        } else if kind.is_symlink() {
            link_again(&old, &new)?;
        } else {
            fs::hard_link(&old, &new)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn link_again(old: &Path, new: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(fs::read_link(old)?, new)
}

#[cfg(not(unix))]
fn link_again(old: &Path, _new: &Path) -> std::io::Result<()> {
    Err(std::io::Error::other(format!("{} is a link", old.display())))
}

/// Swaps two folders in one step.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_a: &Path, _b: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Moves a file over another; copies it first where the two are on different disks.
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    if fs::rename(from, to).is_ok() {
        return Ok(());
    }
    let folder = to.parent().unwrap_or(Path::new("."));
    let mut copy = tempfile::NamedTempFile::new_in(folder)?;
    std::io::copy(&mut File::open(from)?, copy.as_file_mut())?;
    copy.as_file().set_permissions(fs::metadata(from)?.permissions())?;
    copy.as_file().sync_all()?;
    copy.persist(to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(folder: &Path, name: &str) -> Option<String> {
        fs::read_to_string(folder.join(name)).ok()
    }

    fn staged(target: &Path, files: &[&str]) -> StagedFolder {
        let staged = StagedFolder::beside(target).unwrap();
        for name in files {
            fs::write(staged.path().join(name), "new").unwrap();
        }
        staged
    }

    #[test]
    fn a_new_folder_appears_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("deep/out");
        staged(&target, &["a"]).put(|_| false).unwrap();
        assert_eq!(text(&target, "a").unwrap(), "new");
        assert_eq!(names(target.parent().unwrap()).unwrap().len(), 1);
    }

    #[test]
    fn other_files_stay_and_replaced_ones_go() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        fs::create_dir_all(target.join("checkpoint-1")).unwrap();
        for name in ["a", "notes.txt", "old.bin", "checkpoint-1/state"] {
            fs::write(target.join(name), "old").unwrap();
        }
        let mut log = fs::OpenOptions::new().append(true).open(target.join("notes.txt")).unwrap();
        let folder = staged(&target, &["a", "b"]);
        folder.put(|name| name == "old.bin").unwrap();
        std::io::Write::write_all(&mut log, b" and on").unwrap();
        assert_eq!(text(&target, "a").unwrap(), "new");
        assert_eq!(text(&target, "b").unwrap(), "new");
        assert_eq!(text(&target, "old.bin"), None);
        assert_eq!(text(&target, "checkpoint-1/state").unwrap(), "old");
        assert_eq!(text(&target, "notes.txt").unwrap(), "old and on", "an open file is the same file");
        assert_eq!(names(parent.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_was_given_up_is_gone_and_what_the_dead_left_is_cleared() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        drop(staged(&target, &["a"]));
        assert_eq!(names(parent.path()).unwrap().len(), 0);
        fs::create_dir(parent.path().join(".out.partial-1-0")).unwrap();
        let alive = staged(&target, &["a"]);
        let other = staged(&target, &["b"]);
        let there = names(parent.path()).unwrap();
        assert_eq!(there.len(), 2, "a living one is left alone, a dead one is not: {there:?}");
        drop((alive, other));
    }
}
