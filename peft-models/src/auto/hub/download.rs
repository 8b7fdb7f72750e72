//! The transfer of one file into the cache: nothing gets a name there before its size and its hash are compared.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::cache::{RepoCache, fault};
use super::client::{Answer, Client, RETRIES, broken};
use super::content::{ContentHash, is_commit, sha256, sha256_of};
use super::failure::{Failure, shown};
use super::settings::Hub;

/// A connection that brought as much as this before it broke was a good one: attempts are counted anew.
const GOOD: u64 = 8 << 20;

/// A server must bring this many bytes within so many of the spans in which it may be silent. One that sends a byte now and
/// then would never end.
const SLOWEST: (u64, u32) = (4096, 12);

/// What the hub says of a file.
struct Metadata {
    commit: Option<String>,
    hash: Option<ContentHash>,
    size: Option<u64>,
}

/// Fetches files of a repository.
pub(super) struct Downloader<'a> {
    pub hub: &'a Hub,
    pub client: &'a Client<'a>,
    pub cache: &'a RepoCache,
    pub id: &'a str,
}

impl Downloader<'_> {
    /// The commit that has a file at a revision; nothing if there is no such file.
    pub(super) fn commit(&self, revision: &str, file: &str) -> Result<Option<String>, Failure> {
        let Some(found) = self.metadata(revision, file)? else { return Ok(None) };
        match found.commit {
            Some(commit) => Ok(Some(commit)),
            None => Err(Failure::NotAHub("it does not say of which commit the file is (X-Repo-Commit)".to_owned())),
        }
    }

    /// Fetches a file of a commit unless the cache has its contents. Nothing if the commit does not have it.
    ///
    /// `limit` is for files that are read whole: one that is larger is refused.
    pub(super) fn fetch(&self, commit: &str, file: &str, limit: Option<u64>) -> Result<Option<PathBuf>, Failure> {
        let Some(found) = self.metadata(commit, file)? else { return Ok(None) };
        if let Some(other) = found.commit.as_ref().filter(|it| *it != commit) {
            return Err(Failure::NotAHub(format!("asked for commit {commit} it answers with {other}")));
        }
        let limit = limit.unwrap_or(u64::MAX);
        if let Some(size) = found.size.filter(|it| *it > limit) {
            return Err(too_large(size, limit));
        }
        let address = self.client.file(self.id, commit, file);
        // Without a hash to be named after, the file is named after its own once it is there.
        let key = found.hash.as_ref().map_or_else(|| sha256_of(&address), |it| it.name().to_owned());
        let _lock = self.cache.lock(&key, file)?;
        let blob = self.cache.blob(&key);
        if blob.is_file() {
            match fault(&blob, found.hash.as_ref(), found.size) {
                None => return self.cache.link(&key, commit, file).map(Some),
                Some(_) => self.cache.set_aside(&key)?,
            }
        }
        let part = self.cache.blob(&format!("{key}.incomplete"));
        let folder = part.parent().unwrap_or(&part);
        fs::create_dir_all(folder).map_err(Failure::cache(folder))?;
        let transfer = Transfer { client: self.client, hub: self.hub, address, part: &part, found, limit };
        let bar = self.bar(file, transfer.found.size);
        let outcome = transfer.run(&bar);
        bar.finish_and_clear();
        outcome?;
        let name = match transfer.found.hash {
            Some(_) => key,
            None => sha256(&part).map_err(Failure::cache(&part))?,
        };
        let blob = self.cache.blob(&name);
        fs::rename(&part, &blob).map_err(Failure::cache(&blob))?;
        self.cache.link(&name, commit, file).map(Some)
    }

    fn metadata(&self, revision: &str, file: &str) -> Result<Option<Metadata>, Failure> {
        let address = self.client.file(self.id, revision, file);
        let answer = self.client.asked_again(|| self.client.head(&address))?;
        match answer.refused() {
            Some(404) => return Ok(None),
            Some(status) => return Err(Failure::Status(status)),
            None => {}
        }
        let commit = answer.header("x-repo-commit").map(str::to_owned);
        if let Some(wrong) = commit.as_ref().filter(|it| !is_commit(it)) {
            return Err(Failure::NotAHub(format!("`{}` is no name of a commit (X-Repo-Commit)", shown(wrong))));
        }
        if commit.is_none() && is_web_page(&answer) {
            return Err(Failure::NotAHub("it sends a web page instead of a file".to_owned()));
        }
        let hash = answer.header("x-linked-etag").or_else(|| answer.header("etag")).and_then(ContentHash::parse);
        let own = || answer.number("content-length").filter(|_| !answer.redirects());
        Ok(Some(Metadata { commit, hash, size: answer.number("x-linked-size").or_else(own) }))
    }

    fn bar(&self, file: &str, size: Option<u64>) -> ProgressBar {
        let target = match self.hub.progress {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(size, target).with_message(file.to_owned());
        let template = "{msg} [{elapsed_precise}] {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// A file on its way into the cache.
struct Transfer<'a> {
    client: &'a Client<'a>,
    hub: &'a Hub,
    address: String,
    /// Where it grows.
    part: &'a Path,
    found: Metadata,
    limit: u64,
}

impl Transfer<'_> {
    /// Brings the file in, going on where an earlier attempt ended, and compares it with what was promised.
    fn run(&self, bar: &ProgressBar) -> Result<(), Failure> {
        let mut attempts = 0;
        loop {
            let before = self.length();
            let failure = match self.attempt(bar) {
                Ok(()) => match self.check() {
                    Ok(()) => return Ok(()),
                    Err(failure) => {
                        fs::remove_file(self.part).map_err(Failure::cache(self.part))?;
                        // What was there from an earlier run may have been at fault.
                        if before == 0 || attempts == RETRIES {
                            return Err(failure);
                        }
                        failure
                    }
                },
                Err(failure) => {
                    if matches!(failure, Failure::Damaged(_)) {
                        fs::remove_file(self.part).map_err(Failure::cache(self.part))?;
                    }
                    if !failure.may_pass() || attempts == RETRIES {
                        return Err(failure);
                    }
                    thread::sleep(self.client.pause(attempts as u32));
                    failure
                }
            };
            tracing::debug!("trying again: {failure:?}");
            attempts = if self.length() >= before.saturating_add(GOOD) { 0 } else { attempts + 1 };
        }
    }

    fn length(&self) -> u64 {
        fs::metadata(self.part).map_or(0, |it| it.len())
    }

    /// One request, which appends to what is there if the server can go on from it.
    fn attempt(&self, bar: &ProgressBar) -> Result<(), Failure> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.part);
        let file = file.as_mut().map_err(|error| Failure::Cache(self.part.to_path_buf(), copy(error)))?;
        let size = self.found.size;
        let mut have = file.seek(SeekFrom::End(0)).map_err(Failure::cache(self.part))?;
        if size.is_some_and(|it| it > 0 && it == have) {
            return Ok(());
        }
        // Without a size or a hash nobody could tell whether the two parts belong together.
        if size.is_none_or(|it| have > it) || self.found.hash.is_none() {
            have = 0;
        }
        let mut answer = self.client.get(&self.address, (have > 0).then_some(have))?;
        if have > 0 && !goes_on(&answer, have, size) {
            have = 0;
            if answer.response.status() != 200 {
                answer = self.client.get(&self.address, None)?;
            }
        }
        if let Some(status) = answer.refused() {
            return Err(Failure::Status(status));
        }
        if have == 0 && answer.response.status() != 200 {
            return Err(Failure::NotAHub(format!("it sends a part of a file (status {})", answer.response.status())));
        }
        if is_web_page(&answer) {
            return Err(Failure::NotAHub("it sends a web page instead of a file".to_owned()));
        }
        if answer.header("content-encoding").is_some_and(|it| !it.eq_ignore_ascii_case("identity")) {
            return Err(Failure::NotAHub("it sends a file compressed, which nobody asked for".to_owned()));
        }
        let whole = answer.number("content-length").map(|it| it.saturating_add(have));
        if let (Some(size), Some(whole)) = (size, whole)
            && size != whole
        {
            return Err(Failure::Damaged(format!("the server sends {whole} bytes of a file of {size}")));
        }
        let Some(end) = size.or(whole).or_else(|| self.found.hash.as_ref().map(|_| self.limit)) else {
            let reason = "it says neither the size nor the hash of a file, so nobody can tell whether it is whole";
            return Err(Failure::NotAHub(reason.to_owned()));
        };
        if end > self.limit {
            return Err(too_large(end, self.limit));
        }
        file.set_len(have).and_then(|()| file.seek(SeekFrom::Start(have))).map_err(Failure::cache(self.part))?;
        bar.set_position(have);
        self.read(answer, file, have, end, bar)?;
        file.sync_all().map_err(Failure::cache(self.part))
    }

    /// Reads a body into the file, which is to be no longer than `end`.
    fn read(&self, answer: Answer, file: &mut File, have: u64, end: u64, bar: &ProgressBar) -> Result<(), Failure> {
        let mut body = answer.response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut piece = vec![0; 1 << 16];
        let mut at = have;
        let mut pace = (Instant::now(), at);
        loop {
            let read = body.read(&mut piece).map_err(|error| broken(&error, self.hub))?;
            if read == 0 {
                break;
            }
            at += read as u64;
            if at > end {
                return Err(Failure::Damaged(format!("the server sends more than the {end} bytes of the file")));
            }
            file.write_all(&piece[..read]).map_err(Failure::cache(self.part))?;
            bar.set_position(at);
            let patience: Duration = self.client.timeout().saturating_mul(SLOWEST.1);
            if at - pace.1 >= SLOWEST.0 {
                pace = (Instant::now(), at);
            } else if pace.0.elapsed() > patience {
                let seconds = patience.as_secs_f64();
                return Err(Failure::Connection(format!("the server sent {} bytes in {seconds} s", at - pace.1)));
            }
        }
        match self.found.size {
            Some(size) if at < size => {
                Err(Failure::Connection(format!("the server stopped after {at} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// Whether what came is what was promised.
    fn check(&self) -> Result<(), Failure> {
        let found = self.length();
        if let Some(size) = self.found.size.filter(|it| *it != found) {
            return Err(Failure::Damaged(format!("what came has {found} bytes instead of {size}")));
        }
        match &self.found.hash {
            Some(hash) if !hash.is_of(self.part).map_err(Failure::cache(self.part))? => {
                Err(Failure::Damaged(format!("what came is another file: its hash is not {}", hash.name())))
            }
            Some(_) => Ok(()),
            None => {
                let mut start = Vec::new();
                let file = File::open(self.part).map_err(Failure::cache(self.part))?;
                file.take(64).read_to_end(&mut start).map_err(Failure::cache(self.part))?;
                let start = String::from_utf8_lossy(&start).trim_start().to_lowercase();
                match start.starts_with("<!doctype html") || start.starts_with("<html") {
                    true => Err(Failure::Damaged("what came is a web page".to_owned())),
                    false => Ok(()),
                }
            }
        }
    }
}

/// Whether an answer goes on from where an earlier one ended.
fn goes_on(answer: &Answer, have: u64, size: Option<u64>) -> bool {
    let range = answer.header("content-range").and_then(|it| it.strip_prefix("bytes ")?.split_once('/'));
    let (Some((range, total)), 206) = (range, answer.response.status().as_u16()) else { return false };
    let Some((first, last)) = range.split_once('-') else { return false };
    let number = |it: &str| it.trim().parse::<u64>().ok();
    let ends_it = number(last).and_then(|it| it.checked_add(1)) == size;
    number(first) == Some(have) && ends_it && (total == "*" || number(total) == size)
}

fn is_web_page(answer: &Answer) -> bool {
    answer.header("content-type").is_some_and(|it| it.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

fn too_large(size: u64, limit: u64) -> Failure {
    Failure::Damaged(format!("it has {size} bytes, and a file of its kind has {limit} at most"))
}

/// Errors of the system cannot be cloned.
fn copy(error: &std::io::Error) -> std::io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), std::io::Error::from_raw_os_error)
}
