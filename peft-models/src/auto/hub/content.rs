//! The hashes by which the hub names the contents of files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The hash of a file, as an `ETag` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContentHash {
    /// Git's hash of a blob: SHA-1 of a header and the contents. What is not in LFS has it.
    Git(String),
    /// What is in LFS has this.
    Sha256(String),
}

impl ContentHash {
    /// Reads an `ETag`, weak or not, if it is a plain hash. Anything else can neither be checked nor become a name.
    pub(super) fn parse(etag: &str) -> Option<Self> {
        let etag = etag.trim();
        let text = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
        match is_hex(text).then_some(text.len()) {
            Some(40) => Some(Self::Git(text.to_owned())),
            Some(64) => Some(Self::Sha256(text.to_owned())),
            _ => None,
        }
    }

    /// The name of the blob in the cache.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Git(name) | Self::Sha256(name) => name,
        }
    }

    /// Whether a file has this hash.
    pub(super) fn is_of(&self, path: &Path) -> io::Result<bool> {
        match self {
            Self::Sha256(name) => Ok(sha256(path)? == *name),
            Self::Git(name) => {
                let mut file = File::open(path)?;
                let size = file.metadata()?.len();
                let mut git = Sha1::new();
                git.update(format!("blob {size}\0"));
                // Stores that know nothing of git have the hash of the contents alone.
                let mut plain = Sha1::new();
                each_piece(&mut file, |piece| {
                    git.update(piece);
                    plain.update(piece);
                })?;
                Ok([hex(&git.finalize()), hex(&plain.finalize())].contains(name))
            }
        }
    }
}

/// SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    each_piece(&mut File::open(path)?, |piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of a text.
pub(super) fn sha256_of(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Whether a text can name a commit.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text) && [40, 64].contains(&text.len())
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

fn each_piece(file: &mut File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut piece = vec![0; 1 << 18];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => take(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `printf 'hello\n'`: `git hash-object --stdin`, `sha1sum`, `sha256sum`.
    const GIT: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA1: &str = "f572d396fae9206628714fb2ce00f72e94f2258f";
    const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn hashes_are_those_of_git_and_of_the_tools() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        for hash in [GIT, SHA1, SHA256] {
            let parsed = ContentHash::parse(&format!("W/\"{hash}\"")).unwrap();
            assert_eq!(parsed.name(), hash);
            assert!(parsed.is_of(&path).unwrap());
            let other = ContentHash::parse(&hash.replace('5', "6")).unwrap();
            assert!(!other.is_of(&path).unwrap());
        }
    }

    #[test]
    fn only_plain_hashes_become_names() {
        for etag in ["", "\"\"", "../../x", "/etc/passwd", &GIT[1..], &GIT.to_uppercase(), &format!("{GIT}-2"), "../f"]
        {
            assert_eq!(ContentHash::parse(etag), None, "{etag}");
        }
        assert!(is_commit(GIT) && !is_commit("main") && !is_commit("../../../../../../../../../../../../../abc"));
    }
}
