//! Rows of one batch that have adapters of their own.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft::core::laws;
use peft::core::{Names, PeftConfig, PeftModel};
use peft::lora::{LoHaConfig, LoraConfig};
use peft::models::ModelInput;
use peft::models::auto::{self, AutoCausalLm, AutoSeq2SeqLm};
use peft::tasks::generate::GenerationConfig;
use peft::tasks::generate::causal::generate;
use peft::tasks::generate::seq2seq::generate_targets;

use super::nets::{ids, llama, loaded, logits, logits_of};
use crate::support::{assert_close, device, expected, fixtures, numbers};

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
fn rows_use_their_own_adapters() {
    let wanted = expected(&fixtures().join("combined/expected.safetensors"));
    let file =
        peft::core::files::checkpoint::TensorFile::open(fixtures().join("combined/expected.safetensors")).unwrap();
    let ids = Tensor::from_data(file.integers("rows.ids").unwrap(), &device());
    let peft = loaded();
    let rows = [Some("second"), None, Some("third"), Some("second")];
    let output = peft.with_adapter_names(&rows, |model| logits_of(&model.valid(), ids.clone())).unwrap();
    assert_close("rows", &output, &wanted["rows.logits"]);
    assert!(peft.with_adapter_names(&[Some("fourth")], |_| ()).unwrap_err().to_string().contains("fourth"));
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
