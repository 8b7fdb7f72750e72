//! A base in pieces gives the numbers of a whole one, bit for bit.

use peft::core::files::checkpoint::{BaseDtype, Placement};
use peft::core::quant::{FourBit, QuantConfig, QuantFormat};
use peft::core::{Adaptable, DEFAULT_ADAPTER, PeftConfig, PeftModel, nn};
use peft::lora::{AdaLoraConfig, LoHaConfig, LoraConfig};
use peft::models::auto::{AutoCausalLm, load_causal_lm};
use peft::tasks::data::sample::Sample;
use peft::tasks::parallel::group::{run_local, sharded_base};
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::Task;
use peft::tasks::train::{TrainConfig, Trainer};

use tempfile::TempDir;

use super::runs::{config, copy_tree, samples};
use crate::support::{fixtures, numbers, processor};

/// A base, and what is trained on it.
struct Case {
    folder: &'static str,
    dtype: BaseDtype,
    quantize: Option<QuantFormat>,
    method: fn() -> Box<dyn PeftConfig>,
    again: bool,
}

fn lora() -> Box<dyn PeftConfig> {
    Box::new(LoraConfig::new(4, 6.0).all_linear())
}

fn case(folder: &'static str, dtype: BaseDtype) -> Case {
    Case { folder, dtype, quantize: None, method: lora, again: false }
}

fn place(case: &Case, sharded: bool) -> Placement {
    let place =
        Placement::on(&processor()).with_dtype(case.dtype).with_quantization(case.quantize.map(QuantConfig::new));
    place.with_shards(if sharded { sharded_base().unwrap() } else { None })
}

/// Seven rows: the last batch of an epoch has no row for some process, and so has an evaluation.
fn rows() -> Vec<Sample> {
    samples().into_iter().take(7).collect()
}

/// What a process ends with: its losses and evaluations, the adapter, and the bytes that it has read from others.
#[derive(Debug, PartialEq)]
struct End {
    losses: Vec<u64>,
    adapter: Vec<f64>,
}

/// The model of a case without dropout: threads of one program draw from one generator.
fn folder(case: &Case) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_tree(&fixtures().join("models").join(case.folder), folder.path());
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(config, text.replace("_pdrop\": 0.1", "_pdrop\": 0.0")).unwrap();
    folder
}

fn run(case: &Case, world_size: usize, sharded: bool) -> Vec<(End, u64)> {
    let folder = folder(case);
    run_local(world_size, |_| {
        let place = place(case, sharded);
        let (model, _) = load_causal_lm(folder.path(), &place).unwrap();
        let spec = model.spec();
        let mut peft: PeftModel<AutoCausalLm> = PeftModel::with_spec(nn::eval(&model), spec);
        peft.add_adapter_as(DEFAULT_ADAPTER, (case.method)(), 1).unwrap();
        let task = LanguageModelling::padded(rows(), 0).unwrap();
        let training = TrainConfig {
            batch_size: 2,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: case.again,
            save_steps: 0,
            ..config(6)
        };
        let before = task.evaluate(peft.model(), 3, &processor()).unwrap().loss;
        let outcome = Trainer::new(&mut peft, &task, training).eval(&task).run().unwrap();
        let after = outcome.evaluation.unwrap().loss;
        let tensors = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
        let adapter = tensors.iter().flat_map(|it| numbers(&it.data)).collect();
        let losses = [before, outcome.last_loss, after].map(f64::to_bits).to_vec();
        (End { losses, adapter }, place.shards.map_or(0, |it| it.received()))
    })
}

#[track_caller]
fn check(case: &Case) {
    for world_size in [2, 3] {
        let (whole, pieces) = (run(case, world_size, false), run(case, world_size, true));
        for (whole, pieces) in whole.iter().zip(&pieces) {
            let what = format!("{} in {} processes", case.folder, world_size);
            assert!(whole.0.adapter.iter().any(|it| *it != 0.0), "{what}: nothing was learned");
            assert_eq!(pieces.0, whole.0, "{what}");
            assert!(pieces.1 > 0 && whole.1 == 0, "{what}: {} bytes were read", pieces.1);
        }
    }
}

#[test]
fn in_single_precision() {
    alone!();
    check(&case("llama-tiny", BaseDtype::Float32));
    // Matrices that lie the other way, and a tied head.
    check(&case("gpt2-tiny", BaseDtype::Float32));
}

#[test]
fn in_half_precision() {
    alone!();
    check(&case("llama-bf16", BaseDtype::Auto));
    check(&case("llama-f16", BaseDtype::Auto));
    check(&case("llama-tiny", BaseDtype::BFloat16));
}

#[test]
fn quantised_here() {
    alone!();
    for folder in ["llama-tiny", "gpt2-tiny"] {
        for format in [QuantFormat::FourBit(FourBit::Nf4), QuantFormat::Int8] {
            check(&Case { quantize: Some(format), ..case(folder, BaseDtype::Float32) });
        }
    }
}

#[test]
fn quantised_in_the_checkpoint() {
    alone!();
    for folder in ["llama-nf4-double", "gpt2-nf4", "llama-gptq", "llama-awq"] {
        check(&case(folder, BaseDtype::Auto));
    }
}

#[test]
fn with_layers_that_are_computed_again() {
    alone!();
    check(&Case { again: true, ..case("llama-tiny", BaseDtype::Float32) });
    let nf4 = Some(QuantFormat::FourBit(FourBit::Nf4));
    check(&Case { again: true, quantize: nf4, ..case("gpt2-tiny", BaseDtype::Float32) });
}

/// Methods that read the base as a whole get it whole, a matrix at a time.
#[test]
fn methods_that_read_the_base() {
    alone!();
    let methods: [fn() -> Box<dyn PeftConfig>; 5] = [
        || Box::new(LoraConfig { use_dora: true, ..LoraConfig::new(4, 6.0).all_linear() }),
        || {
            let pissa = r#"{"r": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj", "down_proj"],
                "modules_to_save": ["lm_head"]}"#;
            Box::new(LoraConfig::parse(serde_json::from_str(pissa).unwrap()).unwrap())
        },
        || Box::new(LoraConfig::new(4, 6.0).targets(["embed_tokens", "down_proj"])),
        || {
            let loha = r#"{"r": 2, "target_modules": ["q_proj", "down_proj"]}"#;
            Box::new(LoHaConfig::parse(serde_json::from_str(loha).unwrap()).unwrap())
        },
        || {
            let lora = LoraConfig::new(4, 6.0).all_linear();
            let schedule =
                AdaLoraConfig { init_r: 4, target_r: 2, total_step: Some(6), tfinal: 2, ..Default::default() };
            Box::new(AdaLoraConfig { lora, ..schedule })
        },
    ];
    for method in methods {
        check(&Case { method, ..case("llama-tiny", BaseDtype::Float32) });
    }
}
