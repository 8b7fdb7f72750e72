//! Gradient checkpointing: layers that are computed again give the loss and the gradients of layers that are kept, in less
//! memory. (The tables of `parity` compare every recorded case with the reference, with it and without.)

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Int, Tensor, TensorData};
use peft::core::gradient_checkpointing::scope;
use peft::core::{DEFAULT_ADAPTER, Describe, PeftModel, Tuner, laws, nn};
use peft::lora::LoraConfig;
use peft::models::{CausalLm, ModelInput, auto};

use crate::support::{device, fixtures, random_numbers};

/// All gradients of a model.
fn gradients<M: Module>(model: &M, gradients: &Gradients) -> BTreeMap<String, TensorData> {
    struct Read<'a>(&'a Gradients, BTreeMap<String, TensorData>, Vec<String>);
    impl ModuleVisitor for Read<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.2.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.2.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.0) {
                self.1.insert(self.2.join("."), gradient.into_data());
            }
        }
    }
    let mut read = Read(gradients, BTreeMap::new(), Vec::new());
    model.visit(&mut read);
    read.1
}

/// A loss and its gradients while training, with and without, are the same bit for bit, as are the draws that follow.
fn check<M: Module>(what: &str, model: &M, loss: impl Fn(&M) -> Tensor<1>) {
    let _alone = random_numbers();
    let model = nn::set_training(model.clone(), true);
    let after = || Tensor::<1>::random([4], burn::tensor::Distribution::Default, &device()).into_data();
    let run = |checkpointed: bool| {
        device().seed(7);
        let loss = if checkpointed { scope(&model, &loss).unwrap() } else { loss(&model) };
        let value = loss.clone().into_data();
        let next = after();
        let gradients = gradients(&model, &loss.backward());
        (value, gradients, next, after())
    };
    let (plain, again) = (run(false), run(true));
    assert_eq!(plain.0, again.0, "{what}: loss");
    assert_eq!((plain.2, plain.3), (again.2, again.3), "{what}: what is drawn afterwards");
    let keys = |it: &BTreeMap<String, TensorData>| it.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&plain.1), keys(&again.1), "{what}: which parameters have gradients");
    assert!(!plain.1.is_empty(), "{what}: nothing is trained");
    for (key, plain) in &plain.1 {
        let error = laws::distance(&again.1[key], plain);
        assert!(error < 1e-6, "{what}: gradient of {key} is off by {error:.1e}");
    }
}

fn ids(rows: usize) -> Tensor<2, Int> {
    let values: Vec<i64> = (0..rows as i64 * 7).map(|it| it * 13 % 89 + 3).collect();
    Tensor::from_data(TensorData::new(values, [rows, 7]), &device())
}

fn adapted<M: Module + Describe>(model: M, tuner: Box<dyn Tuner>) -> M {
    let sites = model.describe();
    let mut peft = PeftModel::with_sites(model, sites, &device());
    peft.add_adapter(DEFAULT_ADAPTER, tuner, 1).unwrap();
    laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.3, &device()).unwrap();
    peft.model().clone()
}

fn check_causal(folder: &str, tuner: Box<dyn Tuner>) {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(folder), &device()).unwrap();
    let model = adapted(model, tuner);
    check(folder, &model, |model| {
        let logits = model.logits(&ModelInput::ids(ids(2)), None);
        (logits.clone() * logits).mean()
    });
}

#[test]
fn lora_with_dropout() {
    check_causal("gpt2-tiny", Box::new(LoraConfig { lora_dropout: 0.3, ..LoraConfig::new(3, 5.0) }));
}
