//! Servers that lie, break off, never end or lead elsewhere.
//!
//! Each fault has to end in an error that names the repository, with nothing broken in the cache: once the server is mended,
//! the same cache works.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use peft::load::hub::{Hub, What};

use super::server::{COMMIT, Reply, Request, Server, sha256};
use crate::support::fixtures;

const ID: &str = "someone/llama";
const WEIGHTS: &str = "model.safetensors";

fn server() -> Server {
    Server::start().with(ID, &fixtures().join("models/llama-tiny"))
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub { token: Some("secret".into()), ..server.hub(cache) }
}

/// Every file below a folder.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => drop(found.insert(entry.path())),
        }
    }
    found
}

fn is_whole(server: &Server, folder: &Path) {
    for file in ["config.json", WEIGHTS] {
        assert_eq!(fs::read(folder.join(file)).unwrap(), server.bytes(&format!("{ID}/{file}")), "{file}");
    }
}

/// The message of a server with a fault. What is in the cache afterwards must be right, and lie in it.
fn fails(fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> String {
    fails_within(Duration::from_secs(5), fault)
}

/// The same of a hub of less patience, for servers that are silent on purpose.
fn fails_within(timeout: Duration, fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> String {
    let server = server().faulty(fault);
    let place = tempfile::tempdir().unwrap();
    let (cache, victim) = (place.path().join("a/b/cache"), place.path().join("x"));
    fs::write(&victim, "mine").unwrap();
    let hub = hub(&server, &cache);
    let error = Hub { timeout, ..hub.clone() }.resolve(ID, What::Model).unwrap_err().to_string();
    assert!(error.contains(ID) && !error.contains("secret"), "{error}");
    assert!(error.chars().all(|it| !it.is_control()), "{error:?}");
    assert!(error.len() < 800, "{error}");

    let outside = files(place.path()).into_iter().filter(|it| !it.starts_with(&cache)).collect::<Vec<_>>();
    assert_eq!(outside, std::slice::from_ref(&victim));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    server.mend();
    is_whole(&server, &hub.resolve(ID, What::Model).unwrap());
    error
}

/// The folder that is fetched in spite of a fault, which has to be whole.
fn succeeds(fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let server = server().faulty(fault);
    let cache = tempfile::tempdir().unwrap();
    is_whole(&server, &hub(&server, cache.path()).resolve(ID, What::Model).unwrap());
    server
}

#[test]
fn the_token_goes_to_the_endpoint_alone() {
    let other = server();
    let to = other.endpoint.clone();
    // As the hub does with large files: hash and size are said before it leads elsewhere.
    let linked = move |request: &Request, reply: Reply| {
        if !request.is_of(WEIGHTS) {
            return reply;
        }
        let size = reply.headers.iter().find(|it| it.0 == "Content-Length").unwrap().1.clone();
        let etag = reply.headers.iter().find(|it| it.0 == "ETag").unwrap().1.clone();
        Reply::redirect(&format!("{to}{}", request.target))
            .with("X-Linked-Etag", etag)
            .with("X-Linked-Size", size)
            .with("X-Repo-Commit", COMMIT)
    };
    let first = succeeds(linked);
    assert!(first.log().iter().all(|it| it.token.is_some()));
    // The file itself, and not the question what it is.
    assert_eq!(other.log().iter().map(|it| it.method.as_str()).collect::<Vec<_>>(), ["GET"]);
    assert!(other.log().iter().all(|it| it.token.is_none()));

    // A hub that sends everything elsewhere, descriptions too.
    let other = server();
    let to = other.endpoint.clone();
    let first = succeeds(move |request, _| Reply::redirect(&format!("{to}{}", request.target)));
    assert!(first.log().iter().all(|it| it.token.is_some()) && first.requests() > 3);
    assert!(other.log().iter().all(|it| it.token.is_none()) && other.requests() > 3);

    // Elsewhere is another host, whatever its port; and back again.
    let other = server();
    let back = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let home = std::sync::Arc::clone(&back);
    let other =
        other.faulty(move |request, _| Reply::redirect(&format!("{}{}?back", home.lock().unwrap(), request.target)));
    let to = other.endpoint.clone();
    let first = server().faulty(move |request, reply| match request.target.ends_with("?back") {
        true => Reply::new(404).with("Content-Length", 0),
        false if request.is_api() => reply,
        false => Reply::redirect(&format!("{to}{}", request.target)),
    });
    back.lock().unwrap().clone_from(&first.endpoint);
    let cache = tempfile::tempdir().unwrap();
    hub(&first, cache.path()).resolve(ID, What::Model).unwrap_err();
    assert!(other.requests() > 0 && other.log().iter().all(|it| it.token.is_none()));
}

#[test]
fn redirects_that_lead_nowhere() {
    let error = fails(|_, _| Reply::new(302).with("Content-Length", 0));
    assert!(error.contains("without saying where to"), "{error}");
    let error =
        fails(|request, reply| if request.gets(WEIGHTS) { Reply::new(307).with("Content-Length", 0) } else { reply });
    assert!(error.contains("without saying where to"), "{error}");
    let error = fails(|request, _| Reply::redirect(&request.target));
    assert!(error.contains("more than 10 times"), "{error}");
    for location in ["ftp://a/b", "file:///etc/passwd", "https://", "http://u:p@127.0.0.1/x", "javascript:1"] {
        let error =
            fails(move |request, reply| if request.is_of("config.json") { Reply::redirect(location) } else { reply });
        assert!(error.contains("it redirects to"), "{location}: {error}");
    }
    for status in [300, 304, 100, 204] {
        fails(move |_, _| Reply::new(status).with("Content-Length", 0));
    }
}

#[test]
fn headers_never_become_paths() {
    let names = ["../../../../../../x", "/tmp/peft-hub-test/x", "..", ".", "a/b", "C:\\x", "%2e%2e/x", "con", "0123"];
    for name in names {
        // Such an etag is no hash: the file is named after its own.
        let place = tempfile::tempdir().unwrap();
        let cache = place.path().join("a/b/c");
        let server = server().faulty(move |_, reply| reply.with("ETag", format!("\"{name}\"")));
        is_whole(&server, &hub(&server, &cache).resolve(ID, What::Model).unwrap());
        assert!(
            files(place.path())
                .iter()
                .all(|it| it.starts_with(cache.join("models--someone--llama")) || it.starts_with(cache.join(".locks")))
        );
        let blob = cache.join("models--someone--llama/blobs").join(sha256(&server.bytes(&format!("{ID}/{WEIGHTS}"))));
        assert!(blob.is_file(), "{name}");

        let error = fails(
            move |request, reply| if request.is_api() { Reply::new(404) } else { reply.with("X-Repo-Commit", name) },
        );
        assert!(error.contains("no name of a commit"), "{error}");
    }
    let error = fails(|_, reply| reply.with("X-Repo-Commit", "f".repeat(40)));
    assert!(error.contains("it answers with"), "{error}");
}

#[test]
fn a_file_that_is_not_what_was_promised() {
    let of_weights = |wrong: fn(Reply) -> Reply| {
        move |request: &Request, reply: Reply| match request.gets(WEIGHTS) {
            true => wrong(reply),
            false => reply,
        }
    };
    // Half of it, which says so, and half of it under the length of the whole.
    let error = fails(of_weights(|reply| {
        let half = reply.body[..reply.body.len() / 2].to_vec();
        reply.body(half)
    }));
    assert!(error.contains("bytes of a file of"), "{error}");
    fails(of_weights(|mut reply| {
        reply.cut = Some(1000);
        reply
    }));
    fails(of_weights(|mut reply| {
        reply.cut = Some(0);
        reply
    }));
    // Half of it without a length: the end of the connection is the end of the file.
    let error = fails(of_weights(|mut reply| {
        reply.body.truncate(1000);
        reply.without("Content-Length")
    }));
    assert!(error.contains("stopped after"), "{error}");
    // Twice, with and without a length.
    fails(of_weights(|reply| {
        let twice = reply.body.repeat(2);
        reply.body(twice)
    }));
    let error = fails(of_weights(|mut reply| {
        reply.body = reply.body.repeat(2);
        reply.without("Content-Length")
    }));
    assert!(error.contains("sends more than"), "{error}");
    // Other bytes, as many.
    let error = fails(of_weights(|mut reply| {
        reply.body[5000] ^= 1;
        reply
    }));
    assert!(error.contains("its hash is not"), "{error}");
    let error = fails(of_weights(|reply| {
        let zeros = vec![0; reply.body.len()];
        reply.body(zeros)
    }));
    assert!(error.contains("its hash is not"), "{error}");
    // Web pages.
    let error =
        fails(of_weights(|reply| reply.body("<html>log in</html>").with("Content-Type", "text/html; charset=utf-8")));
    assert!(error.contains("a web page"), "{error}");
    fails(|_, reply| reply.body("<html>log in</html>").with("Content-Type", "text/html").without("X-Repo-Commit"));
    fails(of_weights(|reply| reply.with("Content-Encoding", "gzip")));
    fails(of_weights(|_| Reply::new(204).with("Content-Length", 0)));
    fails(of_weights(|reply| Reply { status: 206, ..reply }));
}

#[test]
fn a_file_without_a_hash_is_checked_as_far_as_it_can_be() {
    let wrong = |change: fn(Reply) -> Reply| {
        move |request: &Request, reply: Reply| {
            let reply = reply.with("ETag", "\"1-abc\"");
            if request.gets("config.json") { change(reply) } else { reply }
        }
    };
    fails(wrong(|reply| {
        let half = reply.body[..100].to_vec();
        reply.body(half)
    }));
    fails(wrong(|mut reply| {
        reply.cut = Some(100);
        reply
    }));
    let error = fails(wrong(|mut reply| {
        let page = format!("<!DOCTYPE html>{}", " ".repeat(reply.body.len() - 15));
        reply.body = page.into_bytes();
        reply
    }));
    assert!(error.contains("a web page"), "{error}");
    let error = fails(|request, reply| match request.is_api() {
        true => reply,
        false => reply.without("ETag").without("Content-Length"),
    });
    assert!(error.contains("neither the size nor the hash"), "{error}");
}

/// A transfer that breaks off goes on where it ended, if the server really goes on there.
#[test]
fn a_broken_transfer_is_resumed() {
    fn once(then: fn(&Request, Reply) -> Reply) -> impl Fn(&Request, Reply) -> Reply {
        let seen = AtomicUsize::new(0);
        move |request, mut reply| {
            if !request.gets(WEIGHTS) {
                return reply;
            }
            match seen.fetch_add(1, Ordering::Relaxed) {
                0 => {
                    reply.cut = Some(1000);
                    reply
                }
                _ => then(request, reply),
            }
        }
    }
    let ranges = |server: &Server| {
        let log = server.log().into_iter().filter(|it| it.gets(WEIGHTS));
        log.map(|it| it.range.unwrap_or_default()).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&succeeds(once(|_, reply| reply))), ["", "bytes=1000-"]);
    // One that starts anew without a word.
    let whole = |request: &Request, reply: Reply| {
        let path = request.target.rsplit('/').next().unwrap();
        let bytes = fs::read(fixtures().join("models/llama-tiny").join(path)).unwrap();
        Reply { status: 200, ..reply.without("Content-Range").body(bytes) }
    };
    assert_eq!(ranges(&succeeds(once(whole))), ["", "bytes=1000-"]);
    // One that says that it goes on, and does not: then the whole file is asked for.
    fn lies(request: &Request, reply: Reply, range: impl Fn(usize) -> String) -> Reply {
        match &request.range {
            Some(_) => {
                let size = 1000 + reply.body.len();
                reply.with("Content-Range", range(size))
            }
            None => reply,
        }
    }
    let answers = [
        once(|request, reply| lies(request, reply, |size| format!("bytes 0-{}/{size}", size - 1))),
        once(|request, reply| lies(request, reply, |size| format!("bytes 1000-{}/{}", size, size + 1))),
        once(|request, reply| lies(request, reply, |size| format!("bytes 1000-{}/{size}", size - 2))),
        once(|request, reply| lies(request, reply, |_| "nonsense".to_owned())),
    ];
    for answer in answers {
        assert_eq!(ranges(&succeeds(answer)), ["", "bytes=1000-", ""]);
    }
    let refuses = |request: &Request, reply: Reply| match &request.range {
        Some(_) => Reply::new(416).with("Content-Length", 0),
        None => reply,
    };
    assert_eq!(ranges(&succeeds(once(refuses))), ["", "bytes=1000-", ""]);
    // One that goes on with other bytes is found out by the hash.
    let other = |request: &Request, mut reply: Reply| {
        if request.range.is_some() {
            reply.body.fill(7);
        }
        reply
    };
    assert_eq!(ranges(&succeeds(once(other))), ["", "bytes=1000-", ""]);
    // A server that is overloaded for a moment.
    assert_eq!(
        ranges(&succeeds(once(|request, reply| match request.range {
            Some(_) => reply,
            None => Reply::new(500),
        })))
        .len(),
        2
    );
}

#[test]
fn what_an_earlier_run_left_is_used_if_it_is_right() {
    for (start, requests) in [("right", 1), ("wrong", 2), ("too long", 1), ("whole", 0)] {
        let server = server();
        let cache = tempfile::tempdir().unwrap();
        let bytes = server.bytes(&format!("{ID}/{WEIGHTS}"));
        let left = match start {
            "right" => bytes[..2000].to_vec(),
            "wrong" => vec![1; 2000],
            "too long" => vec![1; bytes.len() + 1],
            _ => bytes.clone(),
        };
        let blobs = cache.path().join("models--someone--llama/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(&bytes))), left).unwrap();
        is_whole(&server, &hub(&server, cache.path()).resolve(ID, What::Model).unwrap());
        assert_eq!(server.log().iter().filter(|it| it.gets(WEIGHTS)).count(), requests, "{start}");
        assert!(files(&blobs).iter().all(|it| it.extension().is_none()));
    }
}

#[test]
fn servers_that_never_end() {
    // Silence in the middle of a file, and of a description.
    let short = Duration::from_millis(200);
    let error = fails_within(short, |request, mut reply| {
        (reply.cut, reply.holds) = (Some(10), request.gets(WEIGHTS));
        if !reply.holds {
            reply.cut = None;
        }
        reply
    });
    assert!(error.contains("silent"), "{error}");
    let error = fails_within(short, |request, reply| match request.is_api() {
        true => Reply { cut: Some(5), holds: true, ..reply },
        false => reply,
    });
    assert!(error.contains("silent") || error.contains("takes too long"), "{error}");
    // Endless headers.
    fails(|_, reply| (0..5000).fold(reply, |reply, at| reply.with(&format!("X-{at}"), "y".repeat(100))));
    // A configuration of a terabyte: refused before it is fetched, and where the size is not said, in the middle.
    let error = fails(|request, reply| match request.is_of("config.json") {
        true => reply.with("Content-Length", 1_u64 << 40),
        false => reply,
    });
    assert!(error.contains("1099511627776 bytes"), "{error}");
    // More redirects and errors than anybody waits for.
    let error =
        fails(|request, reply| if request.gets(WEIGHTS) { Reply::new(503).with("Content-Length", 0) } else { reply });
    assert!(error.contains("503"), "{error}");
}

#[test]
fn nonsense_in_place_of_a_description() {
    let list = |names: &[&str]| {
        let siblings: Vec<_> = names.iter().map(|it| serde_json::json!({"rfilename": it})).collect();
        serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string()
    };
    // Whatever is said there, files that are asked for by name come, and only those.
    let hostile =
        list(&["config.json", WEIGHTS, "../../x.json", "/x.json", "a/../../x.txt", "\u{1b}[2J.json", "..\\x.json"]);
    let nonsense = [
        "[]".to_owned(),
        "{".to_owned(),
        "<html>".to_owned(),
        String::new(),
        "null".to_owned(),
        serde_json::json!({"sha": "../../x", "siblings": []}).to_string(),
        "[".repeat(200_000),
        hostile,
    ];
    for text in nonsense {
        let server = succeeds(move |request, reply| if request.is_api() { reply.body(text.clone()) } else { reply });
        assert!(server.log().iter().all(|it| !it.target.contains("x.json") && !it.target.contains("x.txt")));
    }
    let error = fails(move |request, _| match request.is_api() {
        true => Reply::new(200).body(vec![b' '; (64 << 20) + 1]),
        false => Reply::new(404).with("Content-Length", 0),
    });
    assert!(error.contains(ID), "{error}");
}

#[test]
fn an_index_that_leaves_the_repository() {
    for name in ["../../../../stolen.safetensors", "/etc/passwd", "a\\..\\b", "C:x", "\u{1b}[2Jx", ""] {
        let server = Server::start().with(ID, &fixtures().join("models/llama-sharded"));
        server.add(
            &format!("{ID}/model.safetensors.index.json"),
            serde_json::json!({"weight_map": {"a": name}}).to_string(),
        );
        let cache = tempfile::tempdir().unwrap();
        let error = hub(&server, cache.path()).resolve(ID, What::Model).unwrap_err().to_string();
        assert!(error.contains("leaves the repository"), "{error}");
        assert!(error.chars().all(|it| !it.is_control()), "{error:?}");
    }
}

#[test]
fn a_damaged_cache_heals() {
    let server = server();
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server, cache.path());
    let folder = hub.resolve(ID, What::Model).unwrap();
    let requests = server.requests();
    let weights = fs::canonicalize(folder.join(WEIGHTS)).unwrap();
    let config = fs::canonicalize(folder.join("config.json")).unwrap();
    fs::write(&weights, &server.bytes(&format!("{ID}/{WEIGHTS}"))[..3000]).unwrap();
    fs::write(&config, "{}").unwrap();
    // Without a server there is nothing better.
    let offline = Hub { offline: true, ..hub.clone() };
    assert_eq!(offline.resolve(ID, What::Model).unwrap(), folder);
    assert_eq!(hub.resolve(ID, What::Model).unwrap(), folder);
    is_whole(&server, &folder);
    assert!(server.requests() > requests);
    // Somebody may have edited it.
    assert_eq!(fs::read_to_string(config.with_extension("damaged")).unwrap(), "{}");
    // A server out of reach is no reason to refuse what is there.
    fs::write(&config, "{ }").unwrap();
    server.stop();
    assert_eq!(hub.resolve(ID, What::Model).unwrap(), folder);
}

#[test]
fn who_comes_second_waits_for_the_first() {
    let server = server();
    let cache = tempfile::tempdir().unwrap();
    let locks = cache.path().join(".locks/models--someone--llama");
    fs::create_dir_all(&locks).unwrap();
    let path = locks.join(format!("{}.lock", sha256(&server.bytes(&format!("{ID}/{WEIGHTS}")))));
    let lock = File::create(path).unwrap();
    lock.lock().unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| hub(&server, cache.path()).resolve(ID, What::Model));
        // Until it knows which lock to take.
        while !server.log().iter().any(|it| it.is_of(WEIGHTS)) {
            std::thread::yield_now();
        }
        assert!(!server.log().iter().any(|it| it.gets(WEIGHTS)));
        drop(lock);
        is_whole(&server, &second.join().unwrap().unwrap());
    });
    // Many at once fetch it once.
    let cache = tempfile::tempdir().unwrap();
    let before = server.log().iter().filter(|it| it.gets(WEIGHTS)).count();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| hub(&server, cache.path()).resolve(ID, What::Model))).collect();
        all.into_iter().for_each(|it| is_whole(&server, &it.join().unwrap().unwrap()));
    });
    assert_eq!(server.log().iter().filter(|it| it.gets(WEIGHTS)).count(), before + 1);
}

#[test]
fn settings_that_make_no_request() {
    let cache = tempfile::tempdir().unwrap();
    for endpoint in ["", "huggingface.co", "ftp://a", "http://", "a b"] {
        let error = super::hub(endpoint, cache.path()).resolve(ID, What::Model).unwrap_err().to_string();
        assert!(error.contains("HF_ENDPOINT"), "{error}");
    }
    let server = server();
    for token in ["a b", "a\nb", "ü", "a\u{1b}"] {
        let hub = Hub { token: Some(token.into()), ..server.hub(cache.path()) };
        let error = hub.resolve(ID, What::Model).unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains(token), "{error}");
    }
    assert_eq!(server.requests(), 0);
}
