//! Activated LoRA: it acts from the last occurrence of its tokens in a row on. Recorded cases are in `parity`.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use peft::core::{PeftModel, laws};
use peft::folder::export::{ExportOptions, Format, export};
use peft::lora::combine::convert::{ConvertToLora, Rank};
use peft::lora::combine::weighted::{Combination, Combine};
use peft::lora::{AdaLoraConfig, LoraConfig};
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, KvCache, ModelInput};
use peft::tasks::data::sample::Sample;
use peft::tasks::generate::GenerationConfig;
use peft::tasks::generate::causal::generate;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::Task;

use super::nets::{llama, logits_of, mlp};
use crate::support::{device, fixtures, numbers, registry};

const VOCAB: usize = 101;

fn activated(tokens: &[i64]) -> LoraConfig {
    LoraConfig { alora_invocation_tokens: Some(tokens.to_vec()), ..LoraConfig::new(4, 30.0).all_linear() }
}

fn with(config: LoraConfig) -> PeftModel<AutoCausalLm> {
    let mut peft = llama();
    add(&mut peft, "one", config);
    peft
}

fn add(peft: &mut PeftModel<AutoCausalLm>, name: &str, config: LoraConfig) {
    peft.add_adapter_as(name, config, 3).unwrap();
    laws::disturb(peft, name, 0.3, &device()).unwrap();
}

fn grid<const R: usize, const C: usize>(ids: [[i64; C]; R]) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::from(ids), &device())
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn before_its_tokens_it_is_the_base_and_from_a_first_token_on_it_is_lora() {
    let ids = || grid([[41, 7, 5, 17, 41, 9], [60, 41, 2, 41, 7, 30], [60, 2, 77, 41, 9, 7]]);
    let peft = with(activated(&[41, 7]));
    let lora = with(LoraConfig { alora_invocation_tokens: Some(Vec::new()), ..activated(&[]) });
    let base = numbers(&logits_of(&llama().model().valid(), ids()));
    let lora = numbers(&logits_of(&lora.model().valid(), ids()));
    let ours = numbers(&logits_of(&peft.model().valid(), ids()));
    let row = 6 * VOCAB;
    assert!(distance(&ours[..row], &lora[..row]) < 1e-4, "the whole first row is behind the tokens");
    assert_eq!(ours[row..row + 3 * VOCAB], base[row..row + 3 * VOCAB], "before the tokens");
    let behind = row + 3 * VOCAB..2 * row;
    assert!(distance(&ours[behind.clone()], &base[behind.clone()]) > 1e-2, "behind the tokens");
    // What comes before was not touched by the adapter, which the tokens behind can see.
    assert!(distance(&ours[behind.clone()], &lora[behind]) > 1e-2);
    assert_eq!(ours[2 * row..], base[2 * row..], "a row without the tokens");
}

#[test]
fn a_cache_remembers_what_was_read() {
    let peft = with(activated(&[41, 7]));
    let model = peft.model().valid();
    let ids = grid([[5, 41, 7, 9, 17, 88, 3], [60, 2, 77, 30, 41, 7, 13], [60, 2, 77, 30, 9, 8, 4]]);
    let whole = numbers(&logits_of(&model, ids.clone()));
    let mut cache = KvCache::new();
    let mut parts = Vec::new();
    for (from, length) in [(0, 4), (4, 2), (6, 1)] {
        let input = ModelInput::ids(ids.clone().narrow(1, from, length));
        parts.push(model.logits(&input, Some(&mut cache)));
    }
    let parts = numbers(&Tensor::cat(parts, 1).into_data());
    assert!(distance(&whole, &parts) < 1e-4);
    // Rows that were reordered keep what they read.
    cache.select(Tensor::from_data(TensorData::from([1i64, 2]), &device()));
    let next = model.logits(&ModelInput::ids(grid([[8], [8]])), Some(&mut cache));
    let longer = grid([[60, 2, 77, 30, 41, 7, 13, 8], [60, 2, 77, 30, 9, 8, 4, 8]]);
    let longer = Tensor::<3>::from_data(logits_of(&model, longer), &device()).narrow(1, 7, 1);
    assert!(distance(&numbers(&next.into_data()), &numbers(&longer.into_data())) < 1e-4);
}

