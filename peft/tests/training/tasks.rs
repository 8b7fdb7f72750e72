//! Every task is learned.

use burn::module::Module;
use burn::tensor::Tensor;
use peft::core::{Adaptable, DEFAULT_ADAPTER, PeftModel, nn};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{FeatureExtractor, ModelInput};
use peft::prompt::{MultitaskPromptTuningConfig, PromptTuningConfig};
use peft::tasks::data::{Padding, Sample};
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::sequence_to_sequence::SequenceToSequence;
use peft::tasks::tasks::similarity::{self, Similarity};
use peft::tasks::tasks::task::{Evaluation, Task, scalar};
use peft::tasks::tasks::token_classification::TokenClassification;
use peft::tasks::train::{TrainConfig, Trainer};

use super::runs::{config, samples, with};
use crate::support::{assert_close, device, fixtures};

/// A fresh adapter on a model of some task, trained until the task is learned.
fn learn<M: Module + Adaptable, T: Task<M>>(model: M, task: &T, rate: f64, steps: usize) -> [Evaluation; 2] {
    let spec = model.spec();
    let mut peft = PeftModel::with_spec(model, spec);
    let config = LoraConfig { task_type: Some("TOKEN_CLS".into()), ..LoraConfig::new(8, 16.0) }.all_linear();
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap();
    let measure =
        |peft: &PeftModel<M>| task.evaluate(&nn::set_training(peft.model().valid(), false), 4, &device()).unwrap();
    let before = measure(&peft);
    let training = TrainConfig { learning_rate: rate, batch_size: 4, max_steps: Some(steps), ..TrainConfig::default() };
    Trainer::new(&mut peft, task, training).run().unwrap();
    [before, measure(&peft)]
}

#[test]
fn tags_are_learned() {
    alone!();
    let (model, _) =
        auto::load_token_classifier(fixtures().join("models/roberta-tokens"), &device(), &Default::default()).unwrap();
    let names = ["B-A", "B-B", "I-A", "I-B", "O"].map(str::to_owned).to_vec();
    // The tag follows from the token; the second token of a pair belongs to the same word.
    let sample = |row: i64| {
        let tokens: Vec<i64> = (0..6 + row % 3).map(|at| 5 + (row * 11 + at * 7) % 90).collect();
        let tag = |at: usize| if at % 2 == 1 { -100 } else { [0, 2, 4][tokens[at] as usize % 3] };
        Sample {
            labels: (0..tokens.len()).map(tag).collect(),
            input_ids: tokens.iter().map(|it| *it as u32).collect(),
            ..Sample::default()
        }
    };
    let task = TokenClassification::new((0..12).map(sample).collect(), names, Padding::right(1)).unwrap();
    let [before, after] = learn(model, &task, 1e-2, 150);
    assert!(after.loss < 0.5 * before.loss, "{} to {}", before.loss, after.loss);
    assert!(after.metrics["f1"].as_f64() > before.metrics["f1"].as_f64(), "{:?}", after.metrics);
}

#[test]
fn targets_are_learned() {
    alone!();
    for name in ["t5-tiny", "bart-tiny"] {
        let (model, _) = auto::load_seq2seq_lm(fixtures().join("models").join(name), &device()).unwrap();
        let sample = |ids: &[u32]| Sample { input_ids: ids.to_vec(), ..Sample::default() };
        let sources = (0..8u32).map(|row| sample(&[10 + row, 40 + 2 * row, 2][..2 + row as usize % 2])).collect();
        let targets = (0..8u32).map(|row| sample(&[30 + row, 60 + row, 2])).collect();
        let pad = if name == "t5-tiny" { 0 } else { 1 };
        let task = SequenceToSequence::new(sources, targets, Padding::right(pad)).unwrap();
        let [before, after] = learn(model, &task, 1e-2, 150);
        assert!(after.loss < 0.9 * before.loss, "{name}: {} to {}", before.loss, after.loss);
        let perplexity = after.metrics["perplexity"].as_f64().unwrap();
        assert!((perplexity - after.loss.exp()).abs() < 1e-6 * perplexity);
    }
}

