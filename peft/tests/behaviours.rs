//! What the reference's own tests say about adapters on small nets: several at once, what is trained, what is saved, how
//! fresh values are spread. `fixtures/CHECKLIST.md` says which of them is covered where.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Int, Tensor, TensorData, activation};
use peft::core::files::checkpoint::{Stored, model_tensors};
use peft::core::laws::{self, distance};
use peft::core::{AdapterFolder, Names, PeftConfig, PeftModel, nn, read_config, write_folder};
use peft::ia3::Ia3Config;
use peft::lora::combine::convert::{ConvertToLora, Rank};
use peft::lora::combine::weighted::{Combination, Combine, Majority};
use peft::lora::{
    AdaLoraConfig, Bias, BoftConfig, FourierFtConfig, HiraConfig, LnTuningConfig, LoHaConfig, LoKrConfig, LoraConfig,
    MissConfig, OftConfig, RandLoraConfig, ShiraConfig, TrainableTokensConfig, VeraConfig,
};
use peft::models::auto::{self, AutoCausalLm, AutoSeq2SeqLm};
use peft::models::{CausalLm, ModelInput};
use peft::prompt::AdaptionPromptConfig;
use peft::tasks::generate::GenerationConfig;
use peft::tasks::generate::causal::generate;
use peft::tasks::generate::seq2seq::generate_targets;

use crate::support::{device, find, fixtures, numbers};

/// Two linear layers and what is between, as the reference's smallest net.
#[derive(Module, Debug)]
struct Mlp {
    lin0: Linear,
    lin1: Linear,
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        activation::log_softmax(self.lin1.forward(activation::relu(self.lin0.forward(x))), 1)
    }
}

fn mlp() -> PeftModel<Mlp> {
    let net = Mlp { lin0: LinearConfig::new(12, 20).init(&device()), lin1: LinearConfig::new(20, 8).init(&device()) };
    PeftModel::of_module(net)
}

fn input() -> Tensor<2> {
    let values: Vec<f32> = (0..60u8).map(|it| f32::from(it) * 0.37 % 2.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [5, 12]), &device())
}

fn output(peft: &PeftModel<Mlp>) -> TensorData {
    peft.model().valid().forward(input()).into_data()
}

fn lora(targets: &[&str]) -> LoraConfig {
    LoraConfig::new(3, 5.0).targets(targets.iter().copied())
}

/// Every method that changes the weights of linear layers, on the layers that are named.
fn methods(targets: &[&str]) -> Vec<(&'static str, Box<dyn PeftConfig>)> {
    let names = || Some(Names::list(targets.iter().copied()));
    vec![
        ("lora", Box::new(lora(targets))),
        ("dora", Box::new(LoraConfig { use_dora: true, ..lora(targets) })),
        (
            "ia3",
            Box::new(Ia3Config {
                target_modules: names(),
                feedforward_modules: Some(Names::list([""; 0])),
                ..Ia3Config::default()
            }),
        ),
        ("adalora", {
            let lora = LoraConfig { target_modules: names(), ..LoraConfig::default() };
            Box::new(AdaLoraConfig { lora, total_step: Some(10), init_r: 4, ..AdaLoraConfig::default() })
        }),
        ("loha", Box::new(LoHaConfig { r: 3, target_modules: names(), ..LoHaConfig::default() })),
        ("lokr", Box::new(LoKrConfig { r: 2, target_modules: names(), ..LoKrConfig::default() })),
        ("miss", Box::new(MissConfig { r: 4, target_modules: names(), ..MissConfig::default() })),
        ("hira", Box::new(HiraConfig { r: 3, target_modules: names(), ..HiraConfig::default() })),
        ("shira", Box::new(ShiraConfig { r: 2, target_modules: names(), ..ShiraConfig::default() })),
        ("oft", Box::new(OftConfig { oft_block_size: 4, target_modules: names(), ..OftConfig::default() })),
        ("boft", Box::new(BoftConfig { boft_block_size: 4, target_modules: names(), ..BoftConfig::default() })),
        (
            "fourierft",
            Box::new(FourierFtConfig { n_frequency: 10, target_modules: names(), ..FourierFtConfig::default() }),
        ),
        ("randlora", Box::new(RandLoraConfig { r: 4, target_modules: names(), ..RandLoraConfig::default() })),
        ("vera", Box::new(VeraConfig { r: 4, d_initial: 0.5, target_modules: names(), ..VeraConfig::default() })),
        ("ln_tuning", Box::new(LnTuningConfig { target_modules: names(), ..LnTuningConfig::default() })),
    ]
}

/// Keys of the tensors that a loss reaches.
fn reached(peft: &PeftModel<Mlp>, name: &str) -> Vec<String> {
    let gradients = nn::set_training(peft.model().clone(), false).forward(input()).sum().backward();
    peft.adapter_gradients(name, &gradients).unwrap().into_iter().map(|it| it.key).collect()
}

#[test]
fn of_two_adapters_the_chosen_one_is_trained_on_the_same_layers_and_on_others() {
    for (first, second) in [(["lin0"], ["lin0"]), (["lin0"], ["lin1"])] {
        for ((what, one), (_, two)) in methods(&first).into_iter().zip(methods(&second)) {
            let mut peft = mlp();
            peft.add_adapter_as("one", one, 1).unwrap();
            peft.add_adapter_as("two", two, 2).unwrap();
            for name in ["one", "two"] {
                laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
            }
            // Adding makes the newest the one that acts and is trained.
            assert_eq!((peft.active(), peft.adapters()["one"].trainable), (&["two".to_owned()][..], false), "{what}");
            for (chosen, other) in [("one", "two"), ("two", "one")] {
                peft.set_active(&[chosen]).unwrap();
                peft.set_trainable(&[chosen]).unwrap();
                assert!(!reached(&peft, chosen).is_empty(), "{what}: {chosen} is not trained");
                assert!(reached(&peft, other).is_empty(), "{what}: {other} is trained");
            }
        }
    }
}

