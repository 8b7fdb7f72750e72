//! A base kept in half precision: the numbers of its file in single precision, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use peft::core::files::checkpoint::{
    BaseDtype, Checkpoint, FloatType, Placement, Stored, TensorFile, model_tensors, write_tensors,
};
use peft::core::{DEFAULT_ADAPTER, PathStack, PeftConfig, PeftModel, VisitParams, laws, visit_params};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, ModelInput};
use peft::run::ForwardRequest;
use peft::tasks::data::Sample;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::Task;
use tempfile::TempDir;

use crate::laws::{MODELS, rows};
use crate::support::{case, device, expected, fixtures, forward, request};

/// The folder of a model whose weights are rounded to halves.
pub(crate) fn halved(model: &str, float: FloatType) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("models").join(model)).unwrap() {
        let from = entry.unwrap().path();
        let to = folder.path().join(from.file_name().unwrap());
        if from.extension().is_some_and(|it| it == "safetensors") {
            let file = TensorFile::open(&from).unwrap();
            let stored = |key: String| Stored { data: file.floats(&key).unwrap(), key };
            write_tensors(&to, file.keys().into_iter().map(stored).collect(), float).unwrap();
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
    folder
}

/// Where bases go as their files have them, if the device has such numbers.
fn kept() -> Option<Placement> {
    let device = device();
    let has_halves = [DType::BF16, DType::F16].iter().all(|it| device.supports_dtype(*it));
    has_halves.then(|| Placement::on(&device).with_dtype(BaseDtype::Auto))
}

/// Numbers that are the same only if their bits are.
fn bits(data: &TensorData) -> Vec<u32> {
    data.clone().convert::<f32>().as_slice::<f32>().unwrap().iter().map(|it| it.to_bits()).collect()
}

#[track_caller]
pub(crate) fn assert_same(what: &str, kept: &[Stored], wanted: &[Stored]) {
    let keys = |stored: &[Stored]| stored.iter().map(|it| it.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(kept), keys(wanted), "{what}");
    for (kept, wanted) in kept.iter().zip(wanted) {
        assert!(bits(&kept.data) == bits(&wanted.data), "{what}: {} differs", kept.key);
    }
}

/// Logits, loss and gradients live, and logits merged, of recorded cases: of one in `of`, from the `first` on.
fn recorded_cases(first: usize, of: usize) {
    let Some(place) = kept() else { return };
    let mut names: Vec<String> = std::fs::read_dir(fixtures().join("cases"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        // Codes are what they are: halves of them would be another model.
        .filter(|it| !Checkpoint::open(fixtures().join("models").join(case(it).model)).unwrap().has_quantised())
        .collect();
    names.sort();
    let mut models: BTreeMap<String, TempDir> = BTreeMap::new();
    let (mut compared, mut cases) = (0, 0);
    for name in names.iter().skip(first).step_by(of) {
        let case = case(name);
        cases += 1;
        let at = models.len();
        let float = if at.is_multiple_of(2) { FloatType::BF16 } else { FloatType::F16 };
        let model = models.entry(case.model.clone()).or_insert_with(|| halved(&case.model, float));
        let folder = fixtures().join("cases").join(name);
        let live = ForwardRequest { model: model.path().to_path_buf(), ..request(name) };
        let trained = ForwardRequest { grads: true, ..live.clone() };
        let merged = ForwardRequest { merge: true, ..live.clone() };
        let has_gradients = expected(&folder.join("expected.safetensors")).keys().any(|it| it.starts_with("grad."));
        for request in [live, merged].into_iter().chain(has_gradients.then_some(trained)) {
            match (forward(&request, &place), forward(&request, &device())) {
                (Ok(kept), Ok(wanted)) => {
                    assert_same(name, &kept, &wanted);
                    compared += 1;
                }
                // Some cannot be merged.
                (Err(_), Err(_)) => {}
                (kept, wanted) => panic!("{name}: {:?} but {:?}", kept.err(), wanted.err()),
            }
        }
    }
    assert!(cases > 200 && compared > 2 * cases, "only {compared} outputs of {cases} cases are compared");
}

#[test]
fn every_recorded_case_computes_the_same_bits() {
    recorded_cases(0, 3);
}

#[test]
fn every_recorded_case_computes_the_same_bits_second_third() {
    recorded_cases(1, 3);
}

#[test]
fn every_recorded_case_computes_the_same_bits_last_third() {
    recorded_cases(2, 3);
}

pub(crate) fn load(folder: &Path, place: &Placement) -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(folder, place).unwrap();
    PeftModel::new(model)
}

/// Loss and gradients of a training step, dropout included, as [`Task`]s compute them.
fn step<M: CausalLm>(peft: &PeftModel<M>) -> Vec<Stored> {
    let rows = [[5, 17, 3, 88, 41, 9], [60, 2, 77, 13, 1, 30]];
    let task = LanguageModelling::padded(rows.map(|it| Sample::language(it.to_vec())).into(), 0).unwrap();
    let device = peft.device();
    device.seed(7);
    let loss = task.loss_sum(peft.model(), &[0, 1], &device).unwrap();
    let gradients = loss.backward();
    let mut found = peft.adapter_gradients(DEFAULT_ADAPTER, &gradients).unwrap();
    found.push(Stored { key: "loss".into(), data: loss.into_data() });
    found
}

/// What an adapter makes of a base: its start, a step with dropout, and the logits live, disabled, and merged.
pub(crate) fn outcome(mut peft: PeftModel<AutoCausalLm>, tuner: Box<dyn PeftConfig>) -> Vec<Stored> {
    // Perhaps not the device of the other tests.
    let device = peft.device().without_autodiff();
    peft.add_adapter_as(DEFAULT_ADAPTER, tuner, 3).unwrap();
    let mut found = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
    laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device).unwrap();
    found.extend(step(&peft));
    let mut logits = |key: &str, model: AutoCausalLm| {
        let model = peft::core::nn::set_training(model, false);
        let ids = Tensor::from_data(TensorData::from([[5i64, 17, 3, 88, 41, 9]]), &device);
        found.push(Stored { key: key.into(), data: model.logits(&ModelInput::ids(ids), None).into_data() });
    };
    logits("live", peft.model().valid());
    if let Ok(merged) = peft.merge() {
        logits("merged", merged);
    }
    peft.set_active::<&str>(&[]).unwrap();
    logits("disabled", peft.model().valid());
    found
}

#[test]
fn every_method_starts_and_trains_with_the_same_bits() {
    alone!();
    let Some(place) = kept() else { return };
    for names in &MODELS {
        for float in [FloatType::BF16, FloatType::F16] {
            let folder = halved(names.model, float);
            for row in rows() {
                let [kept, wanted] = [place.clone(), Placement::on(&device())]
                    .map(|it| outcome(load(folder.path(), &it), (row.config)(names)));
                assert_same(&format!("{} on {}", row.name, names.model), &kept, &wanted);
            }
        }
    }
}

/// Element types of the parameters of a model, adapters left out.
fn dtypes<M: Module>(model: &M) -> BTreeMap<String, DType> {
    struct List(BTreeMap<String, DType>);
    impl VisitParams for List {
        fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
            if !at.in_adapters() {
                self.0.insert(at.path(), param.base().dtype());
            }
        }
    }
    let mut list = List(BTreeMap::new());
    visit_params(model, &mut list);
    list.0
}

