//! The text of data files: plain or compressed, one or several, from disks and from pipes, and never without end.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use peft_core::{PeftError, Result};

/// The most text that is read into memory, in bytes. Rows take several times as much.
pub(crate) const MAX_BYTES: u64 = 16 << 30;

/// Endings of files that rows are read from, in front of `.gz` too.
pub(crate) const ENDINGS: [&str; 7] = ["jsonl", "ndjson", "json", "csv", "tsv", "txt", PARQUET];

/// The ending of Parquet files, which are no text.
pub(crate) const PARQUET: &str = "parquet";

/// The files that a name means: a file; a folder, whose data files are read in the order of their names; a pattern with `*`
/// in its last part; or several of these with commas between. What is there under the very name goes before.
///
/// # Errors
/// If a folder holds no data file, or nothing fits a pattern.
pub fn files_of(name: &Path) -> Result<Vec<PathBuf>> {
    if name.is_dir() {
        let files = entries(name, |it| ending(Path::new(it)).is_some())?;
        let reason = || format!("it holds no data file: their names end in .{}", ENDINGS.join(", ."));
        return if files.is_empty() { Err(PeftError::bad_file(name, reason())) } else { Ok(files) };
    }
    if name.exists() {
        return Ok(vec![name.to_path_buf()]);
    }
    let Some(text) = name.to_str() else { return Ok(vec![name.to_path_buf()]) };
    if text.contains(',') {
        let parts = text.split(',').map(str::trim).filter(|it| !it.is_empty());
        return Ok(parts.map(|it| files_of(Path::new(it))).collect::<Result<Vec<_>>>()?.concat());
    }
    let pattern = name.file_name().and_then(|it| it.to_str()).filter(|it| it.contains('*'));
    let Some(pattern) = pattern else { return Ok(vec![name.to_path_buf()]) };
    let folder = name.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let files = entries(folder, |it| fits(pattern, it))?;
    if files.is_empty() { Err(PeftError::bad_file(name, "no file has a name that fits")) } else { Ok(files) }
}

fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(PeftError::io("read", folder))? {
        let path = entry.map_err(PeftError::io("read", folder))?.path();
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        // A pipe, a device or a link that leads nowhere is not passed over: whoever reads it says what it is.
        if !path.is_dir() && !name.starts_with('.') && wanted(name) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether `*` for anything makes a name of a pattern.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|tail| {
            tail.char_indices().map(|it| it.0).chain([tail.len()]).any(|at| fits(rest, &tail[at..]))
        }),
    }
}

/// The ending of a data file, without `.gz`; `None` for another one.
pub(crate) fn ending(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let (_, ending) = name.rsplit_once('.')?;
    ENDINGS.into_iter().find(|it| *it == ending)
}

/// The text of a file, which may be compressed with gzip.
///
/// # Errors
/// If it cannot be read, is a device, is not UTF-8, or has more bytes than are read into memory.
pub fn text(path: &Path) -> Result<String> {
    let bytes = unpacked(path, bytes(path)?)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        PeftError::bad_file(path, format!("byte {at} is not UTF-8; convert it, for example with `iconv -t utf-8`"))
    })
}

fn unpacked(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut text = Vec::new();
    // A megabyte of zeros packs into a kilobyte.
    let mut packed = MultiGzDecoder::new(bytes.as_slice()).take(MAX_BYTES + 1);
    packed
        .read_to_end(&mut text)
        .map_err(|error| PeftError::bad_file(path, format!("its gzip is damaged: {error}")))?;
    if text.len() as u64 > MAX_BYTES { Err(too_large(path)) } else { Ok(text) }
}

fn too_large(path: &Path) -> PeftError {
    let reason = format!("it has more than {} GiB of text, which is the most that is read; split it", MAX_BYTES >> 30);
    PeftError::bad_file(path, reason)
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let about = fs::metadata(path).map_err(PeftError::io("read", path))?;
    match Kind::of(&about) {
        Kind::Pipe => pipe(path),
        Kind::Device => Err(PeftError::bad_file(path, "it is a device, which has no end; give a file")),
        Kind::File if about.len() > MAX_BYTES => Err(too_large(path)),
        Kind::File => {
            let mut bytes = Vec::new();
            let file = File::open(path).map_err(PeftError::io("read", path))?;
            file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(PeftError::io("read", path))?;
            if bytes.len() as u64 > MAX_BYTES { Err(too_large(path)) } else { Ok(bytes) }
        }
    }
}

enum Kind {
    File,
    Pipe,
    Device,
}

