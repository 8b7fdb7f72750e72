//! Training: the reference's ten steps, exact resume, and what may go wrong.

use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};
use peft::core::files::checkpoint::TensorFile;
use peft::core::{Adaptable, DEFAULT_ADAPTER, Names, PeftConfig, PeftError, PeftModel, laws, nn};
use peft::ia3::Ia3Config;
use peft::lora::{AdaLoraConfig, LoraConfig};
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, FeatureExtractor, KvCache, ModelInput, Seq2SeqLm, SequenceClassifier};
use peft::prompt::{AdaptionPromptConfig, MultitaskPromptTuningConfig, PrefixTuningConfig, PromptTuningConfig};
use peft::tasks::data::{IGNORED, Padding, Sample};
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::loss;
use peft::tasks::tasks::sequence_to_sequence::SequenceToSequence;
use peft::tasks::tasks::similarity::{self, Similarity};
use peft::tasks::tasks::task::{Evaluation, Task, scalar};
use peft::tasks::tasks::token_classification::TokenClassification;
use peft::tasks::train::log::{Record, read};
use peft::tasks::train::optimizer::{optimizer, set_frozen};
use peft::tasks::train::{TrainConfig, Trainer};
use serde_json::Value;

use crate::support::{assert_close, case, device, expected, find, fixtures, numbers};

/// Ten AdamW steps on one batch, against the losses and the tensors that the reference ended with.
fn ten_steps<M: Module + Adaptable>(name: &str, model: M, loss: impl Fn(&M) -> Tensor<1>) {
    let folder = fixtures().join("cases").join(name);
    let steps = case(name).steps.expect("the case records steps");
    let wanted = expected(&folder.join("expected.safetensors"));
    let mut peft = PeftModel::new(model);
    peft.load_adapter(folder.join(DEFAULT_ADAPTER), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    // LoRA+ and LoRA-FA, where a case has them, are spelled as in the configuration.
    let config: TrainConfig = serde_json::from_value(Value::Object(steps.more)).unwrap();
    let config = TrainConfig {
        learning_rate: steps.lr,
        adam_beta1: steps.betas[0],
        adam_beta2: steps.betas[1],
        adam_epsilon: steps.eps,
        weight_decay: steps.weight_decay,
        ..config
    };
    let (mut optimizer, frozen) = optimizer(&config, &peft, DEFAULT_ADAPTER).unwrap();
    let mut hook = peft.adapters()[DEFAULT_ADAPTER].config.after_step();
    let mut model = set_frozen(nn::set_training(peft.model().clone(), false), &frozen, true);
    let losses = numbers(&wanted["steps.loss"]);
    for (step, wanted) in losses.iter().enumerate() {
        let mut value = loss(&model);
        if let Some(own) = peft::core::model::state::loss(&model) {
            value = value + own;
        }
        let actual = scalar(&value);
        assert!((actual - wanted).abs() <= 1e-4 * wanted.abs(), "step {step}: loss {actual}, reference {wanted}");
        let gradients = GradientsParams::from_grads(value.backward(), &model);
        let seen = peft::core::model::state::step_gradients(&model, DEFAULT_ADAPTER, &gradients);
        model = optimizer.step(steps.lr, model, gradients);
        if let Some(hook) = &mut hook {
            let tensors = peft::core::model::state::tensors(&model, DEFAULT_ADAPTER);
            let changed = hook.after_step(step, &tensors, &seen).unwrap();
            let changed = changed.into_iter().map(|it| (it.key, it.data)).collect();
            model = peft::core::model::state::assign(model, DEFAULT_ADAPTER, changed);
        }
    }
    if let Some(hook) = hook {
        let config = hook.config().to_json().unwrap();
        for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("steps.kept.")) {
            let kept = config["rank_pattern"][key.trim_start_matches("steps.kept.")].as_array().unwrap();
            let kept: Vec<f64> = kept.iter().map(|it| f64::from(u8::from(it.as_bool().unwrap()))).collect();
            assert_eq!(kept, numbers(wanted), "{key}");
        }
    }
    assert!((losses[0] - losses[9]).abs() > 1e-2 * losses[0], "ten steps that change nothing prove nothing");
    peft.set_model(model);
    let ours = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
    for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("steps.base_model")) {
        assert_close(key, find(&ours, key.trim_start_matches("steps.")), wanted);
    }
}

