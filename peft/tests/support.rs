//! Fixtures and comparisons.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::{Device, TensorData};
use peft::core::files::checkpoint::{Stored, TensorFile};
use std::sync::OnceLock;

use peft::Registry;
use peft::core::Result;
use peft::core::files::checkpoint::Placement;
use peft::load::AdapterSource;
use peft::run::ForwardRequest;

/// Relative tolerance of every comparison with the reference, in f32.
pub(crate) const TOLERANCE: f64 = 1e-4;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// The device that tests run on: flex, or what `PEFT_TEST_DEVICE` names.
pub(crate) fn device() -> Device {
    let name = std::env::var("PEFT_TEST_DEVICE").unwrap_or_else(|_| "flex".to_owned());
    peft::device::device(&name).expect("the test device is compiled in")
}

/// The CPU, whatever the device of the other tests, for what there is nowhere else.
pub(crate) fn processor() -> Device {
    Device::flex()
}

pub(crate) fn is_libtorch() -> bool {
    std::env::var("PEFT_TEST_DEVICE").is_ok_and(|it| it.starts_with("tch"))
}

/// Holds two outputs to be the same: bit for bit, but on libtorch, whose products of the same numbers differ in the last bit from one
/// call to the next.
#[track_caller]
pub(crate) fn assert_unchanged(found: &TensorData, wanted: &TensorData) {
    if is_libtorch() {
        assert!(distance(found, wanted) <= 1e-6, "{found} is not {wanted}");
    } else {
        assert_eq!(numbers(found), numbers(wanted));
    }
}

/// The device for a model of the fixtures: libtorch has no codes.
pub(crate) fn device_for(model: &str) -> Device {
    let config = fixtures().join("models").join(model).join("config.json");
    let is_packed = std::fs::read_to_string(config).is_ok_and(|it| it.contains("quantization_config"));
    if is_packed && is_libtorch() { processor() } else { device() }
}

#[derive(Debug, serde::Deserialize)]
pub(crate) struct Case {
    pub(crate) model: String,
    pub(crate) task: String,
    pub(crate) adapters: Vec<String>,
    pub(crate) steps: Option<Steps>,
    pub(crate) generate: Option<serde_json::Value>,
}

#[derive(Debug, serde::Deserialize)]
pub(crate) struct Steps {
    pub(crate) lr: f64,
    pub(crate) betas: [f64; 2],
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    #[serde(flatten)]
    pub(crate) more: serde_json::Map<String, serde_json::Value>,
}

pub(crate) fn case(name: &str) -> Case {
    let path = fixtures().join("cases").join(name).join("case.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The forward of a recorded case.
pub(crate) fn request(name: &str) -> ForwardRequest {
    let case = case(name);
    let folder = fixtures().join("cases").join(name);
    ForwardRequest {
        model: fixtures().join("models").join(&case.model),
        task: case.task,
        adapters: case.adapters.iter().map(|it| AdapterSource::new(folder.join(it))).collect(),
        inputs: folder.join("inputs.safetensors"),
        grads: false,
        merge: false,
    }
}

pub(crate) fn numbers(data: &TensorData) -> Vec<f64> {
    data.clone().convert::<f32>().as_slice::<f32>().unwrap().iter().map(|it| f64::from(*it)).collect()
}

/// All float tensors of a file.
pub(crate) fn expected(path: &Path) -> BTreeMap<String, TensorData> {
    let file = TensorFile::open(path).unwrap();
    file.keys().into_iter().map(|key| (key.clone(), file.floats(&key).unwrap())).collect()
}

/// Largest difference, relative to the largest number that is expected.
pub(crate) fn distance(actual: &TensorData, wanted: &TensorData) -> f64 {
    assert_eq!(actual.num_elements(), wanted.num_elements(), "{:?} against {:?}", actual.shape(), wanted.shape());
    let (actual, wanted) = (numbers(actual), numbers(wanted));
    let scale = wanted.iter().fold(0.0f64, |max, it| max.max(it.abs()));
    let error = actual.iter().zip(&wanted).fold(0.0f64, |max, (a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() { f64::INFINITY } else { max.max(difference) }
    });
    // Gradients that are pure rounding noise in the reference (BERT's key biases: 7e-8) have no scale of their own.
    error / scale.max(3e-3)
}

#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &TensorData, wanted: &TensorData) {
    let error = distance(actual, wanted);
    assert!(error <= TOLERANCE, "{what}: relative error {error:.2e}");
}

/// The same for a gradient, which both sides round: of the worst case, T5 on a base of FP4, the recorded one is 8e-5 away from
/// that in double precision, and ours 3e-5, on a processor whose sums have another order than the recorder's.
pub(crate) fn assert_gradient_close(what: &str, actual: &TensorData, wanted: &TensorData) {
    let error = distance(actual, wanted);
    assert!(error <= 1.5 * TOLERANCE, "{what}: relative error {error:.2e}");
}

pub(crate) fn find<'a>(stored: &'a [Stored], key: &str) -> &'a TensorData {
    let keys = || stored.iter().map(|it| it.key.as_str()).collect::<Vec<_>>().join("\n  ");
    &stored.iter().find(|it| it.key == key).unwrap_or_else(|| panic!("no `{key}` among\n  {}", keys())).data
}

/// First line of a test that counts on what is drawn, or on what is allocated: random numbers come from one generator of the
/// whole process. The test goes on in a process that has no other; here it only waits for the outcome.
macro_rules! alone {
    () => {
        fn here() {}
        if !crate::support::is_alone() {
            return crate::support::run_alone(std::any::type_name_of_val(&here));
        }
    };
}

/// Whether this process has no other test.
pub(crate) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

const ALONE: &str = "PEFT_TEST_ALONE";

/// Runs the test that a function is in, `main::training::run::test::here`, by itself.
pub(crate) fn run_alone(here: &str) {
    let name = here.split_once("::").and_then(|it| it.1.strip_suffix("::here")).expect("a function within a test");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([name, "--exact", "--test-threads", "1"]).env(ALONE, "1").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (printed, complained) = (text(&output.stdout), text(&output.stderr));
    // A run of no test succeeds as well.
    let passed = output.status.success() && printed.contains("1 passed");
    assert!(passed, "{name}, in a process of its own:\n{printed}{complained}");
}

/// All that this build knows.
pub(crate) fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::builtin)
}

/// One forward pass, as `peft forward` computes it.
pub(crate) fn forward(request: &ForwardRequest, place: impl Into<Placement>) -> Result<Vec<Stored>> {
    peft::run::forward(request, registry(), place)
}

/// A base of the fixtures, in a folder of its own, with a tokenizer of words: the word `w7` is token 7. `special` are tokens
/// that end the vocabulary of `tokens`, and `config` is `tokenizer_config.json`.
pub(crate) fn base_with_words(
    model: &str,
    tokens: usize,
    special: &[&str],
    config: &serde_json::Value,
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixtures().join("models").join(model)).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    write_words(folder.path(), tokens, special, config);
    folder
}

/// The tokenizer of [`base_with_words`].
pub(crate) fn write_words(folder: &Path, tokens: usize, special: &[&str], config: &serde_json::Value) {
    let plain = tokens - special.len();
    let name = |id: usize| if id < plain { format!("w{id}") } else { special[id - plain].to_owned() };
    let vocab: serde_json::Map<String, serde_json::Value> = (0..tokens).map(|id| (name(id), id.into())).collect();
    let added: Vec<serde_json::Value> = (plain..tokens)
        .map(|id| {
            serde_json::json!({"id": id, "content": name(id), "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}
