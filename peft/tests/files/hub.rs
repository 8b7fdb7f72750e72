//! Fetching by name, from a server on this machine.

#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use peft::load::hub::{Hub, What};
use peft::models::auto;

use crate::support::{device, fixtures, registry};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub of a few repositories. It serves until the test's process ends, or until it is told to go.
struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Files by `owner/name/file`.
    files: BTreeMap<String, Vec<u8>>,
    /// Answered instead of a file.
    status: Option<u16>,
    /// Every request: target and token.
    log: Vec<(String, Option<String>)>,
    gone: bool,
}

impl Server {
    fn start() -> Self {
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

    /// Puts the files of a folder into a repository.
    fn with(self, id: &str, folder: &Path) -> Self {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            self.add(&format!("{id}/{name}"), std::fs::read(entry.path()).unwrap());
        }
        self
    }

    fn add(&self, path: &str, bytes: Vec<u8>) {
        self.state.lock().unwrap().files.insert(path.to_owned(), bytes);
    }

    fn answering(self, status: u16) -> Self {
        self.state.lock().unwrap().status = Some(status);
        self
    }

    fn requests(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }

    /// Stops listening: whoever connects now is refused.
    fn stop(&self) {
        self.state.lock().unwrap().gone = true;
        let _ = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
        while TcpStream::connect(self.endpoint.trim_start_matches("http://")).is_ok() {}
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: self.endpoint.clone(),
            cache: cache.to_path_buf(),
            token: None,
            offline: false,
            progress: false,
        }
    }
}

/// One request, one answer.
fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|it| !it.is_empty()).collect();
    let Some(target) = head.first().and_then(|it| it.split(' ').nth(1)) else { return };
    let header = |name: &str| {
        let mut pairs = head.iter().filter_map(|it| it.split_once(": "));
        pairs.find(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let mut state = state.lock().unwrap();
    state.log.push((target.to_owned(), header("authorization")));
    let (status, headers, body) = match state.status {
        Some(status) => (status, String::new(), Vec::new()),
        None => reply(&state.files, target, header("range").as_deref()),
    };
    let length = body.len();
    let text = format!("HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn reply(files: &BTreeMap<String, Vec<u8>>, target: &str, range: Option<&str>) -> (u16, String, Vec<u8>) {
    let missing = || (404, String::new(), Vec::new());
    let revisions = ["main", "v1", COMMIT];
    if let Some((id, revision)) = target.strip_prefix("/api/models/").and_then(|it| it.split_once("/revision/")) {
        let names = files.keys().filter_map(|it| it.strip_prefix(id)?.strip_prefix('/'));
        let siblings: Vec<_> = names.map(|it| serde_json::json!({"rfilename": it})).collect();
        if siblings.is_empty() || !revisions.contains(&revision) {
            return missing();
        }
        return (200, String::new(), serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes());
    }
    let Some((id, rest)) = target[1..].split_once("/resolve/") else { return missing() };
    let Some((revision, file)) = rest.split_once('/') else { return missing() };
    let Some(bytes) = files.get(&format!("{id}/{file}")).filter(|_| revisions.contains(&revision)) else {
        return missing();
    };
    let size = bytes.len();
    let range = range.and_then(|it| it.strip_prefix("bytes=")?.split_once('-'));
    let (first, last) = range.unwrap_or(("0", ""));
    let (first, end) = (first.parse().unwrap_or(0), last.parse().map_or(size, |it: usize| (it + 1).min(size)));
    let etag = file.replace('.', "-");
    let headers = format!(
        "ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {first}-{}/{size}\r\n",
        end.saturating_sub(1)
    );
    (206, headers, bytes[first..end].to_vec())
}

fn cache() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_model_is_fetched_once_and_then_comes_from_the_cache() {
    let server = Server::start().with("someone/llama", &fixtures().join("models/llama-tiny"));
    server.add("someone/llama/tokenizer.json", b"{}".to_vec());
    let cache = cache();
    let hub = server.hub(cache.path());

    let folder = hub.resolve("someone/llama", What::Model).unwrap();
    assert_eq!(folder, cache.path().join("models--someone--llama/snapshots").join(COMMIT));
    let source = fixtures().join("models/llama-tiny/model.safetensors");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), std::fs::read(source).unwrap());
    assert!(folder.join("tokenizer.json").is_file() && folder.join("generation_config.json").is_file());
    assert!(!folder.join("chat_template.jinja").exists());
    auto::load_causal_lm(&folder, &device()).unwrap();

    // Not even the files that it lacks are asked for again.
    let requests = server.requests();
    assert_eq!(hub.resolve("someone/llama", What::Model).unwrap(), folder);
    assert_eq!(server.requests(), requests);

    server.stop();
    assert_eq!(hub.resolve("someone/llama@main", What::Model).unwrap(), folder);
    let offline = Hub { offline: true, ..hub };
    assert_eq!(offline.resolve("someone/llama", What::Model).unwrap(), folder);
    // A commit needs no branch that names it.
    assert_eq!(offline.resolve(&format!("someone/llama@{COMMIT}"), What::Model).unwrap(), folder);
    let error = offline.resolve("someone/other", What::Model).unwrap_err().to_string();
    assert!(error.contains("someone/other") && error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn a_cache_that_python_filled_is_used_without_a_server() {
    let server = Server::start();
    server.stop();
    let cache = cache();
    let root = cache.path().join("models--tiny");
    let folder = root.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(root.join("refs")).unwrap();
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(root.join("refs/main"), COMMIT).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixtures().join("models/llama-tiny").join(file), folder.join(file)).unwrap();
    }
    // Nobody can tell whether there is a tokenizer; the model is there.
    assert_eq!(server.hub(cache.path()).resolve("tiny", What::Model).unwrap(), folder);
}

