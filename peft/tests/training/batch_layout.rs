//! Texts that share a row have the loss of texts that have rows of their own.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft::core::{Adaptable, DEFAULT_ADAPTER, Names, PeftConfig, PeftModel, laws, nn};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoCausalLm};
use peft::models::common::config::RawConfig;
use peft::models::{CausalLm, KvCache, ModelInput};
use peft::prompt::{AdaptionPromptConfig, PrefixTuningConfig, PromptTuningConfig};
use peft::tasks::data::sample::{IGNORED, Sample};
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::{Task, scalar};

use super::runs::samples;
use crate::support::{device, fixtures, numbers};

#[test]
fn packed_rows_have_the_loss_of_separate_rows() {
    let (model, _) = auto::load_causal_lm(fixtures().join("models/gpt2-tiny"), &device()).unwrap();
    let model = model.valid();
    let apart = LanguageModelling::padded(samples(), 0).unwrap();
    let packed = LanguageModelling::packed(samples(), 24, 0).unwrap();
    assert!(packed.len() < apart.len());
    let loss =
        |task: &LanguageModelling| peft::tasks::tasks::task::Task::evaluate(task, &model, 4, &device()).unwrap().loss;
    let (apart, packed) = (loss(&apart), loss(&packed));
    assert!((apart - packed).abs() < 1e-5 * apart, "{apart} apart, {packed} packed");
}

/// A model that does not say whether it keeps texts apart, which is why each has a row to itself.
#[derive(Module, Debug)]
struct Apart {
    model: AutoCausalLm,
}

impl CausalLm for Apart {
    fn hidden(&self, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.model.hidden(input, cache)
    }
    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.model.head(hidden)
    }
    fn head_weight(&self) -> Option<Tensor<2>> {
        self.model.head_weight()
    }
    fn is_tied(&self) -> bool {
        self.model.is_tied()
    }
    fn untie(&mut self) {
        self.model.untie();
    }
}

/// Texts of 14, 3, 9, 2, 5 and 4 tokens, of which some are only read.
fn texts() -> LanguageModelling {
    let mut texts: Vec<Sample> = (0u32..6)
        .zip([14, 3, 9, 2, 5, 4])
        .map(|(text, length)| Sample::language((0..length).map(|at| (text * 31 + at * 17) % 89 + 3).collect()))
        .collect();
    texts[2].labels[..4].fill(IGNORED);
    LanguageModelling::padded(texts, 0).unwrap()
}

const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

/// Rows of a batch, those of its texts apart, and the two losses and lists of gradients that adapters get.
fn both_layouts(peft: &PeftModel<AutoCausalLm>) -> [(usize, f64, Vec<f64>); 2] {
    fn one<M: CausalLm>(model: &M) -> (usize, f64, Vec<f64>) {
        let loss = texts().loss_sum(model, &ALL, &device()).unwrap();
        let gradients = GradientsParams::from_grads(loss.clone().backward(), model);
        let gradients = peft::core::model::state::step_gradients(model, DEFAULT_ADAPTER, &gradients);
        let rows = texts().batch(model, &ALL).unwrap().rows;
        (rows, scalar(&loss), gradients.iter().flat_map(|it| numbers(&it.data)).collect())
    }
    let model = nn::set_training(peft.model().clone(), false);
    [one(&model), one(&Apart { model })]
}

fn assert_same_in_both(name: &str, rows: usize, peft: &PeftModel<AutoCausalLm>) {
    let [(together, ours, our_slopes), (apart, theirs, their_slopes)] = both_layouts(peft);
    assert_eq!((together, apart), (rows, 6), "{name}");
    assert!((ours - theirs).abs() < 1e-5 * theirs, "{name}: a loss of {ours}, and of {theirs} in rows of their own");
    let largest = their_slopes.iter().fold(0f64, |largest, it| largest.max(it.abs()));
    assert!(largest > 0.0 && our_slopes.len() == their_slopes.len(), "{name}");
    let worst = our_slopes.iter().zip(&their_slopes).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst < 1e-4 * largest, "{name}: slopes are off by {worst}, of at most {largest}");
}

fn adapted_as(name: &str, config: impl PeftConfig + 'static) -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(name), &device()).unwrap();
    let spec = model.spec();
    let mut peft = PeftModel::with_spec(model, spec);
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 0).unwrap();
    laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.2, &device()).unwrap();
    peft
}

