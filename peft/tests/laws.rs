//! What holds for every method and option, whatever the numbers.

use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::tensor::{Int, Tensor, TensorData};
use peft::core::adapter::slots;
use peft::core::files::checkpoint::{FloatType, Stored, write_tensors};
use peft::core::laws::{distance, numbers};
use peft::core::{ALL_LINEAR, Adaptable, DEFAULT_ADAPTER, Names as Targets, PeftConfig, PeftModel, laws};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, ModelInput};

use crate::support::{device, fixtures};

fn base(model: &str) -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(model), &device()).unwrap();
    let spec = model.spec();
    PeftModel::with_spec(model, spec)
}

fn ids() -> Tensor<2, Int> {
    Tensor::from_data(TensorData::from([[5i64, 17, 3, 88, 41, 9], [60, 2, 77, 13, 1, 30]]), &device())
}

fn logits<M: CausalLm>(model: &M) -> TensorData {
    peft::core::nn::set_training(model.clone(), false).logits(&ModelInput::ids(ids()), None).into_data()
}

/// One method with its options, as each of the models needs it.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) config: fn(&Names) -> Box<dyn PeftConfig>,
    /// A fresh adapter gives the base.
    starts_as_base: bool,
    /// Merged is live. Not so for a tied table: its head is merged too, which the live forward leaves alone, as the
    /// reference does.
    merges: fn(&Names) -> bool,
}

/// A row for a method that promises everything.
fn row(name: &'static str, config: fn(&Names) -> Box<dyn PeftConfig>) -> Row {
    Row { name, config, starts_as_base: true, merges: |_| true }
}

/// The same on a table.
fn embedding(row: Row) -> Row {
    Row { merges: |names| !names.is_tied, ..row }
}

fn all_linear() -> Option<Targets> {
    Some(Targets::Pattern(ALL_LINEAR.into()))
}

fn tables(names: &Names) -> Option<Targets> {
    Some(Targets::list(names.tables.iter().copied()))
}

/// What the layers of a model are called.
pub(super) struct Names {
    pub(super) model: &'static str,
    tables: &'static [&'static str],
    is_tied: bool,
    norm: &'static str,
}

pub(super) const MODELS: [Names; 2] = [
    Names { model: "gpt2-tiny", tables: &["wte", "wpe"], is_tied: true, norm: "ln_f" },
    Names { model: "llama-tiny", tables: &["embed_tokens"], is_tied: false, norm: "norm" },
];

mod chosen_weights;
mod ia3;
mod lora;
mod low_rank;
mod new_tokens;
mod projections;
mod prompts;
mod rotations;

pub(super) fn rows() -> Vec<Row> {
    weight_methods().into_iter().chain(prompts::rows()).collect()
}

/// All but prompts.
fn weight_methods() -> Vec<Row> {
    let families =
        [lora::rows(), ia3::rows(), low_rank::rows(), projections::rows(), rotations::rows(), chosen_weights::rows()];
    families.into_iter().flatten().collect()
}

fn for_all(law: impl Fn(&str, &Names, &Row, PeftModel<AutoCausalLm>, TensorData)) {
    for names in &MODELS {
        for row in rows() {
            let mut peft = base(names.model);
            let untouched = logits(&peft.model().valid());
            peft.add_adapter_as(DEFAULT_ADAPTER, (row.config)(names), 3).unwrap();
            law(&format!("{} on {}", row.name, names.model), names, &row, peft, untouched);
        }
    }
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    for_all(|what, _, row, peft, base| {
        if row.starts_as_base {
            laws::fresh_changes_nothing(what, &peft, &base, logits);
        }
    });
}

#[test]
fn merged_is_live_and_dense_is_factored() {
    for_all(|what, names, row, mut peft, base| {
        if (row.merges)(names) {
            laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
            laws::merged_is_live(what, &peft, &base, logits);
        }
    });
}

#[test]
fn disabled_is_the_base_bit_for_bit() {
    for_all(|what, _, _, mut peft, base| {
        laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
        laws::disabled_is_base(what, peft, &base, logits);
    });
}

#[test]
fn saved_and_loaded_is_the_same() {
    for_all(|what, names, _, mut peft, _| {
        laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
        let fresh = base(names.model);
        let folder = tempfile::tempdir().unwrap();
        laws::saved_is_loaded(what, &peft, DEFAULT_ADAPTER, fresh, &peft::methods(), folder.path(), logits);
    });
}