fn inputs(name: &str) -> TensorFile {
    TensorFile::open(fixtures().join("cases").join(name).join("inputs.safetensors")).unwrap()
}

fn model_input(file: &TensorFile, device: &Device) -> ModelInput {
    let grid = |key: &str| file.shape(key).map(|_| Tensor::from_data(file.integers(key).unwrap(), device));
    let mut input = ModelInput::ids(grid("input_ids").unwrap());
    input.attention_mask = grid("attention_mask");
    input.token_type_ids = grid("token_type_ids");
    input
}

fn causal_steps(name: &str) {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(case(name).model), &device()).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels = Tensor::from_data(file.integers("labels").unwrap(), &device());
        loss::causal_lm(model.logits(&model_input(&file, &device()), None), labels)
    });
}

fn classifier_steps(name: &str) {
    let folder = fixtures().join("models").join(case(name).model);
    let options = peft::forward::classifier_options(&[fixtures().join("cases").join(name).join(DEFAULT_ADAPTER)]);
    let (model, _) = auto::load_sequence_classifier(folder, &device(), &options).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels = loss::Labels::Classes(Tensor::from_data(file.integers("labels").unwrap(), &device()));
        let problem = loss::ProblemType::resolve(model.problem_type(), model.num_labels(), &labels).unwrap();
        loss::classification(model.logits(&model_input(&file, &device())), labels, problem).unwrap()
    });
}

fn target_steps(name: &str) {
    let (model, _) = auto::load_seq2seq_lm(fixtures().join("models").join(case(name).model), &device()).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels: Tensor<2, Int> = Tensor::from_data(file.integers("labels").unwrap(), &device());
        let target = ModelInput::ids(model.shift_right(labels.clone()).unwrap());
        loss::every_position(model.logits(&model_input(&file, &device()), &target), labels)
    });
}