#[test]
fn several_active_adapters_act_together_and_merge_together() {
    for ((what, one), (_, two)) in methods(&["lin0", "lin1"]).into_iter().zip(methods(&["lin0"])) {
        if what == "ln_tuning" {
            continue; // whole copies, of which one would hide the other: see below
        }
        let mut peft = mlp();
        let base = output(&peft);
        peft.add_adapter_as("one", one, 1).unwrap();
        peft.add_adapter_as("two", two, 2).unwrap();
        for name in ["one", "two"] {
            laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
        }
        let of = |peft: &mut PeftModel<Mlp>, names: &[&str]| {
            peft.set_active(names).unwrap();
            output(peft)
        };
        let (one, two) = (of(&mut peft, &["one"]), of(&mut peft, &["two"]));
        let both = of(&mut peft, &["one", "two"]);
        for (a, b) in [(&one, &two), (&one, &both), (&two, &both), (&one, &base)] {
            assert!(distance(a, b) > 1e-5, "{what}");
        }
        let merged = peft.merge().unwrap();
        assert!(distance(&merged.forward(input()).into_data(), &both) < 1e-5, "{what}");
        // Merging is a function: again it gives the same, and the adapters still act.
        let again = peft.merge().unwrap();
        assert_eq!(numbers(&again.forward(input()).into_data()), numbers(&merged.forward(input()).into_data()));
        assert_eq!(numbers(&output(&peft)), numbers(&both), "{what}");
        // One after the other is both at once, where the second does not look at the weight.
        if ["lora", "ia3", "loha", "lokr", "miss", "shira", "fourierft", "randlora", "adalora"].contains(&what) {
            of(&mut peft, &["one"]);
            let half = peft.merge().unwrap();
            let mut rest = PeftModel::of_module(half);
            let config = methods(&["lin0"]).into_iter().find(|it| it.0 == what).unwrap().1;
            rest.add_adapter_as("two", config, 2).unwrap();
            rest.assign_adapter("two", peft.adapter_tensors("two").unwrap()).unwrap();
            assert!(distance(&output(&rest), &both) < 1e-4, "{what}");
        }
        assert_eq!(numbers(&peft.unload().forward(input()).into_data()), numbers(&base), "{what}");
    }
}

#[test]
fn a_copy_that_would_hide_another_is_not_activated_beside_it() {
    let mut peft = mlp();
    let saved = |targets: &[&str]| LoraConfig { modules_to_save: Some(vec!["lin1".into()]), ..lora(targets) };
    peft.add_adapter_as("one", saved(&["lin0"]), 1).unwrap();
    peft.add_adapter_as("two", saved(&["lin0"]), 2).unwrap();
    peft.add_adapter_as("three", lora(&["lin0"]), 3).unwrap();
    let error = peft.set_active(&["one", "two"]).unwrap_err().to_string();
    assert!(error.contains("lin1") && error.contains("at a time"), "{error}");
    assert_eq!(peft.active(), ["three"]);
    peft.set_active(&["one", "three"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft.save_adapter(folder.path(), "two").unwrap();
    // Loading would activate it: refused, and nothing has changed.
    assert!(peft.load_adapter(folder.path(), "four", &peft::methods()).unwrap_err().to_string().contains("at a time"));
    assert_eq!((peft.adapters().len(), peft.active().len()), (3, 2));
    let biased = |name: &str| LoraConfig { bias: Bias::All, ..lora(&[name]) };
    let mut peft = mlp();
    peft.add_adapter_as("one", biased("lin0"), 1).unwrap();
    peft.add_adapter_as("two", biased("lin1"), 2).unwrap();
    assert!(peft.set_active(&["one", "two"]).is_err());
}

#[test]
fn saved_modules_belong_to_their_adapter() {
    let saved = LoraConfig { modules_to_save: Some(vec!["lin1".into()]), ..lora(&["lin0"]) };
    let mut peft = mlp();
    let base = output(&peft);
    peft.add_adapter_as("one", saved.clone(), 1).unwrap();
    peft.add_adapter_as("two", lora(&["lin0"]), 2).unwrap();
    peft.set_active(&["one"]).unwrap();
    peft.set_trainable(&["one"]).unwrap();
    let keys = reached(&peft, "one");
    let wanted = ["lin0.lora_A.weight", "lin0.lora_B.weight", "lin1.bias", "lin1.weight"];
    assert_eq!(keys, wanted.map(|it| format!("base_model.model.{it}")));
    laws::disturb(&mut peft, "one", 0.2, &device()).unwrap();
    let one = output(&peft);
    assert!(distance(&one, &base) > 1e-3);
    // Another adapter, or none, sees the frozen module.
    peft.set_active(&["two"]).unwrap();
    assert_eq!(numbers(&output(&peft)), numbers(&base));
    peft.set_active(&["one"]).unwrap();
    peft.set_enabled(false);
    assert_eq!(numbers(&output(&peft)), numbers(&base));
    peft.set_enabled(true);
    assert_eq!(numbers(&output(&peft)), numbers(&one));
    peft.delete_adapter("one").unwrap();
    peft.set_active(&["two"]).unwrap();
    assert_eq!(numbers(&output(&peft)), numbers(&base));
    assert!(peft.delete_adapter("one").unwrap_err().to_string().contains("there are two"));
}

#[test]
fn a_deleted_adapter_leaves_the_others_and_nothing_of_itself() {
    for ((what, one), (_, two)) in methods(&["lin0"]).into_iter().zip(methods(&["lin1"])) {
        let mut peft = mlp();
        let base = output(&peft);
        peft.add_adapter_as("one", one, 1).unwrap();
        peft.add_adapter_as("two", two, 2).unwrap();
        laws::disturb(&mut peft, "two", 0.1, &device()).unwrap();
        let acting = output(&peft);
        // An inactive one: nothing changes.
        peft.delete_adapter("one").unwrap();
        assert_eq!(numbers(&output(&peft)), numbers(&acting), "{what}");
        assert!(peft.status().layers.iter().all(|it| it.adapters == ["two"]), "{what}");
        // The active one: the base is back.
        peft.delete_adapter("two").unwrap();
        assert_eq!(numbers(&output(&peft)), numbers(&base), "{what}");
        assert!(peft.active().is_empty() && peft.status().layers.is_empty(), "{what}");
        peft.add_adapter_as("one", lora(&["lin0"]), 1).unwrap();
    }
}

#[test]
fn names_that_contain_one_another_are_kept_apart() {
    let mut peft = mlp();
    for (seed, name) in ["adapter", "adapter1", "my_adapter", "lora", "weight", "lin0"].into_iter().enumerate() {
        peft.add_adapter_as(name, lora(&["lin0"]), seed as u64).unwrap();
        laws::disturb(&mut peft, name, 0.1 + seed as f64, &device()).unwrap();
    }
    let names: Vec<String> = peft.adapters().keys().cloned().collect();
    let mut seen = Vec::new();
    for name in &names {
        let folder = tempfile::tempdir().unwrap();
        peft.save_adapter(folder.path(), name).unwrap();
        let file = AdapterFolder::open(folder.path()).unwrap();
        // The name is not in the keys, and the values are those of this adapter.
        let keys = ["base_model.model.lin0.lora_A.weight", "base_model.model.lin0.lora_B.weight"];
        assert_eq!(file.tensors.keys(), keys, "{name}");
        seen.push(numbers(&file.tensors.floats(keys[0]).unwrap())[0].to_bits());
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), names.len());
}

#[test]
fn the_name_of_an_adapter_makes_no_difference_to_what_is_loaded() {
    let mut peft = mlp();
    peft.add_adapter_as("one", lora(&["lin0", "lin1"]), 1).unwrap();
    laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft.save_adapter(folder.path(), "one").unwrap();
    let wanted = output(&peft);
    let base = peft.unload();
    for name in ["default", "other", "lin0", "lora_A", "weight"] {
        let mut again = PeftModel::of_module(base.clone());
        again.load_adapter(folder.path(), name, &peft::methods()).unwrap();
        assert_eq!(numbers(&output(&again)), numbers(&wanted), "{name}");
    }
    assert!(PeftModel::of_module(base).add_adapter_as("a.b", lora(&["lin0"]), 1).is_err());
}

#[test]
fn a_folder_keeps_the_files_of_others() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("README.md"), "mine").unwrap();
    let mut peft = mlp();
    peft.add_adapter_as("one", lora(&["lin0"]), 1).unwrap();
    peft.save_adapter(folder.path(), "one").unwrap();
    assert_eq!(std::fs::read_to_string(folder.path().join("README.md")).unwrap(), "mine");
    let mut files: Vec<String> =
        std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    // No weight of the base, no configuration of the base.
    assert_eq!(files, ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    let config = read_config(folder.path()).unwrap();
    assert_eq!((&config["inference_mode"], &config["peft_version"]), (&true.into(), &"0.21.2".into()));
}