#[test]
fn matrices_are_kept_and_vectors_are_not() {
    let Some(place) = kept() else { return };
    for (model, float, half) in [
        ("llama-tied", FloatType::BF16, DType::BF16),
        ("gpt2-tiny", FloatType::F16, DType::F16),
        ("llama-tiny", FloatType::F32, DType::F32),
    ] {
        let folder = halved(model, float);
        for (path, dtype) in dtypes(load(folder.path(), &place).model()) {
            let is_matrix = path.ends_with(".weight") && !["norm", "ln_"].iter().any(|it| path.contains(it));
            assert_eq!(dtype, if is_matrix { half } else { DType::F32 }, "{path} of {model}");
        }
        assert!(dtypes(load(folder.path(), &Placement::on(&device())).model()).values().all(|it| *it == DType::F32));
    }
}

#[test]
fn a_merged_and_a_resized_weight_are_in_single_precision_and_the_numbers_stay() {
    let Some(place) = kept() else { return };
    let folder = halved("llama-tied", FloatType::BF16);
    let made = |place: &Placement| {
        let mut peft = load(folder.path(), place);
        peft.resize_vocabulary(107).unwrap();
        let stored = model_tensors(peft.model());
        let lora = LoraConfig::new(2, 5.0).targets(["q_proj"]);
        peft.add_adapter_as(DEFAULT_ADAPTER, lora, 0).unwrap();
        laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
        let merged = peft.merge().unwrap();
        let dtypes = dtypes(&merged);
        assert_eq!(dtypes["model.embed_tokens.weight"], DType::F32);
        assert_eq!(dtypes["model.layers.0.self_attn.q_proj.weight"], DType::F32);
        (stored, model_tensors(&merged))
    };
    let (kept, wanted) = (made(&place), made(&Placement::on(&device())));
    assert!(kept.0.iter().chain(&kept.1).all(|it| it.data.dtype() == DType::F32));
    assert_same("resized", &kept.0, &wanted.0);
    assert_same("merged", &kept.1, &wanted.1);
}