macro_rules! steps {
    ($($run:ident: $($case:ident),+;)+) => { $($(#[test] fn $case() { $run(stringify!($case)) })+)+ };
}

steps! {
    causal_steps: gpt2_lora_default, llama_lora_default, llama_dora_all_linear, llama_save_lm_head, gpt2_ia3_default,
        gpt2_adalora_default, llama_adalora_default, llama_loha_default, llama_lokr_default, gpt2_norms_default,
        gpt2_tokens, llama_lora_tokens, llama_miss, llama_hira, llama_shira, llama_oft, llama_boft, llama_fourierft,
        llama_randlora, gpt2_vera_default, gpt2_loraplus, llama_loraplus_dora, llama_lora_fa, gpt2_lora_fa,
        llama_tied_saved;
    classifier_steps: bert_lora_default, llama_cls_lora, roberta_cls_lora, deberta_cls_lora, deberta_v2_cls_lora,
        modernbert_cls_lora;
    target_steps: t5_lora, bart_lora, mbart_lora;
}

fn samples() -> Vec<Sample> {
    // Rows of unlike length whose next token follows from the last: something that can be learned.
    (0..12u32).map(|row| Sample::language((0..5 + row % 4).map(|at| (row * 7 + at * 3) % 97).collect())).collect()
}

fn fresh(dropout: f64) -> PeftModel<AutoCausalLm> {
    with(LoraConfig { lora_dropout: dropout, ..LoraConfig::new(4, 6.0) }.all_linear())
}

fn with(config: impl PeftConfig + 'static) -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models/gpt2-tiny"), &device()).unwrap();
    let mut peft = PeftModel::new(model);
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap();
    peft
}

fn config(steps: usize) -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        batch_size: 3,
        gradient_accumulation_steps: 2,
        max_steps: Some(steps),
        save_steps: 2,
        save_total_limit: 0,
        logging_steps: 1,
        ..TrainConfig::default()
    }
}

fn losses(folder: &Path) -> Vec<(usize, u64)> {
    let records = read(folder.join("train_log.jsonl")).unwrap();
    let train = records.iter().filter_map(|it| match it {
        Record::Train(it) => Some((it.step, it.loss.to_bits())),
        Record::Eval(_) => None,
    });
    train.collect()
}

/// Killed after step 5 with a checkpoint at 4, resumed: the losses are those of a run that was never killed, bit for
/// bit, dropout and all.
#[test]
fn a_resumed_run_gives_the_losses_of_an_uninterrupted_one() {
    cut_and_resumed(|| fresh(0.2));
}

/// The same while ranks are being taken away: scores, masks and masked rows go on from where they were.
#[test]
fn a_resumed_run_allocates_ranks_as_an_uninterrupted_one() {
    cut_and_resumed(|| {
        let lora = LoraConfig { lora_dropout: 0.2, ..LoraConfig::new(4, 6.0).all_linear() };
        let schedule = AdaLoraConfig { init_r: 4, target_r: 2, total_step: Some(9), tfinal: 2, ..Default::default() };
        with(AdaLoraConfig { lora, ..schedule })
    });
}

/// The same where parameters have optimizers of their own, and one factor is frozen.
#[test]
fn a_resumed_run_groups_parameters_as_an_uninterrupted_one() {
    let plus = TrainConfig { loraplus_lr_ratio: Some(4.0), loraplus_weight_decay: 0.1, ..config(9) };
    let half = TrainConfig { lora_fa: true, adam_epsilon: 1e-6, ..config(9) };
    for config in [plus, half] {
        cut_and_resumed_with(&config, || fresh(0.2));
    }
}

/// Mixed precision rounds what enters a product, so losses move in the third digit; where there is none it is refused.
#[test]
fn a_run_in_bf16_follows_one_in_single_precision() {
    let _alone = crate::support::random_numbers();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let run = |bf16: bool| {
        let config = TrainConfig { bf16, ..config(9) };
        let folder = tempfile::tempdir().unwrap();
        let mut peft = fresh(0.2);
        Trainer::new(&mut peft, &task, config).output(folder.path()).run()?;
        Ok::<_, PeftError>(losses(folder.path()).into_iter().map(|(_, loss)| f64::from_bits(loss)).collect::<Vec<_>>())
    };
    if let Err(error) = peft::core::ops::check_bf16(&device()) {
        assert_eq!(run(true).unwrap_err().to_string(), error.to_string());
        return;
    }
    let (half, single) = (run(true).unwrap(), run(false).unwrap());
    for (step, (half, single)) in half.iter().zip(&single).enumerate() {
        assert_ne!(half, single, "step {step}");
        assert!((half - single).abs() < 1e-2 * single, "step {step}: {half} and {single}");
    }
}

#[test]
fn lora_fa_leaves_a_alone_and_what_it_does_not_know() {
    let _alone = crate::support::random_numbers();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let half = TrainConfig { lora_fa: true, ..config(3) };
    let run =
        |peft: &mut PeftModel<AutoCausalLm>, config: &TrainConfig| Trainer::new(peft, &task, config.clone()).run();
    let mut peft = fresh(0.0);
    let factors = |peft: &PeftModel<AutoCausalLm>| {
        let (a, b): (Vec<_>, Vec<_>) =
            peft.adapter_tensors(DEFAULT_ADAPTER).unwrap().into_iter().partition(|it| it.key.contains("lora_A"));
        [a, b].map(|it| it.iter().flat_map(|it| numbers(&it.data)).collect::<Vec<f64>>())
    };
    let [a, b] = factors(&peft);
    run(&mut peft, &half).unwrap();
    let [same, moved] = factors(&peft);
    assert_eq!(a, same);
    assert_ne!(b, moved);
    // Frozen for this run only.
    run(&mut peft, &config(3)).unwrap();
    assert_ne!(a, factors(&peft)[0]);

    let dora = LoraConfig { use_dora: true, ..LoraConfig::new(4, 6.0) };
    let table = LoraConfig::new(4, 6.0).targets(["wte"]);
    let refused = |peft: &mut PeftModel<AutoCausalLm>| run(peft, &half).unwrap_err().to_string();
    assert!(refused(&mut with(dora)).contains("DoRA"));
    assert!(refused(&mut with(table)).contains("A of zeros"));
    assert!(refused(&mut with(Ia3Config::default())).contains("this adapter is IA3"));
    let both = TrainConfig { loraplus_lr_ratio: Some(2.0), ..half.clone() };
    assert!(run(&mut fresh(0.0), &both).unwrap_err().to_string().contains("take one of them"));
}

fn cut_and_resumed(fresh: impl Fn() -> PeftModel<AutoCausalLm>) {
    cut_and_resumed_with(&config(9), fresh);
}

fn cut_and_resumed_with(config: &TrainConfig, fresh: impl Fn() -> PeftModel<AutoCausalLm>) {
    let _alone = crate::support::random_numbers();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let whole = tempfile::tempdir().unwrap();
    let mut peft = fresh();
    Trainer::new(&mut peft, &task, config.clone()).output(whole.path()).run().unwrap();

    let cut = tempfile::tempdir().unwrap();
    copy_tree(whole.path(), cut.path());
    for step in [6, 8] {
        std::fs::remove_dir_all(cut.path().join(format!("checkpoint-{step}"))).unwrap();
    }
    // What a kill leaves behind: a checkpoint that was being written, and lines of steps that are about to come again.
    std::fs::create_dir(cut.path().join(".checkpoint-6.partial")).unwrap();
    let mut again = fresh();
    Trainer::new(&mut again, &task, config.clone()).output(cut.path()).resume(true).run().unwrap();

    let uninterrupted = losses(whole.path());
    assert_eq!(uninterrupted.len(), 9);
    assert_eq!(uninterrupted, losses(cut.path()));
    let last = |it: &PeftModel<AutoCausalLm>| numbers(&it.adapter_tensors(DEFAULT_ADAPTER).unwrap()[0].data);
    assert_eq!(last(&peft), last(&again));
}

/// Layers that are computed again draw what they drew, so that a run gives the same losses with them and without, and may
/// go from one to the other.
#[test]
fn gradient_checkpointing_changes_no_loss_and_may_begin_where_a_run_is_resumed() {
    let _alone = crate::support::random_numbers();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let run = |gradient_checkpointing: bool, folder: &Path, resume: bool| {
        let config = TrainConfig { gradient_checkpointing, ..config(6) };
        let mut peft = fresh(0.2);
        Trainer::new(&mut peft, &task, config).output(folder).resume(resume).run().unwrap();
        losses(folder)
    };
    let [kept, again, changed] = [(); 3].map(|_| tempfile::tempdir().unwrap());
    let wanted = run(false, kept.path(), false);
    assert_eq!(wanted, run(true, again.path(), false));
    copy_tree(kept.path(), changed.path());
    for step in [4, 6] {
        std::fs::remove_dir_all(changed.path().join(format!("checkpoint-{step}"))).unwrap();
    }
    assert_eq!(wanted, run(true, changed.path(), true));
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn resuming_with_other_settings_is_refused() {
    let _alone = crate::support::random_numbers();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Trainer::new(&mut fresh(0.0), &task, config(2)).output(folder.path()).run().unwrap();
    let other = TrainConfig { learning_rate: 5e-3, ..config(4) };
    let error = Trainer::new(&mut fresh(0.0), &task, other).output(folder.path()).resume(true).run();
    assert!(error.unwrap_err().to_string().contains("other settings"));
}

#[test]
fn training_lowers_the_loss_and_leaves_the_base_alone() {
    let _alone = crate::support::random_numbers();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let mut peft = fresh(0.0);
    let before = peft::core::files::checkpoint::model_tensors(peft.model());
    let untrained = peft::tasks::tasks::task::Task::evaluate(&task, &peft.model().valid(), 4, &device()).unwrap().loss;
    Trainer::new(&mut peft, &task, config(30)).run().unwrap();
    let trained = peft::tasks::tasks::task::Task::evaluate(&task, &peft.model().valid(), 4, &device()).unwrap().loss;
    assert!(trained < 0.7 * untrained, "loss {untrained} before, {trained} after");
    for (old, new) in before.iter().zip(peft::core::files::checkpoint::model_tensors(peft.model())) {
        assert_eq!(numbers(&old.data), numbers(&new.data), "{}", old.key);
    }
}

/// With a rate at which every step makes things worse but some of the first, on samples that are not those of training.
fn early(steps: usize) -> TrainConfig {
    let more = TrainConfig { early_stopping_patience: 3, eval_steps: 1, eval_batch_size: 4, ..config(steps) };
    TrainConfig { learning_rate: 0.3, save_steps: 1, ..more }
}

fn evaluations(folder: &Path) -> Vec<f64> {
    let records = read(folder.join("train_log.jsonl")).unwrap();
    records.iter().filter_map(|it| if let Record::Eval(it) = it { Some(it.loss) } else { None }).collect()
}

/// The adapter that is left has the best evaluation, also where the run was cut and resumed after it: the losses are
/// those of the log.
#[test]
fn a_run_that_ends_early_leaves_its_best_adapter() {
    let _alone = crate::support::random_numbers();
    let (task, other) = samples().into_iter().partition::<Vec<_>, _>(|it| it.input_ids[0] % 2 == 0);
    let [task, other] = [task, other].map(|it| LanguageModelling::padded(it, 0).unwrap());
    let adalora = || {
        let lora = LoraConfig::new(4, 6.0).all_linear();
        let schedule = AdaLoraConfig { init_r: 4, target_r: 1, total_step: Some(40), tfinal: 2, ..Default::default() };
        with(AdaLoraConfig { lora, ..schedule })
    };
    let makers: [&dyn Fn() -> PeftModel<AutoCausalLm>; 2] = [&|| fresh(0.0), &adalora];
    for make in makers {
        let whole = tempfile::tempdir().unwrap();
        let run = |folder: &Path, resume| {
            let mut peft = make();
            let settings = early(40);
            let outcome = Trainer::new(&mut peft, &task, settings).eval(&other).output(folder).resume(resume).run();
            (peft, outcome.unwrap())
        };
        let (peft, outcome) = run(whole.path(), false);
        let losses = evaluations(whole.path());
        let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let at = losses.iter().position(|it| *it == best).unwrap() + 1;
        assert_eq!((outcome.stopped_early, outcome.steps, outcome.restored), (true, at + 3, Some(at)), "{losses:?}");
        let measured = |peft: &PeftModel<AutoCausalLm>| Task::evaluate(&other, &peft.model().valid(), 4, &device());
        let loss = measured(&peft).unwrap().loss;
        assert!((loss - best).abs() < 1e-5 * best && losses[outcome.steps - 1] > 1.0001 * best, "{loss} of {losses:?}");

        let cut = tempfile::tempdir().unwrap();
        copy_tree(whole.path(), cut.path());
        std::fs::remove_dir_all(cut.path().join(format!("checkpoint-{}", at + 3))).unwrap();
        let (again, outcome) = run(cut.path(), true);
        assert_eq!((outcome.steps, outcome.restored), (at + 3, Some(at)));
        let last = |it: &PeftModel<AutoCausalLm>| numbers(&it.adapter_tensors(DEFAULT_ADAPTER).unwrap()[0].data);
        assert_eq!(last(&peft), last(&again));
        let saved = |it: &PeftModel<AutoCausalLm>| it.adapter_config(DEFAULT_ADAPTER).unwrap();
        assert_eq!(saved(&peft), saved(&again));
        let folder = tempfile::tempdir().unwrap();
        again.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap();
    }
}

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
        CausalLm::is_tied(&self.model)
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
    let mut peft = PeftModel::new(model);
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
        seen.insert(type_name(peft.model()));
        // The first ChatGLM reads a row as one text.
        assert_same_in_both(name, if name.starts_with("chatglm1") { 6 } else { 3 }, &peft);
    }
    assert_eq!(seen.len(), 10, "a model is missing: {seen:?}");
}

/// The type of the model inside, as its `Debug` form begins.
fn type_name(model: &AutoCausalLm) -> String {
    let text = format!("{model:?}");
    let inside = text.trim_start_matches("AutoCausalLm { model: ");
    inside.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
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

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let _alone = crate::support::random_numbers();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let config = TrainConfig { learning_rate: 1e30, max_grad_norm: 0.0, ..config(20) };
    let error = Trainer::new(&mut fresh(0.0), &task, config).run();
    assert!(matches!(error, Err(PeftError::NotFinite(_))), "{error:?}");
}

/// A fresh adapter on a model of some task, trained until the task is learned.
fn learn<M: Module + Adaptable, T: Task<M>>(model: M, task: &T, rate: f64, steps: usize) -> [Evaluation; 2] {
    let _alone = crate::support::random_numbers();
    let mut peft = PeftModel::new(model);
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
    let _alone = crate::support::random_numbers();
    let outcome = Trainer::new(&mut peft, &task(both), config(20)).run().unwrap();
    assert!(outcome.last_loss.is_finite());
}