/// Writes a folder for every row, and the logits that it gives here, for `fixtures/check_python_loads.py --written`.
#[test]
#[ignore = "writes to PEFT_WRITE_FOLDERS, for Python to read"]
fn folders_for_python() {
    let target = std::path::PathBuf::from(std::env::var("PEFT_WRITE_FOLDERS").unwrap());
    for_all(|what, names, row, mut peft, _| {
        laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
        let folder = target.join(what.replace([' ', ','], "_"));
        peft.set_task_type("CAUSAL_LM");
        peft.save_adapter(folder.join("adapter"), DEFAULT_ADAPTER).unwrap();
        let ids = Stored { key: "input_ids".into(), data: ids().into_data() };
        write_tensors(folder.join("inputs.safetensors"), vec![ids], FloatType::F32).unwrap();
        let mut ours = vec![Stored { key: "logits".into(), data: logits(&peft.model().valid()) }];
        if let Some(merged) = (row.merges)(names).then(|| peft.merge().ok()).flatten() {
            ours.push(Stored { key: "merged.logits".into(), data: logits(&merged) });
        }
        write_tensors(folder.join("ours.safetensors"), ours, FloatType::F32).unwrap();
        std::fs::write(folder.join("base"), names.model).unwrap();
    });
}

#[test]
fn only_the_adapter_gets_gradients_and_all_of_it_does() {
    for_all(|what, _, _, mut peft, _| {
        laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
        let ids = Tensor::from_data(TensorData::from([[5i64, 17, 3, 88]]), &device());
        let output = peft::core::nn::set_training(peft.model().clone(), false).logits(&ModelInput::ids(ids), None);
        let gradients = (output.clone() * output).sum().backward();
        laws::all_of_it_is_trained(what, &peft, DEFAULT_ADAPTER, &gradients);
    });
}

#[test]
fn adapters_are_named_activated_stacked_and_deleted() {
    let mut peft = base("llama-tiny");
    let untouched = logits(&peft.model().valid());
    for (seed, name) in ["one", "two"].into_iter().enumerate() {
        peft.add_adapter_as(name, LoraConfig::new(2 + seed, 5.0).targets(["q_proj", "down_proj"]), seed as u64)
            .unwrap();
        laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
    }
    let of = |peft: &mut PeftModel<AutoCausalLm>, names: &[&str]| {
        peft.set_active(names).unwrap();
        logits(&peft.model().valid())
    };
    let (one, two, both) = (of(&mut peft, &["one"]), of(&mut peft, &["two"]), of(&mut peft, &["one", "two"]));
    for (a, b) in [(&one, &two), (&one, &both), (&two, &both), (&one, &untouched)] {
        assert!(distance(a, b) > 1e-3);
    }
    assert!(peft.set_active(&["three"]).unwrap_err().to_string().contains("there are one, two"));
    assert!(peft.add_adapter_as("one", LoraConfig::new(2, 5.0), 0).unwrap_err().to_string().contains("already"));
    peft.delete_adapter("two").unwrap();
    assert_eq!(numbers(&of(&mut peft, &["one"])), numbers(&one));
    assert_eq!(slots::collect(peft.model()).iter().map(|it| it.adapters().len()).max(), Some(1));
}

#[test]
fn a_head_that_offers_its_weight_is_a_product_with_it() {
    for_all(|what, _, _, mut peft, _| {
        laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
        let model = peft::core::nn::set_training(peft.model().valid(), false);
        let ids = Tensor::from_data(TensorData::from([[5i64, 17, 3, 88]]), &device());
        let hidden = model.hidden(&ModelInput::ids(ids), None).flatten::<2>(0, 1);
        if let Some(weight) = model.head_weight() {
            let product = hidden.clone().matmul(weight.transpose());
            let error = distance(&product.into_data(), &model.head(hidden).into_data());
            assert!(error < 1e-5, "{what}: {error}");
        }
    });
}

/// A reparameterization from outside: the weight, scaled.
#[derive(Module, Debug)]
struct Scaled {
    #[module(skip)]
    factor: f64,
}

impl Reparameterization for Scaled {
    const NAME: &'static str = "scaled";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        base.mul_scalar(self.factor)
    }
}

struct ScaleMatrices(f64);

impl Reparameterizer for ScaleMatrices {
    type Reparam = Scaled;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Scaled>) {
        (param, (D == 2).then_some(Scaled { factor: self.0 }))
    }
}

#[test]
fn a_reparameterization_that_is_not_ours_takes_part() {
    for names in &MODELS {
        let model = base(names.model).model().valid();
        let scaled = model.clone().apply_reparameterization(ScaleMatrices(0.5));
        let dense = logits(&scaled.clone().materialize());
        assert!(distance(&dense, &logits(&model)) > 0.01, "{}: halved matrices change nothing", names.model);
        assert!(distance(&dense, &logits(&scaled)) < 1e-6, "{}", names.model);
    }
}