/// Every causal language model there is: whichever way its texts are laid out, the loss and its gradient are the same.
#[test]
fn a_batch_without_filling_has_the_loss_of_a_padded_one() {
    let mut seen = std::collections::BTreeSet::new();
    for name in [
        "gpt2-tiny",
        "gpt2-inverse",
        "llama-tiny",
        "llama-rope-dynamic",
        "llama-rope-yarn",
        "mistral-tiny",
        "qwen2-sliding",
        "qwen3-tiny",
        "gemma2-tiny",
        "gemma2-uncapped",
        "gemma3-tiny",
        "phi3-tiny",
        "phi3-long",
        "phi3-short",
        "bloom-tiny",
        "bloom-residual",
        "opt-tiny",
        "opt-post",
        "gptneo-tiny",
        "gptneo-local",
        "gptj-tiny",
        "gptneox-tiny",
        "gptneox-serial",
        "chatglm1-tiny",
        "chatglm1-flat",
        "chatglm2-tiny",
        "chatglm2-full",
    ] {
        let peft = adapted_as(
            name,
            LoraConfig { target_modules: Some(Names::Pattern("all-linear".into())), ..LoraConfig::new(2, 3.0) },
        );
        let config = RawConfig::read(fixtures().join("models").join(name)).unwrap();
        seen.insert(config.model_type().unwrap().to_owned());
        // The first ChatGLM reads a row as one text.
        assert_same_in_both(name, if name.starts_with("chatglm1") { 6 } else { 3 }, &peft);
    }
    // What is registered is told to whoever asks for something else.
    let other = RawConfig::parse_text(r#"{"model_type": "none"}"#).unwrap();
    let error = AutoCausalLm::from_config(&other, &device()).unwrap_err().to_string();
    let known = error.split_once("registry knows ").and_then(|it| it.1.split_once(';')).unwrap().0;
    assert_eq!(seen, known.split(", ").map(str::to_owned).collect(), "a model is missing");
}

/// What a prompt puts before a row is for one text; gated prompts and rows without anything to save are no matter.
#[test]
fn texts_have_rows_of_their_own_where_rows_matter() {
    let model = "llama-tiny";
    assert_same_in_both("gated", 3, &adapted_as(model, AdaptionPromptConfig::new(3, 2)));
    let tokens = PromptTuningConfig::new(3, "CAUSAL_LM");
    assert_same_in_both("virtual tokens", 6, &adapted_as(model, tokens));
    let mut prefix = adapted_as(model, PrefixTuningConfig::new(3, "CAUSAL_LM"));
    assert_same_in_both("prefix", 6, &prefix);
    prefix.add_adapter_as("lora", LoraConfig::new(2, 3.0), 1).unwrap();
    prefix.set_active(&["lora"]).unwrap();
    let rows = |model: &AutoCausalLm, items: &[usize]| texts().batch(model, items).unwrap().rows;
    assert_eq!(rows(prefix.model(), &ALL), 3);
    let names = [None, Some("lora"), None, None, None, Some("lora")];
    assert_eq!(prefix.with_adapter_names(&names, |model| rows(model, &ALL)).unwrap(), 6);
    for (items, wanted) in [(vec![0], 1), (vec![0, 2], 2), (vec![0, 2, 4], 2), (vec![3, 3], 2), (vec![3, 4, 1], 2)] {
        assert_eq!(rows(prefix.model(), &items), wanted, "{items:?}");
        let batch = texts().batch(prefix.model(), &items).unwrap();
        assert_eq!(batch.tokens(), Task::<AutoCausalLm>::tokens(&texts(), &items));
        assert_eq!(batch.segment_ids.is_some(), wanted < items.len());
    }
    let tasks = [0, 1].map(|it| Sample { task_id: Some(it), ..Sample::language(vec![5, 6, 7]) });
    let long = Sample { task_id: Some(0), ..Sample::language(vec![9; 8]) };
    let tasks = LanguageModelling::padded([tasks.to_vec(), vec![long]].concat(), 0).unwrap();
    assert_eq!(tasks.batch(prefix.model(), &[0, 1, 2]).unwrap().rows, 3);
}