#[test]
fn shards_are_fetched_as_the_index_lists_them() {
    let server = Server::start().with("someone/sharded", &fixtures().join("models/llama-sharded"));
    let cache = cache();
    let folder = server.hub(cache.path()).resolve("someone/sharded", What::Model).unwrap();
    auto::load_causal_lm(&folder, &device()).unwrap();

    let server = Server::start().with("someone/evil", &fixtures().join("models/llama-sharded"));
    let index = br#"{"weight_map": {"a": "../../../../stolen.safetensors"}}"#;
    server.add("someone/evil/model.safetensors.index.json", index.to_vec());
    let error = server.hub(cache.path()).resolve("someone/evil", What::Model).unwrap_err().to_string();
    assert!(error.contains("leaves the repository"), "{error}");
}

#[test]
fn an_adapter_is_fetched_at_a_revision() {
    let server = Server::start().with("someone/adapter", &fixtures().join("cases/llama_lora_default/default"));
    let cache = cache();
    let hub = Hub { token: Some("secret".into()), ..server.hub(cache.path()) };
    let folder = hub.resolve("someone/adapter@v1", What::Adapter).unwrap();
    peft::folder::inspect::inspect(&folder, None, registry()).unwrap();
    let log = server.state.lock().unwrap().log.clone();
    assert!(log[0].0.contains("/resolve/v1/"), "{log:?}");
    assert!(log[1..].iter().all(|(target, _)| target.contains(COMMIT)), "{log:?}");
    assert!(log.iter().all(|(_, token)| token.as_deref() == Some("Bearer secret")), "{log:?}");
    assert!(cache.path().join("models--someone--adapter/refs/v1").is_file());
}

