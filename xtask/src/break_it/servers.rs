//! Downloads from servers that lie: an error or the right files, nothing outside the cache, the token to nobody else, and
//! once the server is honest, the same cache works.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::command::{Outcome, finish};
use super::random::Random;
use super::{Round, cannot, files, remove};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";
/// Seconds that an honest server may take on a busy machine.
const PATIENCE: &str = "20";
const COMMAND: &str = "generate --model someone/base --prompt the --max-new-tokens 2";

pub(super) fn round(round: &Round<'_>) -> Result<(), String> {
    let (place, random) = (round.place, &round.random);
    remove(&place.join("hf"))?;
    let before: BTreeSet<PathBuf> = files(place)?.into_iter().collect();
    let mut served = BTreeMap::new();
    for path in files(&place.join("tiny-gpt"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        served.insert(name, File { bytes: fs::read(&path).map_err(cannot("read", &path))?, hash: None });
    }

    // Without hashes as etags, blobs are named by their SHA-256: the etags of the rounds that follow.
    let honest = Server::start(served.clone(), None)?;
    succeeds(&fetch(round, &honest, PATIENCE)?)?;
    let snapshot = place.join("hf/hub/models--someone--base/snapshots").join(COMMIT);
    for (name, file) in &mut served {
        let blob = fs::read_link(snapshot.join(name)).map_err(cannot("read", &snapshot.join(name)))?;
        file.hash = blob.file_name().map(|it| it.to_string_lossy().into_owned());
    }
    remove(&place.join("hf"))?;

    let other = Server::start(served.clone(), None)?;
    let names: Vec<&String> = served.keys().collect();
    let fault = Fault::draw(random, &names, &other.address, place);
    let story = format!("  the server's fault: {fault:?}");
    let told = |it: String| format!("{it}\n{story}");
    let hostile = Server::start(served.clone(), Some(fault))?;
    let outcome = fetch(round, &hostile, "0.3")?;
    outcome.verdict().map_err(told)?;
    let told = |it: String| format!("{it}\n{story}\n{}", outcome.shown());
    if outcome.code == Some(0) {
        right(&snapshot, &served).map_err(told)?;
    } else if !outcome.stderr.contains("someone/base") && !outcome.stderr.contains("models--someone--base") {
        return Err(told("does not say what could not be fetched".to_owned()));
    }
    if other.log().iter().any(|it| it.contains(TOKEN)) {
        return Err(told("the token went to another server".to_owned()));
    }
    inside(place, &before).map_err(told)?;

    let mended = Server::start(served.clone(), None)?;
    succeeds(&fetch(round, &mended, PATIENCE)?).map_err(told)?;
    right(&snapshot, &served).map_err(told)
}

fn fetch(round: &Round<'_>, server: &Server, patience: &str) -> Result<Outcome, String> {
    let mut command = round.peft.command(round.place, COMMAND);
    command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", format!("http://{}", server.address)).env("HF_TOKEN", TOKEN);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", patience).env("NO_PROXY", "127.0.0.1");
    finish(command, &format!("HF_ENDPOINT=http://{} peft {COMMAND}", server.address))
}

fn succeeds(outcome: &Outcome) -> Result<(), String> {
    outcome.verdict()?;
    match outcome.code {
        Some(0) => Ok(()),
        _ => Err(format!("an honest server is refused\n{}", outcome.shown())),
    }
}

/// Whether the cache has the files that were served.
fn right(snapshot: &Path, served: &BTreeMap<String, File>) -> Result<(), String> {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let path = snapshot.join(name);
        if fs::read(&path).map_err(cannot("read", &path))? != served[name].bytes {
            return Err(format!("{name} is not the file that was promised"));
        }
    }
    Ok(())
}

/// Whether everything new lies in the cache where it belongs.
fn inside(place: &Path, before: &BTreeSet<PathBuf>) -> Result<(), String> {
    let hub = place.join("hf/hub");
    let repository = hub.join("models--someone--base");
    let belongs = |it: &PathBuf| {
        let own = ["blobs", "snapshots", "refs", "trees", ".no_exist"]
            .iter()
            .any(|part| it.starts_with(repository.join(part)));
        own || it.starts_with(hub.join(".locks/models--someone--base"))
    };
    match files(place)?.into_iter().find(|it| !before.contains(it) && !belongs(it)) {
        Some(path) => Err(format!("the server made it write {}", path.display())),
        None => Ok(()),
    }
}

#[derive(Clone)]
struct File {
    bytes: Vec<u8>,
    hash: Option<String>,
}

/// What is wrong with the answers, and to which requests.
#[derive(Debug, Clone)]
struct Fault {
    /// `HEAD`, `GET`, `api` or nothing for all.
    of: &'static str,
    /// A file, or nothing for all.
    file: Option<String>,
    wrong: Wrong,
}

