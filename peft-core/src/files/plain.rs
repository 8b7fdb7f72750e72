//! Small files of folders that come from elsewhere: read only if they are what they should be.

use std::fs;
use std::path::Path;

use crate::error::{PeftError, Result};

/// More than any configuration, tokenizer or template has; a file may claim any size.
const LARGEST: u64 = 1 << 30;

/// The text of a file.
///
/// # Errors
/// If it is no plain file, such as a pipe whose other end may never write; if it is larger than 1 GiB, or not UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    String::from_utf8(read_bytes(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        PeftError::bad_file(path, format!("byte {at} is not UTF-8"))
    })
}

/// The bytes of a file.
///
/// # Errors
/// As [`read_text`].
pub fn read_bytes(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let metadata = fs::metadata(path).map_err(PeftError::io("read", path))?;
    if !metadata.is_file() {
        return Err(PeftError::bad_file(path, "it is no plain file"));
    }
    if metadata.len() > LARGEST {
        let reason = format!("it has {} bytes, and {LARGEST} are the limit for such a file", metadata.len());
        return Err(PeftError::bad_file(path, reason));
    }
    fs::read(path).map_err(PeftError::io("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_small_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, "{}").unwrap();
        assert_eq!(read_text(&path).unwrap(), "{}");
        fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("UTF-8"));
        // It has holes in place of its zeros.
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("are the limit"));
        assert!(read_text(folder.path()).unwrap_err().to_string().contains("no plain file"));
        #[cfg(unix)]
        assert!(read_text("/dev/zero").unwrap_err().to_string().contains("no plain file"));
    }
}