#[test]
fn what_is_no_number_is_not_merged_and_the_base_stays_as_it_is() {
    for bad in [f32::NAN, f32::INFINITY] {
        for (what, config) in methods(&["lin0"]) {
            let mut peft = mlp();
            let before = output(&peft);
            peft.add_adapter_as("one", config, 1).unwrap();
            let spoil = |it: Stored| {
                let shape = it.data.shape().clone();
                if !it.data.dtype().is_float() {
                    return it;
                }
                let mut values = vec![0.5f32; shape.num_elements()];
                values[0] = bad;
                Stored { data: TensorData::new(values, shape), ..it }
            };
            let tensors = peft.adapter_tensors("one").unwrap().into_iter().map(spoil).collect();
            peft.assign_adapter("one", tensors).unwrap();
            let error = peft.merge().map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("NaN or infinity") && error.contains("lin0"), "{what}: {error}");
            peft.set_enabled(false);
            peft.merge().unwrap();
            assert_eq!(numbers(&output(&peft)), numbers(&before), "{what}");
        }
    }
}

#[test]
fn an_adapter_is_swapped_for_another_of_other_rank_and_scale() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut made = mlp();
    let mut outputs = Vec::new();
    for (folder, config) in [(&one, lora(&["lin0"])), (&two, LoraConfig::new(5, 9.0).targets(["lin0", "lin1"]))] {
        made.add_adapter_as("one", config, 1).unwrap();
        laws::disturb(&mut made, "one", 0.1, &device()).unwrap();
        made.save_adapter(folder.path(), "one").unwrap();
        outputs.push(output(&made));
        made.delete_adapter("one").unwrap();
    }
    let base = model_tensors(made.model());
    let mut peft = PeftModel::of_module(made.unload());
    for at in [0, 1, 0, 1] {
        peft.load_adapter([&one, &two][at].path(), "one", &peft::methods()).unwrap();
        assert_eq!(numbers(&output(&peft)), numbers(&outputs[at]));
        peft.delete_adapter("one").unwrap();
    }
    for (before, after) in base.iter().zip(model_tensors(&peft.unload())) {
        assert_eq!(numbers(&before.data), numbers(&after.data), "{}", before.key);
    }
}

/// Mean, standard deviation and largest value.
fn spread(data: &TensorData) -> (f64, f64, f64) {
    let values = numbers(data);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt(), values.iter().fold(0.0, |max: f64, it| max.max(it.abs())))
}

#[derive(Module, Debug)]
struct Wide {
    linear: Linear,
    table: Embedding,
    conv: Conv2d,
}

#[test]
fn fresh_factors_are_spread_as_in_the_reference() {
    let start = |init: serde_json::Value| {
        let net = Wide {
            linear: LinearConfig::new(400, 300).init(&device()),
            table: EmbeddingConfig::new(500, 100).init(&device()),
            conv: Conv2dConfig::new([40, 60], [3, 3]).init(&device()),
        };
        let mut peft = PeftModel::of_module(net);
        let config =
            LoraConfig { init_lora_weights: init, ..LoraConfig::new(40, 40.0).targets(["linear", "table", "conv"]) };
        peft.add_adapter_as("one", config, 7).unwrap();
        peft.adapter_tensors("one").unwrap()
    };
    let of = |tensors: &[Stored], key: &str| spread(find(tensors, &format!("base_model.model.{key}")));
    let is = |(mean, deviation, largest): (f64, f64, f64), wanted: f64, bound: f64| {
        assert!(mean.abs() < 0.1 * wanted, "mean {mean}");
        assert!((deviation - wanted).abs() < 0.05 * wanted, "deviation {deviation} for {wanted}");
        assert!(largest <= bound, "{largest} beyond {bound}");
    };
    // Kaiming's uniform with a = √5 lies within 1 / √in, where a kernel counts into `in`.
    let kaiming = |tensors: &[Stored], key: &str, d_in: f64| {
        let bound = 1.0 / d_in.sqrt();
        is(of(tensors, key), bound / 3f64.sqrt(), bound);
    };
    let zero = |tensors: &[Stored], key: &str| assert_eq!(of(tensors, key).2, 0.0, "{key}");

    let tensors = start(true.into());
    kaiming(&tensors, "linear.lora_A.weight", 400.0);
    kaiming(&tensors, "conv.lora_A.weight", 360.0);
    is(of(&tensors, "table.lora_embedding_B"), 1.0, f64::INFINITY);
    for key in ["linear.lora_B.weight", "conv.lora_B.weight", "table.lora_embedding_A"] {
        zero(&tensors, key);
    }

    let tensors = start("gaussian".into());
    is(of(&tensors, "linear.lora_A.weight"), 1.0 / 40.0, f64::INFINITY);
    is(of(&tensors, "conv.lora_A.weight"), 1.0 / 40.0, f64::INFINITY);
    zero(&tensors, "linear.lora_B.weight");
    zero(&tensors, "conv.lora_B.weight");

    let tensors = start(false.into());
    kaiming(&tensors, "linear.lora_A.weight", 400.0);
    kaiming(&tensors, "linear.lora_B.weight", 40.0);
    kaiming(&tensors, "conv.lora_B.weight", 40.0);
    is(of(&tensors, "table.lora_embedding_A"), 1.0, f64::INFINITY);
    is(of(&tensors, "table.lora_embedding_B"), 1.0, f64::INFINITY);
}

