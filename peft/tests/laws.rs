//! What holds for every method and option, whatever the numbers.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft::core::{DEFAULT_ADAPTER, Describe, Init, PeftModel, Site, slots, state};
use peft::lora::{Bias, LoraConfig};
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, ModelInput};

use crate::support::{device, distance, fixtures, numbers};

fn base(model: &str) -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(model), &device()).unwrap();
    let sites = model.describe();
    PeftModel::with_sites(model, sites, &device())
}

fn logits<M: CausalLm>(model: &M) -> TensorData {
    let ids = Tensor::from_data(TensorData::from([[5i64, 17, 3, 88, 41, 9], [60, 2, 77, 13, 1, 30]]), &device());
    peft::core::nn::set_training(model.clone(), false).logits(&ModelInput::ids(ids), None).into_data()
}

/// Moves every tensor of an adapter by something visible.
fn disturb(peft: &mut PeftModel<AutoCausalLm>, name: &str) {
    let mut tensors = peft.adapter_tensors(name).unwrap();
    for (at, stored) in tensors.iter_mut().enumerate() {
        let site = Site {
            module: stored.key.clone(),
            param: String::new(),
            owner: String::new(),
            kind: peft::core::SiteKind::Other,
            shape: Vec::new(),
        };
        let mut init = Init::new(at as u64, name, &site, &device());
        let noise = numbers(&init.normal([stored.data.num_elements()], 0.1).val().into_data());
        let moved: Vec<f32> = numbers(&stored.data).iter().zip(noise).map(|(a, b)| (a + b) as f32).collect();
        stored.data = TensorData::new(moved, stored.data.shape().clone());
    }
    peft.assign_adapter(name, tensors).unwrap();
}

fn options() -> Vec<(&'static str, LoraConfig)> {
    let plain = || LoraConfig::new(4, 6.0).all_linear();
    let init = |name: &str| LoraConfig { init_lora_weights: name.into(), ..plain() };
    vec![
        ("default", plain()),
        ("rslora", LoraConfig { use_rslora: true, ..plain() }),
        ("dora", LoraConfig { use_dora: true, ..plain() }),
        ("dora and pissa", LoraConfig { use_dora: true, ..init("pissa") }),
        ("bias all", LoraConfig { bias: Bias::All, ..plain() }),
        ("bias of adapted layers", LoraConfig { bias: Bias::LoraOnly, ..plain() }),
        ("gaussian", init("gaussian")),
        ("orthogonal", init("orthogonal")),
        ("pissa", init("pissa")),
        ("pissa by iteration", init("pissa_niter_4")),
        ("olora", init("olora")),
        ("embedding", LoraConfig::new(4, 6.0).targets(["wte", "embed_tokens", "wpe"])),
        ("saved norm", LoraConfig { modules_to_save: Some(vec!["ln_f".into()]), ..plain() }),
    ]
}

/// Targets that only one of the models has are cut down to those that it has.
fn fitting(config: LoraConfig, model: &str) -> LoraConfig {
    match (&config.target_modules, model) {
        (Some(peft::core::Names::List(_)), "llama-tiny") => config.targets(["embed_tokens"]),
        (Some(peft::core::Names::List(_)), _) => config.targets(["wte", "wpe"]),
        _ if model == "llama-tiny" && config.modules_to_save.is_some() => {
            LoraConfig { modules_to_save: Some(vec!["norm".into()]), ..config }
        }
        _ => config,
    }
}

fn for_all(law: impl Fn(&str, PeftModel<AutoCausalLm>, TensorData)) {
    for model in ["gpt2-tiny", "llama-tiny"] {
        for (name, config) in options() {
            let mut peft = base(model);
            let untouched = logits(&peft.model().valid());
            peft.add_adapter(DEFAULT_ADAPTER, fitting(config, model), 3).unwrap();
            law(&format!("{name} on {model}"), peft, untouched);
        }
    }
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    for_all(|what, peft, untouched| {
        let error = distance(&logits(&peft.model().valid()), &untouched);
        assert!(error < 1e-5, "{what}: {error:.1e}");
    });
}

#[test]
fn merged_is_live_and_dense_is_factored() {
    for_all(|what, mut peft, untouched| {
        disturb(&mut peft, DEFAULT_ADAPTER);
        let live = logits(&peft.model().valid());
        assert!(distance(&live, &untouched) > 1e-2, "{what}: the update must be visible");
        let merged = distance(&logits(&peft.merge().unwrap()), &live);
        // On a tied table the head is merged too, which the live forward leaves alone, as the reference does.
        let tied = what.starts_with("embedding on gpt2");
        assert!(tied || merged < 2e-5, "{what}: merged is off by {merged:.1e}");
    });
}

#[test]
fn disabled_is_the_base_bit_for_bit() {
    for_all(|what, mut peft, untouched| {
        disturb(&mut peft, DEFAULT_ADAPTER);
        peft.set_enabled(false);
        assert_eq!(numbers(&logits(&peft.model().valid())), numbers(&untouched), "{what}");
        peft.set_enabled(true);
        assert_eq!(numbers(&logits(&peft.unload())), numbers(&untouched), "{what}, unloaded");
    });
}

#[test]
fn saved_and_loaded_is_the_same() {
    for_all(|what, mut peft, _| {
        disturb(&mut peft, DEFAULT_ADAPTER);
        let live = logits(&peft.model().valid());
        let folder = tempfile::tempdir().unwrap();
        peft.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap();
        let mut again = base(if what.ends_with("gpt2-tiny") { "gpt2-tiny" } else { "llama-tiny" });
        again.load_adapter(folder.path(), DEFAULT_ADAPTER, &peft::methods()).unwrap();
        let error = distance(&logits(&again.model().valid()), &live);
        assert!(error < 1e-6, "{what}: {error:.1e}");
    });
}

#[test]
fn only_the_adapter_gets_gradients_and_all_of_it_does() {
    for_all(|what, mut peft, _| {
        disturb(&mut peft, DEFAULT_ADAPTER);
        let model = peft::core::nn::set_training(peft.model().clone(), false);
        let ids = Tensor::from_data(TensorData::from([[5i64, 17, 3, 88]]), &device());
        let output = model.logits(&ModelInput::ids(ids), None);
        let gradients = (output.clone() * output).sum().backward();
        let ours = state::gradients(&model, DEFAULT_ADAPTER, &gradients);
        assert_eq!(ours.len(), peft.adapter_tensors(DEFAULT_ADAPTER).unwrap().len(), "{what}");
        let trained: usize =
            peft.adapter_tensors(DEFAULT_ADAPTER).unwrap().iter().map(|it| it.data.num_elements()).sum();
        assert_eq!(trained, peft.adapters()[DEFAULT_ADAPTER].plan.trainable(), "{what}: the plan counts what is there");
    });
}

#[test]
fn adapters_are_named_activated_stacked_and_deleted() {
    let mut peft = base("llama-tiny");
    let untouched = logits(&peft.model().valid());
    for (seed, name) in ["one", "two"].into_iter().enumerate() {
        peft.add_adapter(name, LoraConfig::new(2 + seed, 5.0).targets(["q_proj", "down_proj"]), seed as u64).unwrap();
        disturb(&mut peft, name);
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
    assert!(peft.add_adapter("one", LoraConfig::new(2, 5.0), 0).unwrap_err().to_string().contains("already"));
    peft.delete_adapter("two").unwrap();
    assert_eq!(numbers(&of(&mut peft, &["one"])), numbers(&one));
    assert_eq!(slots::collect(peft.model()).iter().map(|it| it.adapters().len()).max(), Some(1));
}