#[test]
fn pairs_are_learned() {
    alone!();
    let load = || auto::load_feature_extractor(fixtures().join("models/bert-tiny"), &device()).unwrap().0;
    let sample = |ids: &[u32]| Sample { input_ids: ids.to_vec(), ..Sample::default() };
    let first: Vec<Sample> =
        (0..8u32).map(|row| sample(&[10 + row, 40 + 2 * row, 2][..2 + row as usize % 2])).collect();
    let second: Vec<Sample> = (0..8u32).map(|row| sample(&[30 + row, 60 + row, 2])).collect();
    let ranked = Similarity::new(first.clone(), second.clone(), vec![], Padding::right(0)).unwrap();
    let [before, after] = learn(load(), &ranked, 2e-3, 200);
    // Choosing blindly among the four of a batch costs ln 4.
    assert!(after.loss < 0.75 * 4f64.ln(), "{} to {}", before.loss, after.loss);
    assert!(after.metrics["mrr"].as_f64() > before.metrics["mrr"].as_f64(), "{:?}", after.metrics);
    let scores = (0..8).map(|row| row as f32 / 8.0).collect();
    let scored = Similarity::new(first, second, scores, Padding::right(0)).unwrap();
    let [before, after] = learn(load(), &scored, 2e-3, 200);
    assert!(after.loss < 0.5 * before.loss, "{} to {}", before.loss, after.loss);
    assert!(after.metrics["pearson"].as_f64() > before.metrics["pearson"].as_f64(), "{:?}", after.metrics);
}

#[test]
fn virtual_tokens_are_no_part_of_a_text_s_vector() {
    let (model, _) = auto::load_feature_extractor(fixtures().join("models/bert-tiny"), &device()).unwrap();
    let spec = model.spec();
    let mut peft = PeftModel::with_spec(nn::set_training(model, false), spec);
    peft.add_adapter_as(DEFAULT_ADAPTER, PromptTuningConfig::new(3, "FEATURE_EXTRACTION"), 1).unwrap();
    let input = ModelInput::ids(Tensor::from_data([[10, 20, 30, 40]], &device()));
    let hidden = peft.model().last_hidden_state(&input);
    assert_eq!(hidden.dims()[1], 7);
    let wanted = peft::tasks::tasks::features::normalise(hidden.narrow(1, 3, 4).mean_dim(1).squeeze_dim(1));
    assert_close("vector", &similarity::embed(peft.model(), &input).to_data(), &wanted.to_data());
}

#[test]
fn rows_of_several_tasks_get_the_prompts_of_their_tasks() {
    alone!();
    let mut peft = with(MultitaskPromptTuningConfig::new(4, 2, "CAUSAL_LM"));
    let of =
        |task: i64| -> Vec<Sample> { samples().into_iter().map(|it| Sample { task_id: Some(task), ..it }).collect() };
    let task = |samples| LanguageModelling::padded(samples, 0).unwrap();
    let loss = |peft: &PeftModel<AutoCausalLm>, samples| {
        scalar(&task(samples).loss_sum(&nn::set_training(peft.model().valid(), false), &[0, 1], &device()).unwrap())
    };
    let (first, second) = (loss(&peft, of(0)), loss(&peft, of(1)));
    assert!((first - second).abs() > 1e-4, "{first} and {second}");
    // Rows of both tasks in one batch: each has the loss that it has among its own.
    let mixed = |at: usize| if at == 0 { of(0)[0].clone() } else { of(1)[1].clone() };
    let own = |it: Sample| {
        scalar(&task(vec![it]).loss_sum(&nn::set_training(peft.model().valid(), false), &[0], &device()).unwrap())
    };
    let together = loss(&peft, vec![mixed(0), mixed(1)]);
    let apart = own(mixed(0)) + own(mixed(1));
    assert!((together - apart).abs() < 1e-4 * apart, "{together} and {apart}");
    let both = of(0).into_iter().chain(of(1)).collect();
    let outcome = Trainer::new(&mut peft, &task(both), config(20)).run().unwrap();
    assert!(outcome.last_loss.is_finite());
}