#[derive(Debug, Clone)]
enum Wrong {
    Status(u16),
    Redirect(Option<String>),
    Header(&'static str, String),
    Without(&'static str),
    Cut(usize),
    /// Nothing more comes after so many bytes, and the connection stays open.
    Silence(usize),
    Twice,
    Flipped(usize),
    Page,
    Zeros,
    /// Bytes in the place of an answer.
    Raw(Vec<u8>),
    /// Bytes in the place of the body.
    Body(Vec<u8>),
}

impl Fault {
    fn draw(random: &Random, names: &[&String], other: &SocketAddr, place: &Path) -> Self {
        let of = *random.one(&["HEAD", "GET", "GET", "api", ""]);
        let file = (of != "api" && random.below(3) > 0).then(|| (*random.one(names)).clone());
        let path = format!("{}/stolen", place.display());
        let names =
            ["../../../../stolen", &path, "..", "", "a/b", "%2e%2e/x", "C:x", "0123", "main", &"a".repeat(10_000)]
                .map(str::to_owned);
        let some: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
        let wrong =
            match random.below(15) {
                0 => Wrong::Status(*random.one(&[
                    100, 101, 199, 204, 206, 226, 300, 304, 305, 400, 401, 403, 404, 416, 418, 429, 500, 503, 599,
                ])),
                1 | 2 => Wrong::Redirect(
                    random
                        .one(&[
                            None,
                            Some(format!("http://{other}")),
                            Some(format!("//{other}/")),
                            Some("/".to_owned()),
                            Some("x".to_owned()),
                            Some("ftp://a/b".to_owned()),
                            Some("file:///etc/passwd".to_owned()),
                            Some(format!("http://user@{other}/")),
                            Some("http://".to_owned()),
                            Some("http://127.0.0.1:1/".to_owned()),
                            Some("y".repeat(20_000)),
                        ])
                        .clone(),
                ),
                3 => Wrong::Header(random.word(&["ETag", "X-Linked-Etag"]), format!("\"{}\"", random.one(&names))),
                4 => Wrong::Header("X-Repo-Commit", random.one(&names).clone()),
                5 => {
                    let sizes =
                        ["0", "1", "-1", "x", "18446744073709551615", "99999999999999999999", "1e3", "1099511627776"];
                    Wrong::Header(random.word(&["Content-Length", "X-Linked-Size"]), (*random.one(&sizes)).to_owned())
                }
                6 => Wrong::Header(
                    random.word(&[
                        "Content-Encoding",
                        "Transfer-Encoding",
                        "Content-Type",
                        "Content-Range",
                        "\u{1b}[2J",
                        "X-Long",
                    ]),
                    (*random.one(&[
                        "gzip",
                        "chunked",
                        "text/html",
                        "bytes 0-1/2",
                        "\u{1b}[2J",
                        "\0",
                        &"z".repeat(200_000),
                    ]))
                    .to_owned(),
                ),
                7 => Wrong::Without(random.word(&["ETag", "Content-Length", "X-Repo-Commit"])),
                8 => Wrong::Cut(random.below(3000)),
                9 => Wrong::Silence(random.below(3000)),
                10 => Wrong::Twice,
                11 => Wrong::Flipped(random.below(100_000)),
                12 => random.one(&[Wrong::Page, Wrong::Zeros]).clone(),
                13 => Wrong::Raw(some),
                _ => Wrong::Body(
                    random.one(&[some, vec![b'['; 100_000], b"{\"sha\": \"../x\", \"siblings\": []}".to_vec()]).clone(),
                ),
            };
        Self { of, file, wrong }
    }

    fn concerns(&self, method: &str, target: &str) -> bool {
        let is_api = target.starts_with("/api/");
        let fits = match self.of {
            "" => true,
            "api" => is_api,
            of => of == method && !is_api,
        };
        fits && self.file.as_ref().is_none_or(|it| target.ends_with(it.as_str()))
    }
}

/// A server on this machine, until it is dropped.
struct Server {
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
}

impl Server {
    fn start(files: BTreeMap<String, File>, fault: Option<Fault>) -> Result<Self, String> {
        let cannot = |error: std::io::Error| format!("cannot serve: {error}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let ends = Arc::new(AtomicBool::new(false));
        let (shared, served) = (Arc::clone(&log), Arc::new((files, fault)));
        let ended = Arc::clone(&ends);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let (log, served) = (Arc::clone(&shared), Arc::clone(&served));
                // A client that goes away is what many faults are about.
                thread::spawn(move || drop(answer(stream, &log, &served.0, served.1.as_ref())));
            }
        });
        Ok(Self { address, log, ends })
    }