#[test]
fn rounding_is_that_of_a_file_and_is_refused_where_numbers_are_too_large() {
    let Some(place) = kept() else { return };
    for (dtype, float) in [(BaseDtype::BFloat16, FloatType::BF16), (BaseDtype::Float16, FloatType::F16)] {
        let (original, rounded) = (halved("llama-tiny", FloatType::F32), halved("llama-tiny", float));
        let rounding = load(original.path(), &place.clone().with_dtype(dtype));
        let file = model_tensors(load(rounded.path(), &place).model());
        let ours = model_tensors(rounding.model());
        let matrices = |it: &[Stored]| {
            let matrices = it.iter().filter(|it| it.data.shape().num_dims() == 2).cloned();
            matrices.collect::<Vec<_>>()
        };
        assert_same("rounded", &matrices(&ours), &matrices(&file));
        assert!(ours.iter().zip(&file).any(|(a, b)| bits(&a.data) != bits(&b.data)), "norms are rounded too");
    }
    let folder = halved("llama-tiny", FloatType::F32);
    let path = folder.path().join("model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let stored = |key: String| {
        let large = key.contains("q_proj");
        let numbers = file.floats(&key).unwrap();
        let shape = numbers.shape().clone();
        let numbers: Vec<f32> = numbers.iter::<f32>().map(|it| if large { it * 1e6 } else { it }).collect();
        Stored { data: TensorData::new(numbers, shape), key }
    };
    let stored: Vec<Stored> = file.keys().into_iter().map(stored).collect();
    write_tensors(&path, stored, FloatType::F32).unwrap();
    let error =
        auto::load_causal_lm(folder.path(), place.clone().with_dtype(BaseDtype::Float16)).unwrap_err().to_string();
    assert!(error.contains("q_proj.weight") && error.contains("use bfloat16"), "{error}");
    assert!("half".parse::<BaseDtype>().unwrap_err().to_string().contains("bfloat16"));
}

#[test]
fn the_command_keeps_halves_where_it_is_told_to() {
    if kept().is_none() {
        return;
    }
    let folder = halved("llama-tied", FloatType::BF16);
    let output = |dtype: &str| {
        let to = folder.path().join(format!("{dtype}.out"));
        let case = fixtures().join("cases/llama_tied_lora_tokens");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_peft"));
        command.args(["forward", "--task", "causal-lm", "--dtype", dtype]);
        command.arg("--model").arg(folder.path()).arg("--adapter").arg(case.join("default"));
        command.arg("--inputs").arg(case.join("inputs.safetensors")).arg("--output").arg(&to);
        let done = command.output().unwrap();
        let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.success() { Ok(std::fs::read(to).unwrap()) } else { Err(complaint) }
    };
    let wanted = output("float32").unwrap();
    assert!(output("auto").unwrap() == wanted && output("bfloat16").unwrap() == wanted);
    assert!(output("float16").unwrap() != wanted, "rounding to f16 changes numbers");
    assert!(output("f16").unwrap() == output("float16").unwrap());
    assert!(output("f8").unwrap_err().contains("float16"));
}
