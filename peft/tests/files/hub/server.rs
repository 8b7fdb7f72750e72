//! A hub on this machine, which can be told to be a bad one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peft::load::hub::Hub;
use sha2::{Digest, Sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub of a few repositories. It serves until the test's process ends, or until it is told to go.
pub(super) struct Server {
    pub(super) endpoint: String,
    state: Arc<Mutex<State>>,
}

/// Turns a right answer into a wrong one.
type Fault = Arc<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

#[derive(Default)]
struct State {
    /// Files by `owner/name/file`.
    files: BTreeMap<String, Vec<u8>>,
    fault: Option<Fault>,
    log: Vec<Request>,
    gone: bool,
}

/// What somebody asked for.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) token: Option<String>,
    pub(super) range: Option<String>,
}

impl Request {
    pub(super) fn is_of(&self, file: &str) -> bool {
        self.target.contains("/resolve/") && self.target.ends_with(&format!("/{file}"))
    }

    /// Whether the contents of a file are asked for.
    pub(super) fn gets(&self, file: &str) -> bool {
        self.method == "GET" && self.is_of(file)
    }

    pub(super) fn is_api(&self) -> bool {
        self.target.starts_with("/api/")
    }
}

#[derive(Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// As many bytes of the body as are sent before the connection is closed.
    pub(super) cut: Option<usize>,
    /// Whether the connection stays open in silence after what is sent.
    pub(super) holds: bool,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None, holds: false }
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(it, _)| !it.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(it, _)| !it.eq_ignore_ascii_case(name));
        self
    }

    /// With a body, and the length that goes with it.
    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        let length = self.body.len();
        self.with("Content-Length", length)
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::new(302).with("Location", to).with("Content-Length", 0)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|it| format!("{it:02x}")).collect()
}

impl Server {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.lock().unwrap().gone {
                    break;
                }
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { endpoint, state }
    }

    /// Puts the files of a folder into a repository, or into a folder of one.
    pub(super) fn with(self, id: &str, folder: &Path) -> Self {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            self.add(&format!("{id}/{name}"), std::fs::read(entry.path()).unwrap());
        }
        self
    }

    pub(super) fn add(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.state.lock().unwrap().files.insert(path.to_owned(), bytes.into());
    }

    pub(super) fn bytes(&self, path: &str) -> Vec<u8> {
        self.state.lock().unwrap().files[path].clone()
    }

    /// Has right answers turned into others.
    pub(super) fn faulty(self, fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Self {
        self.state.lock().unwrap().fault = Some(Arc::new(fault));
        self
    }

    /// Has it answer rightly again.
    pub(super) fn mend(&self) {
        self.state.lock().unwrap().fault = None;
    }

    pub(super) fn log(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    pub(super) fn requests(&self) -> usize {
        self.log().len()
    }

    /// Stops listening: whoever connects now is refused.
    pub(super) fn stop(&self) {
        self.state.lock().unwrap().gone = true;
        let _ = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
        while TcpStream::connect(self.endpoint.trim_start_matches("http://")).is_ok() {}
    }

    pub(super) fn hub(&self, cache: &Path) -> Hub {
        hub(&self.endpoint, cache)
    }
}

pub(super) fn hub(endpoint: &str, cache: &Path) -> Hub {
    Hub {
        endpoint: endpoint.to_owned(),
        cache: cache.to_path_buf(),
        token: None,
        offline: false,
        progress: false,
        timeout: Duration::from_secs(10),
    }
}

/// One request, one answer.
fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|it| !it.is_empty()).collect();
    let mut words = head.first().map(|it| it.split(' ')).into_iter().flatten();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
    let header = |name: &str| {
        let mut pairs = head.iter().filter_map(|it| it.split_once(": "));
        pairs.find(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        token: header("authorization"),
        range: header("range"),
    };
    let (reply, fault) = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        (reply(&state.files, &request), state.fault.clone())
    };
    let reply = fault.map_or_else(|| reply.clone(), |it| it(&request, reply.clone()));
    let mut text = format!("HTTP/1.1 {} -\r\nConnection: close\r\n", reply.status);
    reply.headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    text += "\r\n";
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
    let body = if request.method == "HEAD" { &[] } else { body };
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body));
    if reply.holds {
        // Until the other side gives up.
        let _ = BufReader::new(stream).lines().next();
    }
}

/// The right answer: of a hub whose files all have their SHA-256 as etag.
fn reply(files: &BTreeMap<String, Vec<u8>>, request: &Request) -> Reply {
    let missing = || Reply::new(404).with("Content-Length", 0);
    let revisions = ["main", "v1", COMMIT];
    if let Some((id, rest)) = request.target.strip_prefix("/api/models/").and_then(|it| it.split_once("/revision/")) {
        let revision = rest.split('?').next().unwrap();
        let own = files.iter().filter_map(|(path, it)| Some((path.strip_prefix(id)?.strip_prefix('/')?, it)));
        let siblings: Vec<_> = own.map(|(name, it)| serde_json::json!({"rfilename": name, "size": it.len()})).collect();
        if siblings.is_empty() || !revisions.contains(&revision) {
            return missing();
        }
        return Reply::new(200).body(serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string());
    }
    let Some((id, rest)) = request.target[1..].split_once("/resolve/") else { return missing() };
    let Some((revision, file)) = rest.split_once('/') else { return missing() };
    let Some(bytes) = files.get(&format!("{id}/{file}")).filter(|_| revisions.contains(&revision)) else {
        return missing();
    };
    let etag = sha256(bytes);
    let size = bytes.len();
    let from =
        request.range.as_ref().and_then(|it| it.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let reply = match from {
        None => Reply::new(200).body(bytes.clone()),
        Some(from) if from >= size => Reply::new(416).with("Content-Length", 0),
        Some(from) => Reply::new(206)
            .body(bytes[from..].to_vec())
            .with("Content-Range", format!("bytes {from}-{}/{size}", size - 1)),
    };
    reply.with("ETag", format!("\"{etag}\"")).with("X-Repo-Commit", COMMIT)
}