impl Kind {
    #[cfg(unix)]
    fn of(about: &fs::Metadata) -> Self {
        use std::os::unix::fs::FileTypeExt;
        let kind = about.file_type();
        match kind.is_fifo() {
            true => Self::Pipe,
            false if kind.is_char_device() || kind.is_block_device() || kind.is_socket() => Self::Device,
            false => Self::File,
        }
    }

    #[cfg(not(unix))]
    fn of(_: &fs::Metadata) -> Self {
        Self::File
    }
}

/// All that comes out of a pipe, such as that of `<(zcat rows.jsonl.gz)`. One that nobody writes into ends the wait.
#[cfg(unix)]
fn pipe(path: &Path) -> Result<Vec<u8>> {
    use std::io::ErrorKind;
    use std::os::unix::fs::OpenOptionsExt;
    use std::time::{Duration, Instant};

    // How long a writer may take to come, and how long it may be silent.
    const TO_COME: Duration = Duration::from_secs(10);
    const SILENT: Duration = Duration::from_secs(600);

    // Opened so, a pipe does not hold up its reader until somebody writes.
    let mut options = File::options();
    let mut file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(PeftError::io("read", path))?;
    let (mut bytes, mut chunk, mut last) = (Vec::new(), vec![0; 1 << 16], Instant::now());
    loop {
        match file.read(&mut chunk) {
            Ok(0) if !bytes.is_empty() => return Ok(bytes),
            Ok(0) if last.elapsed() > TO_COME => {
                return Err(PeftError::bad_file(path, "it is a pipe that nobody writes into"));
            }
            Ok(0) => {}
            Ok(count) => {
                bytes.extend_from_slice(&chunk[..count]);
                last = Instant::now();
                if bytes.len() as u64 > MAX_BYTES {
                    return Err(too_large(path));
                }
                continue;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock && last.elapsed() < SILENT => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(PeftError::bad_file(
                    path,
                    "it is a pipe into which nothing has been written for ten minutes",
                ));
            }
            Err(error) => return Err(PeftError::io("read", path)(error)),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(not(unix))]
fn pipe(path: &Path) -> Result<Vec<u8>> {
    Err(PeftError::bad_file(path, "it is a pipe; give a file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn packed(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compressed_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.gz");
        // Two members, as `cat a.gz b.gz` makes them.
        fs::write(&path, [packed("one\n"), packed("two\n")].concat()).unwrap();
        assert_eq!(text(&path).unwrap(), "one\ntwo\n");
        assert_eq!(ending(&path), Some("jsonl"));
        fs::write(&path, &packed("one\n")[..12]).unwrap();
        assert!(text(&path).unwrap_err().to_string().contains("its gzip is damaged"));
    }

    #[test]
    fn folders_patterns_and_lists_are_several_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.jsonl", "a.json", "a.txt.gz", "README.md", ".hidden.json", "x,y.json"] {
            fs::write(folder.path().join(name), "{}").unwrap();
        }
        let names = |name: &str| {
            let files = files_of(&folder.path().join(name)).map_err(|it| it.to_string())?;
            Ok::<_, String>(
                files.iter().map(|it| it.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(names("").unwrap(), ["a.json", "a.txt.gz", "b.jsonl", "x,y.json"]);
        assert_eq!(names("*.json*").unwrap(), ["a.json", "b.jsonl", "x,y.json"]);
        assert_eq!(names("x,y.json").unwrap(), ["x,y.json"]);
        let two = format!("b.jsonl, {}", folder.path().join("a.json").display());
        assert_eq!(names(&two).unwrap(), ["b.jsonl", "a.json"]);
        assert!(names("*.csv").unwrap_err().contains("no file has a name that fits"));
        let empty = tempfile::tempdir().unwrap();
        assert!(files_of(empty.path()).unwrap_err().to_string().contains("it holds no data file"));
    }

    #[cfg(unix)]
    #[test]
    fn nothing_in_a_folder_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.jsonl"), "{}").unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", folder.path().join("b.jsonl")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("c.jsonl")).unwrap();
        fs::create_dir(folder.path().join("d.jsonl")).unwrap();
        let files = files_of(folder.path()).unwrap();
        assert_eq!(files.len(), 3);
        assert!(text(&files[1]).unwrap_err().to_string().contains("b.jsonl"));
        assert!(text(&files[2]).unwrap_err().to_string().contains("it is a device"));
    }

    #[cfg(unix)]
    #[test]
    fn devices_have_no_rows_and_a_file_can_be_too_large() {
        for device in ["/dev/zero", "/dev/null"] {
            assert!(text(Path::new(device)).unwrap_err().to_string().contains("it is a device"));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.jsonl");
        // A terabyte that takes no room on the disk.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(text(&path).unwrap_err().to_string().contains("more than 16 GiB"));
    }
}
