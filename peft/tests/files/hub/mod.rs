//! Fetching by name, from a server on this machine.

#![cfg(feature = "hub")]

mod hostile;
mod server;

use std::io::Read;
use std::net::TcpListener;

use peft::core::{PeftModel, read_config};
use peft::load::hub::{Hub, What};
use peft::lora::LoraConfig;
use peft::models::auto;

use crate::support::{device, fixtures, registry};
use server::{COMMIT, Reply, Server, hub};

fn cache() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_model_is_fetched_once_and_then_comes_from_the_cache() {
    let server = Server::start().with("someone/llama", &fixtures().join("models/llama-tiny"));
    server.add("someone/llama/tokenizer.json", "{}");
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
    server.add("someone/evil/model.safetensors.index.json", *index);
    let error = server.hub(cache.path()).resolve("someone/evil", What::Model).unwrap_err().to_string();
    assert!(error.contains("leaves the repository"), "{error}");
}

#[test]
fn a_pipeline_is_fetched_part_by_part() {
    let source = fixtures().join("diffusion/pipeline");
    let server = Server::start();
    for folder in ["unet", "vae", "text_encoder", "scheduler", "tokenizer"] {
        for file in std::fs::read_dir(source.join(folder)).unwrap() {
            let file = file.unwrap();
            let name = format!("someone/pipeline/{folder}/{}", file.file_name().to_str().unwrap());
            server.add(&name, std::fs::read(file.path()).unwrap());
        }
    }
    server.add("someone/pipeline/model_index.json", std::fs::read(source.join("model_index.json")).unwrap());
    server.add("someone/pipeline/safety_checker/config.json", "{}");
    let cache = cache();
    let hub = server.hub(cache.path());
    let folder = hub.resolve("someone/pipeline", What::Model).unwrap();
    assert!(!folder.join("safety_checker").exists());
    let (models, methods) = (&registry().architectures, &registry().methods);
    let place = peft::core::files::checkpoint::Placement::from(&device());
    peft::load::pipeline::load_pipeline(&folder, &[], models, methods, &place).unwrap();
    server.stop();
    assert_eq!(hub.resolve("someone/pipeline", What::Model).unwrap(), folder);
}

#[test]
fn an_adapter_is_fetched_at_a_revision() {
    let server = Server::start().with("someone/adapter", &fixtures().join("cases/llama_lora_default/default"));
    let cache = cache();
    let hub = Hub { token: Some("secret".into()), ..server.hub(cache.path()) };
    let folder = hub.resolve("someone/adapter@v1", What::Adapter).unwrap();
    peft::folder::inspect::inspect(&folder, None, registry()).unwrap();
    let log = server.log();
    assert!(log[0].target.contains("/revision/v1"), "{log:?}");
    assert!(log[1..].iter().all(|it| it.target.contains(COMMIT)), "{log:?}");
    assert!(log.iter().all(|it| it.token.as_deref() == Some("Bearer secret")), "{log:?}");
    assert!(cache.path().join("models--someone--adapter/refs/v1").is_file());
}

#[test]
fn a_name_that_the_hub_does_not_know_and_a_file_that_a_repository_lacks() {
    let server = Server::start()
        .with("someone/adapter", &fixtures().join("cases/llama_lora_default/default"))
        .with("someone/model", &fixtures().join("models/llama-tiny"));
    server.add("someone/old/adapter_config.json", "{}");
    server.add("someone/old/adapter_model.bin", "");
    server.add("someone/pickled/config.json", "{}");
    server.add("someone/pickled/pytorch_model.bin", "");
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
    let server = Server::start().faulty(|_, _| Reply::new(401).with("Content-Length", 0));
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

    let server = Server::start().faulty(|_, _| Reply::new(503).with("Content-Length", 0));
    let error = server.hub(cache.path()).resolve("a/b", What::Model).unwrap_err().to_string();
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
    hub(&endpoint, cache.path()).resolve("someone/model", What::Model).unwrap_err();
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
    for name in ["./missing", "../missing", "~/missing", "src/load/missing", "missing/"] {
        let error = hub.resolve(name, What::Model).unwrap_err().to_string();
        assert!(error.contains("no such folder"), "{error}");
    }
    for name in ["", "a b", "a/..b@main", "a/b@", "a/b@../x", "a/b:../x", "a/b/c:d"] {
        let error = hub.resolve(name, What::Model).unwrap_err().to_string();
        assert!(error.contains("owner/name"), "{error}");
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn all_that_belongs_to_a_folder_comes_along_and_nothing_else() {
    let server = Server::start().with("someone/llama", &fixtures().join("models/llama-tiny"));
    let along = ["tokenizer.model", "spiece.model", "merges.txt", "added_tokens.json", "LICENSE"];
    let left = ["pytorch_model.bin", "model.onnx", "modeling_llama.py", "README.md", "other/config.json"];
    along.iter().chain(&left).for_each(|it| server.add(&format!("someone/llama/{it}"), *it));
    server.add("someone/llama/additional_chat_templates/tool_use.jinja", "t");
    let cache = cache();
    let folder = server.hub(cache.path()).resolve("someone/llama", What::Model).unwrap();
    for file in along.iter().chain(&["additional_chat_templates/tool_use.jinja"]) {
        assert!(folder.join(file).is_file(), "{file}");
    }
    for file in left {
        assert!(!folder.join(file).exists() && !server.log().iter().any(|it| it.is_of(file)), "{file}");
    }
}

#[test]
fn a_folder_of_a_repository_at_a_revision() {
    let tiny = fixtures().join("models/llama-tiny");
    let server = Server::start().with("someone/many/small/llama", &tiny);
    server.add("someone/many/vocab.json", "of another folder");
    server.add("someone/many/small/llama/vocab.json", "its own");
    let place = cache();
    let hub = server.hub(place.path());
    let expected = place.path().join("models--someone--many/snapshots").join(COMMIT).join("small/llama");
    for name in ["someone/many@v1:small/llama", "someone/many:small/llama", "someone/many/small/llama"] {
        let folder = hub.resolve(name, What::Model).unwrap();
        assert_eq!(folder, expected, "{name}");
        auto::load_causal_lm(&folder, &device()).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("vocab.json")).unwrap(), "its own");
        assert!(!expected.join("../../vocab.json").exists());
    }
    let error = hub.resolve("someone/many", What::Model).unwrap_err().to_string();
    assert!(error.contains("`someone/many:small/llama`"), "{error}");
    let error = hub.resolve("someone/many:small/gpt", What::Model).unwrap_err().to_string();
    assert!(error.contains("small/gpt/config.json"), "{error}");
}