#[test]
fn rows_wait_for_the_tokens_of_their_own_adapters() {
    let mut peft = with(activated(&[41, 7]));
    add(&mut peft, "two", activated(&[2]));
    add(&mut peft, "plain", LoraConfig::new(2, 5.0).targets(["q_proj", "up_proj"]));
    let ids = || grid([[5, 2, 41, 7, 9], [5, 2, 41, 7, 9], [5, 2, 41, 7, 9], [5, 2, 41, 7, 9], [41, 7, 5, 2, 1]]);
    let names = [Some("two"), Some("one"), None, Some("plain"), Some("one")];
    let mixed = peft.with_adapter_names(&names, |model| numbers(&logits_of(&model.valid(), ids()))).unwrap();
    for (row, name) in names.iter().enumerate() {
        peft.set_active(name.as_slice()).unwrap();
        let alone = numbers(&logits_of(&peft.model().valid(), ids()));
        let at = row * 5 * VOCAB..(row + 1) * 5 * VOCAB;
        assert!(distance(&alone[at.clone()], &mixed[at]) < 1e-4, "row {row} with {name:?}");
    }
}

/// Two documents with the tokens and one without.
fn documents() -> Vec<Sample> {
    [&[5u32, 41, 7, 9, 3][..], &[60, 2, 77, 41, 7, 30, 8, 11, 12, 13, 41], &[7, 50, 41, 9]]
        .map(|it| Sample::language(it.to_vec()))
        .into()
}

#[test]
fn packed_documents_wait_each_for_themselves() {
    let peft = with(activated(&[41, 7]));
    let model = peft.model().valid();
    let loss = |task: &LanguageModelling| task.evaluate(&model, 1, &device()).unwrap().loss;
    let apart = loss(&LanguageModelling::padded(documents(), 0).unwrap());
    let packed = LanguageModelling::packed(documents(), 24, 0).unwrap();
    assert_eq!(packed.len(), 1);
    assert!((loss(&packed) - apart).abs() < 1e-5 * apart);
}

#[test]
fn rows_without_the_tokens_are_warned_of() {
    let task = LanguageModelling::padded(documents(), 0).unwrap();
    let notes = |tokens: &[i64]| task.notes(with(activated(tokens)).model());
    assert_eq!(notes(&[41, 7]).len(), 1);
    assert!(notes(&[41, 7])[0].starts_with("1 of 3 rows do not hold the tokens [41, 7]"), "{:?}", notes(&[41, 7]));
    assert!(notes(&[99])[0].starts_with("3 of 3 rows"));
    assert_eq!(notes(&[41]), [""; 0]);
    assert_eq!(task.notes(llama().model()), [""; 0]);
}

#[test]
fn what_no_weight_can_hold_is_not_folded_into_one() {
    let mut peft = with(activated(&[41, 7]));
    let mut refused = vec![
        peft.merge().map(|_| ()).unwrap_err().to_string(),
        peft.merged().map(|_| ()).unwrap_err().to_string(),
        peft.convert_to_lora("one", "low", Rank::Fixed(2)).map(|_| ()).unwrap_err().to_string(),
        peft.combine("new", &[("one", 1.0)], Combination::Cat, 0).unwrap_err().to_string(),
    ];
    let (folder, output) = (fixtures().join("cases/gpt2_alora/default"), tempfile::tempdir().unwrap());
    for format in [Format::Portable, Format::Mlx] {
        let done = export(&folder, output.path(), &ExportOptions::new(format), registry(), &device());
        refused.push(done.map(|_| ()).unwrap_err().to_string());
    }
    for message in refused {
        assert!(message.contains("alora_invocation_tokens"), "{message}");
    }
    // Its strength is another matter.
    peft.set_strength("one", 0.5).unwrap();
}