#[test]
fn an_orthogonal_start_is_orthogonal_and_wants_an_even_rank() {
    let mut peft = mlp();
    let config = |r| LoraConfig { r, init_lora_weights: "orthogonal".into(), ..lora(&["lin0"]) };
    assert!(peft.add_adapter_as("one", config(5), 1).unwrap_err().to_string().contains("even"));
    let base = output(&peft);
    peft.add_adapter_as("one", config(6), 1).unwrap();
    assert!(distance(&output(&peft), &base) < 1e-5);
    let tensors = peft.adapter_tensors("one").unwrap();
    let matrix = |name: &str| {
        Tensor::<2>::from_data(find(&tensors, &format!("base_model.model.lin0.{name}.weight")).clone(), &device())
    };
    let (a, b) = (matrix("lora_A"), matrix("lora_B"));
    assert!(spread(&a.clone().into_data()).2 > 1e-3 && spread(&b.clone().into_data()).2 > 1e-3);
    assert!(spread(&b.matmul(a).into_data()).2 < 1e-6);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let refused =
        |config: Box<dyn PeftConfig>| mlp().add_adapter_as("one", config, 1).map(|_| ()).unwrap_err().to_string();
    // A regular expression says all there is to say about layers.
    let regex = Some(Names::Pattern("lin.".into()));
    let indexed = LoraConfig {
        target_modules: regex.clone(),
        layers_to_transform: Some(peft::core::Indices::One(0)),
        ..LoraConfig::default()
    };
    assert!(refused(Box::new(indexed)).contains("layers_to_transform"));
    let pattern = LoraConfig { layers_pattern: Some(Names::list(["layers"])), ..lora(&["lin0"]) };
    assert!(refused(Box::new(pattern)).contains("layers_pattern"));
    assert!(refused(Box::new(LoraConfig::new(3, 5.0))).contains("target_modules"));
    let excluded = LoraConfig { exclude_modules: Some(Names::list(["lin0"])), ..lora(&["lin0"]) };
    assert!(refused(Box::new(excluded)).contains("exclude"));
    let tokens = LoraConfig {
        trainable_token_indices: Some(serde_json::from_str("{\"lin0\": [1]}").unwrap()),
        ..lora(&["lin0"])
    };
    assert!(refused(Box::new(tokens)).contains("both"));
    for (other, what) in [
        (LoraConfig { use_dora: true, ..lora(&["lin0"]) }, "dora"),
        (LoraConfig { bias: Bias::All, ..lora(&["lin0"]) }, "bias"),
        (LoraConfig { init_lora_weights: "pissa".into(), ..lora(&["lin0"]) }, "pissa"),
    ] {
        assert!(refused(Box::new(LoraConfig { lora_bias: true, ..other })).contains("lora_bias"), "{what}");
    }
    let outside = Ia3Config {
        target_modules: Some(Names::list(["lin0"])),
        feedforward_modules: Some(Names::list(["lin1"])),
        ..Ia3Config::default()
    };
    assert!(refused(Box::new(outside)).contains("feedforward_modules"));
    let ada = |change: fn(&mut AdaLoraConfig)| {
        let mut config = AdaLoraConfig { lora: lora(&["lin0"]), total_step: Some(100), ..AdaLoraConfig::default() };
        change(&mut config);
        refused(Box::new(config))
    };
    assert!(ada(|it| it.total_step = None).contains("total_step"));
    assert!(ada(|it| it.total_step = Some(0)).contains("total_step"));
    assert!(ada(|it| (it.tinit, it.tfinal) = (60, 50)).contains("tinit"));
    assert!(ada(|it| it.orth_reg_weight = -0.1).contains("orth_reg_weight"));
    assert!(ada(|it| it.lora.use_dora = true).contains("use_dora"));
}

fn llama() -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models/llama-tiny"), &device()).unwrap();
    let spec = peft::core::Adaptable::spec(&model);
    PeftModel::with_spec(model, spec)
}

fn ids(rows: usize) -> Tensor<2, Int> {
    let values: Vec<i64> = (0..rows as i64 * 5).map(|it| it * 13 % 97 + 3).collect();
    Tensor::from_data(TensorData::new(values, [rows, 5]), &device())
}

fn logits(model: &AutoCausalLm, rows: usize) -> TensorData {
    nn::set_training(model.clone(), false).logits(&ModelInput::ids(ids(rows)), None).into_data()
}

/// Rows of the output of a batch.
fn row(data: &TensorData, at: usize) -> Vec<f64> {
    let all = numbers(data);
    let width = all.len() / data.shape().as_slice()[0];
    all[at * width..(at + 1) * width].to_vec()
}

