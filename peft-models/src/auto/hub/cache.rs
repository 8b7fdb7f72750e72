//! The cache of a repository, in the layout of huggingface_hub: `blobs/` by hash, `snapshots/<commit>/` with links to them,
//! `refs/` that say which commit a branch is, `.no_exist/` for what a commit does not have.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use peft_core::files::checkpoint::write_atomically;

use super::content::{ContentHash, is_commit};
use super::failure::Failure;

/// Files up to this size are hashed whenever they are taken from the cache; of larger ones the size is compared.
const QUICKLY_HASHED: u64 = 8 << 20;

/// The folder of a repository in the cache.
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The commit that a revision named when it was fetched.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let named = fs::read_to_string(self.root.join("refs").join(revision)).ok().map(|it| it.trim().to_owned());
        let is_here = || is_commit(revision) && self.snapshot(revision).is_dir();
        named.filter(|it| is_commit(it)).or_else(|| is_here().then(|| revision.to_owned()))
    }

    /// Says which commit a revision names.
    pub(super) fn refer(&self, revision: &str, commit: &str) -> peft_core::Result<()> {
        match revision == commit {
            true => Ok(()),
            false => write_atomically(self.root.join("refs").join(revision), commit.as_bytes()),
        }
    }

    /// The files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Where a blob lies.
    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.root.join("blobs").join(name)
    }

    /// Where the list of the files of a commit is kept: ours, and the one of huggingface_hub.
    pub(super) fn listings(&self, commit: &str) -> [PathBuf; 2] {
        ["peft.json", "json"].map(|ending| self.root.join("trees").join(format!("{commit}.{ending}")))
    }

    /// Whether a commit is known not to have a file.
    pub(super) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absent(commit, file).exists()
    }

    /// Remembers that a commit does not have a file. A cache that cannot be written costs a request next time.
    pub(super) fn mark_absent(&self, commit: &str, file: &str) {
        let path = self.absent(commit, file);
        if let Some(folder) = path.parent() {
            let _ = fs::create_dir_all(folder).and_then(|()| fs::write(&path, ""));
        }
    }

    fn absent(&self, commit: &str, file: &str) -> PathBuf {
        self.root.join(".no_exist").join(commit).join(file)
    }

    /// Gives a blob the name of a file: a link, or a copy where there are none.
    pub(super) fn link(&self, blob: &str, commit: &str, file: &str) -> Result<PathBuf, Failure> {
        let path = self.snapshot(commit).join(file);
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder).map_err(Failure::cache(folder))?;
        let up = "../".repeat(2 + file.matches('/').count());
        // Beside its place and then over it, so that a file is there at any moment.
        let staged = path.with_file_name(format!(".{blob}.{}.link", std::process::id()));
        let _ = fs::remove_file(&staged);
        symlink(Path::new(&format!("{up}blobs/{blob}")), &staged)
            .or_else(|_| fs::copy(self.blob(blob), &staged).map(drop))
            .and_then(|()| fs::rename(&staged, &path))
            .map_err(Failure::cache(&path))?;
        Ok(path)
    }

    /// Takes the lock of a blob, as huggingface_hub does, and waits where another process has it. The system gives it back
    /// when the file is closed, also if its process dies.
    pub(super) fn lock(&self, blob: &str, file: &str) -> Result<File, Failure> {
        fs::create_dir_all(&self.locks).map_err(Failure::cache(&self.locks))?;
        let path = self.locks.join(format!("{blob}.lock"));
        let lock = File::options().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(Failure::cache(&path))?;
        let unsupported = |error: io::Error| {
            // Then two processes may fetch the same file; what they put together is hashed before it gets its name.
            tracing::debug!("cannot lock {}: {error}", path.display());
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::warn!("another process is fetching `{file}`; waiting for it ({})", path.display());
                lock.lock().unwrap_or_else(unsupported);
            }
            Err(TryLockError::Error(error)) => unsupported(error),
        }
        Ok(lock)
    }

    /// What is wrong with a file of a snapshot, as far as that can be told quickly: from the hash that its blob is named
    /// after, and from the size that the repository lists.
    pub(super) fn fault(&self, path: &Path, size: Option<u64>) -> Option<String> {
        let blob = fs::read_link(path).ok()?;
        let hash = ContentHash::parse(blob.file_name()?.to_str()?);
        fault(path, hash.as_ref(), size)
    }

    /// Puts what is not the blob of its name aside. It is kept where it is small: somebody may have edited it.
    pub(super) fn set_aside(&self, blob: &str) -> Result<(), Failure> {
        let path = self.blob(blob);
        let is_small = fs::metadata(&path).is_ok_and(|it| it.len() <= QUICKLY_HASHED);
        let aside = self.blob(&format!("{blob}.damaged"));
        match is_small {
            true => fs::rename(&path, aside),
            false => fs::remove_file(&path),
        }
        .map_err(Failure::cache(&path))
    }
}

/// What is wrong with a file that should have a hash and a size, as far as that can be told quickly.
pub(super) fn fault(path: &Path, hash: Option<&ContentHash>, size: Option<u64>) -> Option<String> {
    let found = fs::metadata(path).ok()?.len();
    if let Some(size) = size.filter(|it| *it != found) {
        return Some(format!("it has {found} bytes instead of {size}"));
    }
    let differs = found <= QUICKLY_HASHED && hash.is_some_and(|it| it.is_of(path).is_ok_and(|it| !it));
    differs.then(|| "its hash is not the one that it is named after".to_owned())
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to, at)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