/// A list of which a bit is wrong, or that somebody between has changed: the files by which a model computes what it should
/// are asked for by name. A cache that holds such a list is no worse for it.
#[test]
fn a_list_that_lacks_a_file_hides_nothing() {
    let without = |request: &server::Request, reply: Reply| match request.is_api() {
        true => {
            let text = String::from_utf8(reply.body.clone()).unwrap();
            reply.body(text.replace("tokenizer.json", "tokenizer.j3on").replace("config.json", "config.jso~"))
        }
        false => reply,
    };
    let server = Server::start().with("someone/llama", &fixtures().join("models/llama-tiny")).faulty(without);
    server.add("someone/llama/tokenizer.json", "{}");
    server.add("someone/llama/tokenizer_config.json", "{}");
    let cache = cache();
    let hub = server.hub(cache.path());
    let folder = hub.resolve("someone/llama", What::Model).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let requests = server.requests();
    assert_eq!(hub.resolve("someone/llama", What::Model).unwrap(), folder);
    assert_eq!(server.requests(), requests);
}

/// What a server says of a repository or of a file may come the second time.
#[test]
fn a_server_that_is_overloaded_is_asked_again() {
    let refused = std::sync::Mutex::new(std::collections::BTreeSet::new());
    let first = move |request: &server::Request, reply| {
        let is_first = request.method == "HEAD" || request.is_api();
        match is_first && refused.lock().unwrap().insert(request.target.clone()) {
            true => Reply::new(503).with("Content-Length", 0),
            false => reply,
        }
    };
    let server = Server::start().with("someone/llama", &fixtures().join("models/llama-tiny")).faulty(first);
    let cache = cache();
    let folder = server.hub(cache.path()).resolve("someone/llama", What::Model).unwrap();
    assert!(folder.join("model.safetensors").is_file() && folder.join("generation_config.json").is_file());
    // One that stays so has its answer told.
    let down = |_: &server::Request, _| Reply::new(503).with("Content-Length", 0);
    let server = Server::start().faulty(down);
    let error = server.hub(cache.path()).resolve("someone/other", What::Model).unwrap_err().to_string();
    assert!(error.contains("status 503"), "{error}");
}

#[test]
fn a_server_that_lists_no_files_is_asked_for_the_usual_ones() {
    let none = |request: &server::Request, reply| match request.is_api() {
        true => Reply::new(404).with("Content-Length", 0),
        false => reply,
    };
    let server = Server::start().with("someone/llama", &fixtures().join("models/llama-tiny")).faulty(none);
    server.add("someone/llama/spiece.model", "s");
    let cache = cache();
    let hub = server.hub(cache.path());
    let folder = hub.resolve("someone/llama@v1", What::Model).unwrap();
    assert!(folder.join("spiece.model").is_file() && folder.join("model.safetensors").is_file());
    assert!(cache.path().join("models--someone--llama/.no_exist").join(COMMIT).join("merges.txt").is_file());
    let requests = server.requests();
    assert_eq!(hub.resolve("someone/llama@v1", What::Model).unwrap(), folder);
    assert_eq!(server.requests(), requests);
}

/// What huggingface_hub finds in its cache: blobs by their etag, links to them that still hold when the cache is moved.
#[cfg(unix)]
#[test]
fn the_cache_has_the_layout_of_python() {
    let server = Server::start().with("someone/llama", &fixtures().join("models/llama-tiny"));
    let cache = cache();
    let folder = server.hub(cache.path()).resolve("someone/llama", What::Model).unwrap();
    let root = cache.path().join("models--someone--llama");
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let etag = server::sha256(&server.bytes("someone/llama/model.safetensors"));
    let link = std::fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link, std::path::Path::new("../../blobs").join(&etag));
    let blobs: Vec<_> = std::fs::read_dir(root.join("blobs")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(blobs.iter().all(|it| it.len() == 64), "{blobs:?}");
}

#[test]
fn a_base_at_a_revision_is_named_as_python_names_it() {
    let (base, _) = auto::load_causal_lm(fixtures().join("models/llama-tiny"), &device()).unwrap();
    let mut model = PeftModel::new(base);
    model.set_base_name("someone/llama@v1");
    model.add_adapter(LoraConfig::new(2, 2.0)).unwrap();
    let folder = cache();
    model.save(folder.path()).unwrap();
    let config = read_config(folder.path()).unwrap();
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&"someone/llama".into(), &"v1".into()));
}