#[test]
fn rows_with_adapters_of_their_own_equal_batches_with_one() {
    let mut peft = llama();
    let configs: [(&str, Box<dyn PeftConfig>); 5] = [
        ("plain", Box::new(LoraConfig::new(4, 6.0).targets(["q_proj", "v_proj"]))),
        (
            "overlap",
            Box::new(LoraConfig { use_rslora: true, ..LoraConfig::new(3, 5.0).targets(["v_proj", "down_proj"]) }),
        ),
        ("table", Box::new(LoraConfig::new(2, 5.0).targets(["embed_tokens", "lm_head"]))),
        ("dora", Box::new(LoraConfig { use_dora: true, ..LoraConfig::new(2, 5.0).targets(["o_proj"]) })),
        (
            "loha",
            Box::new(LoHaConfig { r: 2, target_modules: Some(Names::list(["up_proj"])), ..LoHaConfig::default() }),
        ),
    ];
    for (name, config) in configs {
        peft.add_adapter_as(name, config, 1).unwrap();
        laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
    }
    let names = [Some("plain"), None, Some("overlap"), Some("table"), Some("dora"), Some("loha"), Some("plain")];
    let mixed = peft.with_adapter_names(&names, |model| logits(&model.valid(), names.len())).unwrap();
    for (at, name) in names.iter().enumerate() {
        peft.set_active(name.as_slice()).unwrap();
        let alone = logits(&peft.model().valid(), names.len());
        let error = row(&alone, at).iter().zip(row(&mixed, at)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 1e-4, "row {at} with {name:?}: {error}");
    }
}

#[test]
fn rows_that_cannot_be_told_apart_are_refused() {
    let mut peft = llama();
    peft.add_adapter_as("plain", LoraConfig::new(4, 6.0).targets(["q_proj"]), 1).unwrap();
    let run = |peft: &PeftModel<AutoCausalLm>, names: &[Option<&str>]| {
        peft.with_adapter_names(names, |model| logits(&model.valid(), 2)).map(|_| ()).map_err(|it| it.to_string())
    };
    assert!(run(&peft, &[Some("absent"), None]).unwrap_err().contains("absent"));
    assert!(run(&peft, &[]).is_err());
    assert_eq!(run(&peft, &[Some("plain"), None]), Ok(()));
    let three = run(&peft, &[Some("plain"), None, None]).unwrap_err();
    assert!(three.contains("named for 3 rows") && three.contains("q_proj"), "{three}");
    peft.set_enabled(false);
    assert!(run(&peft, &[Some("plain"), None]).unwrap_err().contains("disabled"));
}

#[test]
fn status_says_what_there_is() {
    let mut peft = mlp();
    peft.add_adapter_as("one", lora(&["lin0"]), 1).unwrap();
    let loha = LoHaConfig { r: 2, target_modules: Some(Names::list(["lin0", "lin1"])), ..LoHaConfig::default() };
    peft.add_adapter_as("two", loha, 1).unwrap();
    peft.set_strength("two", 0.5).unwrap();
    let status = peft.status();
    let base = 12 * 20 + 20 + 20 * 8 + 8;
    let (one, two) = (3 * (12 + 20), 2 * 2 * (12 + 20) + 2 * 2 * (20 + 8));
    assert_eq!((status.trainable_parameters, status.total_parameters), (two, base + one + two));
    let told: Vec<_> = status
        .adapters
        .iter()
        .map(|it| (it.name.as_str(), it.peft_type.as_str(), it.active, it.trainable, it.strength, it.parameters))
        .collect();
    assert_eq!(told, [("one", "LORA", false, false, 1.0, one), ("two", "LOHA", true, true, 0.5, two)]);
    let layers: Vec<_> = status
        .layers
        .iter()
        .map(|it| (it.path.as_str(), it.owner.as_str(), it.shape.clone(), it.adapters.len(), it.active.clone()))
        .collect();
    assert_eq!(
        layers,
        [
            ("lin0.weight", "Linear", vec![12, 20], 2, vec!["two".to_owned()]),
            ("lin1.weight", "Linear", vec![20, 8], 1, vec!["two".to_owned()]),
        ]
    );
    peft.set_enabled(false);
    let status = peft.status();
    assert!(!status.enabled && status.adapters.iter().all(|it| !it.active));
    assert!(status.layers.iter().all(|it| it.active.is_empty()));
    assert!(serde_json::to_string(&status).unwrap().contains("\"peft_type\":\"LOHA\""));
    assert!(mlp().status().layers.is_empty());
}

#[test]
fn strength_is_set_anew_each_time_and_zero_is_the_base() {
    for (what, config) in methods(&["lin0", "lin1"]) {
        if what == "ln_tuning" {
            continue; // whole copies stay as they are
        }
        let mut peft = mlp();
        let base = output(&peft);
        peft.add_adapter_as("one", config, 1).unwrap();
        laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
        let full = output(&peft);
        for strength in [0.5, 0.0, 2.0] {
            peft.set_strength("one", strength).unwrap();
            let live = output(&peft);
            assert!(distance(&peft.merge().unwrap().forward(input()).into_data(), &live) < 1e-5, "{what} {strength}");
            assert_eq!(strength == 0.0, distance(&live, &base) < 1e-6, "{what} {strength}");
        }
        peft.set_strength("one", 1.0).unwrap();
        assert_eq!(numbers(&output(&peft)), numbers(&full), "{what}");
        assert!(peft.set_strength("one", f64::NAN).is_err() && peft.set_strength("two", 1.0).is_err());
    }
}

fn deltas(peft: &PeftModel<Mlp>, name: &str) -> Vec<Vec<f64>> {
    peft.updates(name).unwrap().iter().map(|it| numbers(&it.delta.to_data())).collect()
}

#[test]
fn combinations_add_updates_with_their_signs() {
    let mut peft = mlp();
    let pattern = LoraConfig { rank_pattern: [("lin1".to_owned(), 5)].into(), ..lora(&["lin0", "lin1"]) };
    peft.add_adapter_as("one", pattern, 1).unwrap();
    peft.add_adapter_as("two", LoraConfig::new(4, 9.0).targets(["lin0", "lin1"]), 2).unwrap();
    for name in ["one", "two"] {
        laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
    }
    let (one, two) = (deltas(&peft, "one"), deltas(&peft, "two"));
    let same = |ours: &[Vec<f64>], a: f64, b: f64| {
        for ((ours, one), two) in ours.iter().zip(&one).zip(&two) {
            for ((ours, one), two) in ours.iter().zip(one).zip(two) {
                assert!((ours - (a * one + b * two)).abs() < 1e-5);
            }
        }
    };
    let svd = Combination::parse("svd", None, Majority::Total, Some(9)).unwrap();
    for (name, how, adapters) in [
        ("cat", Combination::Cat, &[("one", 0.5), ("two", 1.5)][..]),
        ("difference", Combination::Cat, &[("one", 1.0), ("two", -1.0)]),
        ("svd", svd, &[("one", 0.5), ("two", 1.5)]),
        ("negated", Combination::parse("linear", None, Majority::Total, None).unwrap(), &[("two", -1.0)]),
        ("same", svd, &[("two", 1.0)]),
    ] {
        peft.combine(name, adapters, how, 0).unwrap();
        let weight = |of: &str| adapters.iter().find(|it| it.0 == of).map_or(0.0, |it| it.1);
        same(&deltas(&peft, name), weight("one"), weight("two"));
    }
    // Both at once is their concatenation with weights of 1.
    peft.combine("sum", &[("one", 1.0), ("two", 1.0)], Combination::Cat, 0).unwrap();
    peft.set_active(&["one", "two"]).unwrap();
    let both = output(&peft);
    peft.set_active(&["sum"]).unwrap();
    assert!(distance(&output(&peft), &both) < 1e-5);
    assert!(peft.combine("none", &[], Combination::Cat, 0).is_err());
    assert!(peft.combine("absent", &[("three", 1.0)], Combination::Cat, 0).unwrap_err().to_string().contains("three"));
    assert!(peft.combine("cat", &[("one", 1.0)], Combination::Cat, 0).unwrap_err().to_string().contains("already"));
}