    /// The heads of all requests.
    fn log(&self) -> Vec<String> {
        self.log.lock().map(|it| it.clone()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // It listens until somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(
    mut stream: TcpStream,
    log: &Mutex<Vec<String>>,
    files: &BTreeMap<String, File>,
    fault: Option<&Fault>,
) -> std::io::Result<()> {
    let lines = BufReader::new(stream.try_clone()?).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|it| !it.is_empty()).collect();
    let mut words = head.first().into_iter().flat_map(|it| it.split(' '));
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if let Ok(mut log) = log.lock() {
        log.push(head.join("\n"));
    }
    let range = head.iter().find_map(|it| it.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let range = range.and_then(|it| {
        let (first, last) = it.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    });
    let (mut status, mut headers, mut body) = honest(target, range, files);
    let (mut sent, mut silent) = (usize::MAX, false);
    let length =
        |headers: &mut Vec<(String, String)>, length: usize| set(headers, "Content-Length", &length.to_string());
    match fault.filter(|it| it.concerns(method, target)).map(|it| &it.wrong) {
        None => {}
        Some(Wrong::Status(other)) => {
            status = *other;
            body.clear();
            length(&mut headers, 0);
        }
        Some(Wrong::Redirect(to)) => {
            status = 302;
            body.clear();
            length(&mut headers, 0);
            if let Some(to) = to {
                let to = if to.starts_with("http://1") || to.starts_with("//") {
                    format!("{to}{target}")
                } else {
                    to.clone()
                };
                set(&mut headers, "Location", &to);
            }
        }
        Some(Wrong::Header(name, value)) => set(&mut headers, name, value),
        Some(Wrong::Without(name)) => headers.retain(|it| it.0 != *name),
        Some(Wrong::Cut(at)) => sent = *at,
        Some(Wrong::Silence(at)) => (sent, silent) = (*at, true),
        Some(Wrong::Twice) => {
            body = body.repeat(2);
            length(&mut headers, body.len());
        }
        Some(Wrong::Flipped(at)) => {
            let at = at % body.len().max(1);
            body.iter_mut().skip(at).take(1).for_each(|it| *it ^= 4);
        }
        Some(Wrong::Zeros) => body.fill(0),
        Some(Wrong::Page) => {
            body = b"<!DOCTYPE html><html>Please log in</html>".to_vec();
            length(&mut headers, body.len());
        }
        Some(Wrong::Body(other)) => {
            body.clone_from(other);
            length(&mut headers, body.len());
        }
        Some(Wrong::Raw(bytes)) => return stream.write_all(bytes),
    }
    let mut text = format!("HTTP/1.1 {status} -\r\nConnection: close\r\n");
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    text += "\r\n";
    stream.write_all(text.as_bytes())?;
    if method != "HEAD" {
        stream.write_all(&body[..sent.min(body.len())])?;
    }
    if silent {
        // Longer than a client has patience, and no longer than a round may take.
        thread::sleep(Duration::from_secs(5));
    }
    Ok(())
}

fn set(headers: &mut Vec<(String, String)>, name: &str, value: &str) {
    headers.retain(|it| it.0 != name);
    headers.push((name.to_owned(), value.to_owned()));
}

/// What a hub answers.
fn honest(
    target: &str,
    range: Option<(usize, Option<usize>)>,
    files: &BTreeMap<String, File>,
) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let header = |name: &str, value: String| (name.to_owned(), value);
    if target.starts_with("/api/models/someone/base/revision/") {
        let names: Vec<String> = files
            .iter()
            .map(|(name, it)| format!("{{\"rfilename\": \"{name}\", \"size\": {}}}", it.bytes.len()))
            .collect();
        let text = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(", "));
        return (200, vec![header("Content-Length", text.len().to_string())], text.into_bytes());
    }
    let file = target.strip_prefix("/someone/base/resolve/").and_then(|it| files.get(it.split_once('/')?.1));
    let Some(file) = file else { return (404, vec![header("Content-Length", "0".to_owned())], Vec::new()) };
    let size = file.bytes.len();
    let mut headers = vec![header("X-Repo-Commit", COMMIT.to_owned())];
    let etag = file.hash.clone().unwrap_or_else(|| format!("of-{size}"));
    headers.push(header("ETag", format!("\"{etag}\"")));
    let (first, last) = range.filter(|it| it.0 < size).unwrap_or((0, None));
    let end = last.map_or(size, |it| size.min(it.saturating_add(1))).max(first);
    if range.is_some() {
        headers.push(header("Content-Range", format!("bytes {first}-{}/{size}", end.saturating_sub(1))));
    }
    headers.push(header("Content-Length", (end - first).to_string()));
    (if range.is_some() { 206 } else { 200 }, headers, file.bytes[first..end].to_vec())
}