#[test]
fn where_it_cannot_act_it_is_refused() {
    let activated = || activated(&[41, 7]);
    let configs = [
        ("use_dora", LoraConfig { use_dora: true, ..activated() }),
        ("target_parameters", LoraConfig { target_parameters: Some(vec!["q_proj.weight".into()]), ..activated() }),
        ("pissa", LoraConfig { init_lora_weights: "pissa".into(), ..activated() }),
        ("SEQ_CLS", LoraConfig { task_type: Some("SEQ_CLS".into()), ..activated() }),
        ("embed_tokens", activated().targets(["q_proj", "embed_tokens"])),
        ("lm_head", activated().targets(["q_proj", "lm_head"])),
        ("-1", LoraConfig { alora_invocation_tokens: Some(vec![-1]), ..activated() }),
    ];
    for (part, config) in configs {
        let error = llama().add_adapter_as("one", config, 0).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("alora_invocation_tokens") && error.contains(part), "{part}: {error}");
    }
    let error = mlp().add_adapter_as("one", activated(), 0).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("alora_invocation_tokens"), "{error}");
    let ada = AdaLoraConfig { lora: activated(), total_step: Some(9), ..AdaLoraConfig::default() };
    assert!(llama().add_adapter_as("one", ada, 0).map(|_| ()).unwrap_err().to_string().contains("alora"));

    let mut peft = with(activated());
    add(&mut peft, "two", LoraConfig::new(2, 5.0).targets(["q_proj"]));
    let error = peft.set_active(&["two", "one"]).unwrap_err().to_string();
    assert!(error.contains("`one`") && error.contains("`two`") && error.contains("q_proj"), "{error}");
}

#[test]
fn it_writes_without_beams() {
    let peft = with(activated(&[41, 7]));
    let config = GenerationConfig { max_new_tokens: Some(3), num_beams: Some(2), ..GenerationConfig::default() };
    let prompts = [vec![5, 41, 7]];
    let run = |config: &GenerationConfig, model: &AutoCausalLm| {
        generate(model, &prompts, &config.plan().unwrap(), &device(), |_, _| Ok(()))
    };
    let error = run(&config, &peft.model().valid()).unwrap_err().to_string();
    assert!(error.contains("num_beams"), "{error}");
    let one = GenerationConfig { num_beams: None, ..config };
    assert_eq!(run(&one, &peft.model().valid()).unwrap().len(), 1);
}

#[test]
fn virtual_tokens_before_it_move_nothing() {
    let (model, _) = auto::load_causal_lm(fixtures().join("models/gpt2-tiny"), &device()).unwrap();
    let spec = peft::core::Adaptable::spec(&model);
    let mut peft = PeftModel::with_spec(model, spec);
    peft.add_adapter_as("one", activated(&[41, 7]), 3).unwrap();
    laws::disturb(&mut peft, "one", 0.3, &device()).unwrap();
    let prompt = peft::prompt::PromptTuningConfig::new(3, "CAUSAL_LM");
    peft.add_adapter_as("prompt", prompt, 3).unwrap();
    let ids = || grid([[5, 9, 41, 7, 30]]);
    let logits = |peft: &PeftModel<AutoCausalLm>| numbers(&logits_of(&peft.model().valid(), ids()));
    peft.set_active(&["prompt"]).unwrap();
    let base = logits(&peft);
    peft.set_active(&["one", "prompt"]).unwrap();
    let ours = logits(&peft);
    let width = ours.len() / 8;
    assert_eq!(ours[..5 * width], base[..5 * width]);
    assert!(distance(&ours[5 * width..], &base[5 * width..]) > 1e-3);
}