#[test]
fn every_weight_method_becomes_lora() {
    for (what, config) in methods(&["lin0", "lin1"]) {
        let mut peft = mlp();
        peft.add_adapter_as("one", config, 1).unwrap();
        laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
        let wanted = output(&peft);
        if ["ia3", "ln_tuning"].contains(&what) {
            // They change biases too, or modules whole.
            assert!(peft.convert_to_lora("one", "low", Rank::Fixed(4)).is_err(), "{what}");
            continue;
        }
        let low = peft.convert_to_lora("one", "low", Rank::Fixed(2)).unwrap();
        assert_eq!(peft.active(), ["one"]);
        let full = peft.convert_to_lora("one", "full", Rank::Fixed(20)).unwrap();
        assert_eq!(low.len(), 2);
        assert!(full.iter().all(|it| it.error < 1e-5 && it.rank_needed <= 12), "{what}: {full:?}");
        peft.set_active(&["full"]).unwrap();
        assert!(distance(&output(&peft), &wanted) < 1e-4, "{what}");
        // The error is what it says: the norm of what is lost.
        let norm = |it: &[f64]| it.iter().map(|it| it * it).sum::<f64>().sqrt();
        for ((low, one), told) in deltas(&peft, "low").iter().zip(deltas(&peft, "one")).zip(&low) {
            let lost: Vec<f64> = low.iter().zip(&one).map(|(a, b)| a - b).collect();
            assert!((norm(&lost) / norm(&one) - told.error).abs() < 1e-3, "{what}: {told:?}");
            assert!((norm(&one) - told.norm).abs() < 1e-4 * norm(&one), "{what}: {told:?}");
        }
        assert!(peft.convert_to_lora("one", "none", Rank::Fixed(0)).is_err());
        // A rank for each layer, no higher than it takes.
        let kept = peft.convert_to_lora("one", "kept", Rank::Share(0.9)).unwrap();
        for told in &kept {
            assert!(told.error.powi(2) <= 0.1 + 1e-6 && told.rank <= told.rank_needed.max(1), "{what}: {told:?}");
        }
        let lower = peft.convert_to_lora("one", "lower", Rank::Share(0.2)).unwrap();
        assert!(lower.iter().zip(&kept).all(|(a, b)| a.rank <= b.rank), "{what}");
        for share in [0.0, -0.5, 1.5, f64::NAN] {
            assert!(peft.convert_to_lora("one", "none", Rank::Share(share)).is_err());
        }
    }
    let mut peft = llama();
    peft.add_adapter_as("prompt", peft::prompt::PromptTuningConfig::new(2, "CAUSAL_LM"), 1).unwrap();
    assert!(peft.convert_to_lora("prompt", "low", Rank::Fixed(2)).is_err());
}

#[test]
fn rows_of_tables_are_trained_by_one_adapter_each() {
    let tokens = |rows: &[usize]| TrainableTokensConfig {
        token_indices: rows.to_vec(),
        target_modules: Some(Names::list(["embed_tokens"])),
        ..TrainableTokensConfig::default()
    };
    let mut peft = llama();
    for (name, rows) in [("one", [3, 5]), ("two", [5, 7]), ("three", [7, 9])] {
        peft.add_adapter_as(name, tokens(&rows), 1).unwrap();
        laws::disturb(&mut peft, name, 0.3, &device()).unwrap();
    }
    let table = |peft: &PeftModel<AutoCausalLm>| {
        let weights = model_tensors(&peft.merge().unwrap());
        Tensor::<2>::from_data(find(&weights, "model.embed_tokens.weight").clone(), &device())
    };
    peft.set_enabled(false);
    let base = table(&peft);
    peft.set_enabled(true);
    let changed = |peft: &PeftModel<AutoCausalLm>| {
        let moved = (table(peft) - base.clone()).abs().sum_dim(1).into_data();
        numbers(&moved).iter().enumerate().filter(|it| *it.1 > 0.0).map(|it| it.0).collect::<Vec<_>>()
    };
    peft.set_active(&["one", "three"]).unwrap();
    assert_eq!(changed(&peft), [3, 5, 7, 9]);
    for both in [["one", "two"], ["three", "two"]] {
        let error = peft.set_active(&both).unwrap_err().to_string();
        assert!(error.contains("same rows") && error.contains("embed_tokens"), "{error}");
    }
    assert_eq!(peft.active(), ["one", "three"]);
    peft.delete_adapter("one").unwrap();
    assert_eq!(changed(&peft), [7, 9]);
    // Beside LoRA the rows are an adapter of their own.
    let beside = LoraConfig {
        trainable_token_indices: Some(serde_json::from_str("[7]").unwrap()),
        ..LoraConfig::new(2, 4.0).targets(["q_proj"])
    };
    peft.add_adapter_as("beside", beside, 1).unwrap();
    assert!(peft.set_active(&["three", "beside"]).is_err());
}