#[test]
fn a_name_that_the_hub_does_not_know_and_a_file_that_a_repository_lacks() {
    let server = Server::start()
        .with("someone/adapter", &fixtures().join("cases/llama_lora_default/default"))
        .with("someone/model", &fixtures().join("models/llama-tiny"));
    server.add("someone/old/adapter_config.json", b"{}".to_vec());
    server.add("someone/old/adapter_model.bin", b"".to_vec());
    server.add("someone/pickled/config.json", b"{}".to_vec());
    server.add("someone/pickled/pytorch_model.bin", b"".to_vec());
    let cache = cache();
    let hub = server.hub(cache.path());
    let error = |name: &str, what| hub.resolve(name, what).unwrap_err().to_string();
    for (name, what, words) in [
        ("someone/nothing", What::Model, "no repository"),
        ("someone/model@v9", What::Model, "revision `v9`"),
        ("someone/adapter", What::Model, "it is an adapter, no model"),
        ("someone/model", What::Adapter, "it is a model, no adapter"),
        ("someone/pickled", What::Model, "safe_serialization"),
        ("someone/old", What::Adapter, "safe_serialization"),
    ] {
        let error = error(name, what);
        assert!(error.contains(words) && error.contains(name.split('@').next().unwrap()), "{error}");
    }
}

#[test]
fn a_gated_repository_asks_for_a_token() {
    let server = Server::start().answering(401);
    let cache = cache();
    let hub = server.hub(cache.path());
    let error = hub.resolve("someone/gated", What::Model).unwrap_err().to_string();
    assert!(
        error.contains("someone/gated") && error.contains("config.json") && error.contains("set HF_TOKEN"),
        "{error}"
    );
    let hub = Hub { token: Some("secret".into()), ..hub };
    let error = hub.resolve("someone/gated", What::Adapter).unwrap_err().to_string();
    assert!(error.contains("the token has no access") && !error.contains("secret"), "{error}");

    let error = Server::start().answering(503).hub(cache.path()).resolve("a/b", What::Model).unwrap_err().to_string();
    assert!(error.contains("503"), "{error}");
}

#[test]
fn a_server_out_of_reach_is_named() {
    let server = Server::start();
    server.stop();
    let cache = cache();
    let error = server.hub(cache.path()).resolve("someone/model", What::Model).unwrap_err().to_string();
    assert!(error.contains(&server.endpoint) && error.contains("no local folder"), "{error}");
}

#[test]
fn https_is_compiled_in() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let greeting = std::thread::spawn(move || {
        let mut start = [0; 2];
        listener.accept().unwrap().0.read_exact(&mut start).unwrap();
        start
    });
    let cache = cache();
    let hub = Hub { endpoint, cache: cache.path().to_path_buf(), token: None, offline: false, progress: false };
    hub.resolve("someone/model", What::Model).unwrap_err();
    // A handshake of TLS, version 1.0 for the sake of old servers, as every version begins.
    assert_eq!(greeting.join().unwrap(), [22, 3]);
}

#[test]
fn paths_are_never_looked_up_on_a_hub() {
    let server = Server::start();
    let cache = cache();
    let hub = server.hub(cache.path());
    let here = tempfile::tempdir().unwrap();
    std::fs::create_dir(here.path().join("adapter")).unwrap();
    std::fs::write(here.path().join("file"), "").unwrap();
    let at = |name: &str| here.path().join(name).to_str().unwrap().to_owned();

    assert_eq!(hub.resolve(&at("adapter"), What::Adapter).unwrap(), here.path().join("adapter"));
    let error = hub.resolve(&at("adaptr"), What::Adapter).unwrap_err().to_string();
    assert!(error.contains("no such folder; did you mean") && error.contains("/adapter?"), "{error}");
    let error = hub.resolve(&at("file"), What::Adapter).unwrap_err().to_string();
    assert!(error.contains("give the folder"), "{error}");
    for name in ["./missing", "../missing", "~/missing", "a/b/c", "missing/"] {
        let error = hub.resolve(name, What::Model).unwrap_err().to_string();
        assert!(error.contains("no such folder"), "{error}");
    }
    for name in ["", "a b", "a/..b@main", "a/b@", "a/b@../x"] {
        let error = hub.resolve(name, What::Model).unwrap_err().to_string();
        assert!(error.contains("owner/name"), "{error}");
    }
    assert_eq!(server.requests(), 0);
}