#[test]
fn adapters_that_save_modules_are_not_combined() {
    let mut peft = mlp();
    let saved = LoraConfig { modules_to_save: Some(vec!["lin1".into()]), ..lora(&["lin0"]) };
    peft.add_adapter_as("saved", saved, 1).unwrap();
    peft.add_adapter_as("dora", LoraConfig { use_dora: true, ..lora(&["lin0"]) }, 1).unwrap();
    peft.add_adapter_as("biased", LoraConfig { bias: Bias::AdaptedOnly, ..lora(&["lin0"]) }, 1).unwrap();
    peft.add_adapter_as("pissa", LoraConfig { init_lora_weights: "pissa".into(), ..lora(&["lin0"]) }, 1).unwrap();
    peft.add_adapter_as(
        "oft",
        OftConfig { oft_block_size: 4, target_modules: Some(Names::list(["lin0"])), ..OftConfig::default() },
        1,
    )
    .unwrap();
    let parameters = Some(vec!["lin0.weight".into()]);
    peft.add_adapter_as("parameters", LoraConfig { target_parameters: parameters, ..LoraConfig::new(4, 6.0) }, 1)
        .unwrap();
    for name in ["saved", "dora", "biased", "pissa", "oft", "parameters"] {
        let error = peft.combine("new", &[(name, 1.0)], Combination::Cat, 0).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    assert_eq!(peft.adapters().len(), 6);
}

#[test]
fn what_is_loaded_is_trained_or_not_as_told() {
    let mut peft = mlp();
    let saved = LoraConfig { modules_to_save: Some(vec!["lin1".into()]), ..lora(&["lin0"]) };
    peft.add_adapter_as("one", saved, 1).unwrap();
    laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft.save_adapter(folder.path(), "one").unwrap();
    let mut again = PeftModel::of_module(peft.unload());
    again.load_adapter(folder.path(), "one", &peft::methods()).unwrap();
    assert_eq!(reached(&again, "one").len(), 4);
    again.set_trainable::<&str>(&[]).unwrap();
    assert!(reached_quietly(&again, "one").is_empty());
    again.add_adapter_as("two", lora(&["lin0"]), 1).unwrap();
    again.set_active(&["one", "two"]).unwrap();
    assert!(reached(&again, "one").is_empty() && !reached(&again, "two").is_empty());
    again.set_trainable(&["one", "two"]).unwrap();
    assert_eq!(reached(&again, "one").len(), 4);
    assert_eq!(again.trainable().0, again.status().trainable_parameters);
}

/// As [`reached`] where nothing at all may be trained.
fn reached_quietly(peft: &PeftModel<Mlp>, name: &str) -> Vec<String> {
    let tracked = Tensor::<2>::from_data(input().into_data(), &device().autodiff()).require_grad();
    let gradients = nn::set_training(peft.model().clone(), false).forward(tracked).sum().backward();
    peft.adapter_gradients(name, &gradients).unwrap().into_iter().map(|it| it.key).collect()
}

#[test]
fn moved_starts_become_lora_with_patterns_and_rslora() {
    for start in ["pissa", "olora"] {
        for config in [
            lora(&["lin0", "lin1"]),
            LoraConfig { rank_pattern: [("lin1".to_owned(), 4)].into(), ..lora(&["lin0", "lin1"]) },
            LoraConfig { alpha_pattern: [("lin1".to_owned(), 7.0)].into(), ..lora(&["lin0", "lin1"]) },
            LoraConfig { use_rslora: true, ..lora(&["lin0", "lin1"]) },
        ] {
            let mut peft = mlp();
            let base = output(&peft);
            peft.add_adapter_as("one", LoraConfig { init_lora_weights: start.into(), ..config }, 1).unwrap();
            assert!(distance(&output(&peft), &base) < 1e-5);
            laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
            let wanted = output(&peft);
            // Twice the rank holds what was learned less what it started from.
            let report = peft.convert_to_lora("one", "plain", Rank::Fixed(8)).unwrap();
            assert!(report.iter().all(|it| it.error < 1e-5 && it.rank_needed <= 8), "{start}: {report:?}");
            peft.set_active(&["plain"]).unwrap();
            assert!(distance(&output(&peft), &wanted) < 1e-4, "{start}");
        }
    }
}

#[test]
fn all_linear_means_the_same_layers_beside_another_adapter() {
    let mut peft = llama();
    let paths = |peft: &PeftModel<AutoCausalLm>, name: &str| {
        let rows = &peft.adapters()[name].plan.rows;
        rows.iter().map(|it| it.param.module.clone()).collect::<Vec<_>>()
    };
    peft.add_adapter_as("one", LoraConfig::new(2, 4.0).all_linear(), 1).unwrap();
    peft.add_adapter_as("two", LoraConfig::new(3, 4.0).all_linear(), 1).unwrap();
    assert_eq!(paths(&peft, "one"), paths(&peft, "two"));
    assert_eq!(paths(&peft, "one").len(), 14);
    assert!(!paths(&peft, "one").contains(&"lm_head".to_owned()));
}

#[test]
fn different_methods_act_together_on_one_layer_and_on_others() {
    let kinds = methods(&["lin0"]).len();
    for first in 0..kinds {
        // With the method after it, on the same layer, on another, and on both.
        let second = (first + 1) % kinds;
        for targets in [&["lin0"][..], &["lin1"], &["lin0", "lin1"]] {
            let mut peft = mlp();
            let base = output(&peft);
            let (one, config) = methods(&["lin0"]).remove(first);
            peft.add_adapter_as("one", config, 1).unwrap();
            let (two, config) = methods(targets).remove(second);
            peft.add_adapter_as("two", config, 2).unwrap();
            for name in ["one", "two"] {
                laws::disturb(&mut peft, name, 0.1, &device()).unwrap();
            }
            peft.set_active(&["one"]).unwrap();
            let alone = output(&peft);
            peft.set_active(&["one", "two"]).unwrap();
            let both = output(&peft);
            assert!(distance(&alone, &base) > 1e-6 && distance(&both, &alone) > 1e-6, "{one} and {two}");
            let merged = peft.merge().unwrap().forward(input()).into_data();
            assert!(distance(&merged, &both) < 1e-5, "{one} and {two} on {targets:?}");
            // Saved apart and loaded in turn they give the same.
            let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            peft.save_adapter(folders[0].path(), "one").unwrap();
            peft.save_adapter(folders[1].path(), "two").unwrap();
            let mut again = PeftModel::of_module(peft.unload());
            again.load_adapter(folders[0].path(), "one", &peft::methods()).unwrap();
            again.load_adapter(folders[1].path(), "two", &peft::methods()).unwrap();
            assert!(distance(&output(&again), &both) < 1e-6, "{one} and {two} on {targets:?}");
            assert_eq!(numbers(&again.unload().forward(input()).into_data()), numbers(&base));
        }
    }
}

#[test]
fn conversion_takes_saved_modules_along() {
    for bias in [Bias::None, Bias::AdaptedOnly, Bias::All] {
        let config = MissConfig {
            r: 4,
            bias,
            target_modules: Some(Names::list(["lin0"])),
            modules_to_save: Some(vec!["lin1".into()]),
            ..MissConfig::default()
        };
        let mut peft = mlp();
        peft.add_adapter_as("one", config, 1).unwrap();
        laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
        let wanted = output(&peft);
        peft.convert_to_lora("one", "plain", Rank::Fixed(12)).unwrap();
        peft.set_active(&["plain"]).unwrap();
        assert!(distance(&output(&peft), &wanted) < 1e-5, "{bias:?}");
        assert_eq!(peft.adapter_config("plain").unwrap()["modules_to_save"], serde_json::json!(["lin1"]));
    }
}

#[test]
fn gated_prompts_are_added_switched_and_deleted() {
    let mut peft = llama();
    let of = |peft: &PeftModel<AutoCausalLm>| logits(&peft.model().valid(), 2);
    let base = of(&peft);
    for (seed, name) in ["one", "two"].into_iter().enumerate() {
        peft.add_adapter_as(name, AdaptionPromptConfig::new(3, 1 + seed), seed as u64).unwrap();
        assert!(distance(&of(&peft), &base) < 1e-6, "its gate starts at zero");
        laws::disturb(&mut peft, name, 0.5, &device()).unwrap();
    }
    let two = of(&peft);
    assert!(distance(&two, &base) > 1e-4);
    peft.set_active(&["one"]).unwrap();
    let one = of(&peft);
    assert!(distance(&one, &base) > 1e-4 && distance(&one, &two) > 1e-4);
    // Added and chosen while nothing acts.
    peft.set_enabled(false);
    assert_eq!(numbers(&of(&peft)), numbers(&base));
    peft.add_adapter_as("three", AdaptionPromptConfig::new(2, 2), 9).unwrap();
    peft.set_active(&["two"]).unwrap();
    assert_eq!(numbers(&of(&peft)), numbers(&base));
    peft.set_enabled(true);
    assert_eq!(numbers(&of(&peft)), numbers(&two));
    peft.delete_adapter("two").unwrap();
    assert_eq!(numbers(&of(&peft)), numbers(&base));
    peft.set_active(&["one"]).unwrap();
    assert_eq!(numbers(&of(&peft)), numbers(&one));
}

#[test]
fn rows_keep_their_adapters_while_they_are_continued() {
    let mut peft = llama();
    for (seed, name) in ["one", "two"].into_iter().enumerate() {
        peft.add_adapter_as(name, LoraConfig::new(4, 30.0).all_linear(), seed as u64).unwrap();
        laws::disturb(&mut peft, name, 0.4, &device()).unwrap();
    }
    let prompts = [vec![5u32, 17, 3], vec![60, 2, 77], vec![9, 41, 8], vec![5, 17, 3]];
    let config = GenerationConfig { max_new_tokens: Some(6), do_sample: Some(false), ..GenerationConfig::default() };
    let plan = config.plan().unwrap();
    let write =
        |model: &AutoCausalLm, prompts: &[Vec<u32>]| generate(model, prompts, &plan, &device(), |_, _| Ok(())).unwrap();
    let names = [Some("one"), Some("two"), None, Some("two")];
    let mixed = peft.with_adapter_names(&names, |model| write(model, &prompts)).unwrap();
    for (at, name) in names.iter().enumerate() {
        peft.set_active(name.as_slice()).unwrap();
        assert_eq!(mixed[at], write(peft.model(), &prompts[at..=at])[0], "row {at}");
    }
    assert_ne!(mixed[0], mixed[3], "adapters that say the same prove nothing");
}

#[test]
fn beams_keep_the_adapters_of_their_rows() {
    let (model, _) = auto::load_seq2seq_lm(fixtures().join("models/t5-tiny"), &device()).unwrap();
    let spec = peft::core::Adaptable::spec(&model);
    let mut peft = PeftModel::with_spec(model, spec);
    for (seed, name) in ["one", "two"].into_iter().enumerate() {
        peft.add_adapter_as(name, LoraConfig::new(4, 30.0).all_linear(), seed as u64).unwrap();
        laws::disturb(&mut peft, name, 0.4, &device()).unwrap();
    }
    let config = GenerationConfig {
        max_new_tokens: Some(6),
        num_beams: Some(3),
        do_sample: Some(false),
        ..GenerationConfig::default()
    };
    let plan = config.plan().unwrap();
    let source = || ModelInput::ids(ids(4));
    let write = |model: &AutoSeq2SeqLm| generate_targets(model, &source(), &plan, &device(), |_, _| Ok(())).unwrap();
    let names = [Some("one"), Some("two"), None, Some("two")];
    let mixed = peft.with_adapter_names(&names, |model| write(model)).unwrap();
    let mut alone = Vec::new();
    for (at, name) in names.iter().enumerate() {
        peft.set_active(name.as_slice()).unwrap();
        alone.push(write(peft.model()).swap_remove(at));
    }
    assert_eq!(mixed, alone);
    peft.set_active(&["one"]).unwrap();
    assert_ne!(mixed, write(peft.model()), "adapters that say the same prove nothing");
}

#[test]
fn an_old_file_of_boft_with_its_permutations_is_read() {
    let config =
        BoftConfig { boft_block_size: 4, target_modules: Some(Names::list(["lin0"])), ..BoftConfig::default() };
    let mut peft = mlp();
    peft.add_adapter_as("one", config, 1).unwrap();
    laws::disturb(&mut peft, "one", 0.1, &device()).unwrap();
    let wanted = output(&peft);
    let mut tensors = peft.adapter_tensors("one").unwrap();
    let old =
        Stored { key: "base_model.model.lin0.boft_P".into(), data: TensorData::new(vec![0.0f32; 144], [1, 12, 12]) };
    tensors.push(old);
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &peft.adapter_config("one").unwrap(), tensors).unwrap();
    let mut again = PeftModel::of_module(peft.unload());
    again.load_adapter(folder.path(), "one", &peft::methods()).unwrap();
    assert_eq!(numbers(&output(&again)), numbers(&wanted));
}
