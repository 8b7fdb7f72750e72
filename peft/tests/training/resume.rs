//! A run that is cut and resumed gives what an uninterrupted one gives.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use peft::core::{DEFAULT_ADAPTER, PeftModel};
use peft::lora::{AdaLoraConfig, LoraConfig};
use peft::models::auto::AutoCausalLm;
use peft::tasks::tasks::interruption::StopAsked;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::train::log::{self, EvalRecord, LOG_FILE, Record, TrainRecord};
use peft::tasks::train::{Observer, Optim, Started, StepDone, TrainConfig, Trainer};

use super::runs::{config, copy_tree, fresh, losses, samples, with};
use crate::support::numbers;

/// Killed after step 5 with a checkpoint at 4, resumed: the losses are those of a run that was never killed, bit for
/// bit, dropout and all.
#[test]
fn a_resumed_run_gives_the_losses_of_an_uninterrupted_one() {
    alone!();
    cut_and_resumed(|| fresh(0.2));
}

/// The same while ranks are being taken away: scores, masks and masked rows go on from where they were.
#[test]
fn a_resumed_run_allocates_ranks_as_an_uninterrupted_one() {
    alone!();
    cut_and_resumed(|| {
        let lora = LoraConfig { lora_dropout: 0.2, ..LoraConfig::new(4, 6.0).all_linear() };
        let schedule = AdaLoraConfig { init_r: 4, target_r: 2, total_step: Some(9), tfinal: 2, ..Default::default() };
        with(AdaLoraConfig { lora, ..schedule })
    });
}

/// The same where parameters have optimizers of their own, and one factor is frozen.
#[test]
fn a_resumed_run_groups_parameters_as_an_uninterrupted_one() {
    alone!();
    let plus = TrainConfig { loraplus_lr_ratio: Some(4.0), loraplus_weight_decay: 0.1, ..config(9) };
    let half = TrainConfig { lora_fa: true, adam_epsilon: 1e-6, ..config(9) };
    for config in [plus, half] {
        cut_and_resumed_with(&config, || fresh(0.2));
    }
}

/// The same where moments are kept in 8 bits, for tensors that are large enough.
#[test]
fn a_resumed_run_goes_on_with_moments_in_8_bits() {
    let plain = TrainConfig { optim: Optim::AdamW8bit, ..config(9) };
    let plus = TrainConfig { loraplus_lr_ratio: Some(4.0), ..plain.clone() };
    for config in [plain, plus] {
        cut_and_resumed_with(&config, || with(LoraConfig::new(64, 64.0).all_linear()));
    }
}

fn cut_and_resumed(fresh: impl Fn() -> PeftModel<AutoCausalLm>) {
    cut_and_resumed_with(&config(9), fresh);
}

fn cut_and_resumed_with(config: &TrainConfig, fresh: impl Fn() -> PeftModel<AutoCausalLm>) {
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let whole = tempfile::tempdir().unwrap();
    let mut peft = fresh();
    Trainer::new(&mut peft, &task, config.clone()).output(whole.path()).run().unwrap();

    let cut = tempfile::tempdir().unwrap();
    copy_tree(whole.path(), cut.path());
    for step in [6, 8, 9] {
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
    alone!();
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

#[test]
fn resuming_with_other_settings_is_refused() {
    alone!();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Trainer::new(&mut fresh(0.0), &task, config(2)).output(folder.path()).run().unwrap();
    let resumed = |peft: &mut PeftModel<AutoCausalLm>, config: TrainConfig, task: &LanguageModelling| {
        let error = Trainer::new(peft, task, config).output(folder.path()).resume(true).run().unwrap_err();
        error.to_string()
    };
    let other = TrainConfig { learning_rate: 5e-3, ..config(4) };
    let error = resumed(&mut fresh(0.0), other, &task);
    assert!(error.contains("other settings: `learning_rate` was 0.01 and is 0.005;"), "{error}");
    let error = resumed(&mut fresh(0.1), config(4), &task);
    assert!(error.contains("`adapter.lora_dropout` was 0"), "{error}");
    let fewer = LanguageModelling::padded(samples().split_off(1), 0).unwrap();
    let error = resumed(&mut fresh(0.0), config(4), &fewer);
    assert!(error.contains("`items` was 12 of lengths"), "{error}");
    let mut other = fresh(0.0);
    let model = other.model().clone().map(&mut Moved);
    other.set_model(model);
    let error = resumed(&mut other, config(4), &task);
    assert!(error.contains("`base` was "), "{error}");
}

/// Every float of a model, a little off.
struct Moved;

impl ModuleMapper for Moved {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (data, id) = (param.base().mul_scalar(1.001).into_data(), param.id);
        let value = Tensor::from_data(data, &param.lazy_device());
        param.transform_for_load(value, id)
    }
}

/// Ends a run after some steps, as a signal does.
struct StopAfter {
    steps: usize,
    started: Vec<Started>,
    logged: Vec<(usize, u64)>,
}

impl StopAfter {
    fn new(steps: usize) -> Self {
        Self { steps, started: Vec::new(), logged: Vec::new() }
    }
}

impl Observer for StopAfter {
    fn started(&mut self, start: &Started) {
        self.started.push(start.clone());
    }

    fn step(&mut self, _done: &StepDone<'_>, _total: usize) {
        self.steps -= 1;
    }

    fn logged(&mut self, record: &TrainRecord, _total: usize) {
        self.logged.push((record.step, record.loss.to_bits()));
    }

    fn stop_asked(&mut self) -> bool {
        self.steps == 0
    }
}

/// Ended between two lines of the log, and between two checkpoints: the mean of a line goes over the cut, evaluations come
/// when they are due, and no number of the log is another. What takes time takes another time.
#[test]
fn the_log_of_a_run_that_was_ended_and_resumed_is_that_of_an_uninterrupted_one() {
    alone!();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let settings = TrainConfig { logging_steps: 4, eval_steps: 3, save_steps: 0, ..config(10) };
    let run = |folder: &Path, observer: &mut StopAfter| {
        let mut peft = fresh(0.2);
        let trainer = Trainer::new(&mut peft, &task, settings.clone()).eval(&task).output(folder).resume(true);
        let outcome = trainer.observer(observer).run().unwrap();
        let last = numbers(&peft.adapter_tensors(DEFAULT_ADAPTER).unwrap()[0].data);
        (outcome, last)
    };
    let told = |folder: &Path| {
        let records = log::read(folder.join(LOG_FILE)).unwrap().into_iter().map(|it| match it {
            Record::Train(it) => Record::Train(TrainRecord { tokens_per_second: 0.0, seconds: 0.0, ..it }),
            Record::Eval(it) => Record::Eval(EvalRecord { seconds: 0.0, ..it }),
        });
        records.collect::<Vec<_>>()
    };
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut through, mut parts) = (StopAfter::new(100), [6, 1, 50].map(StopAfter::new));
    let (outcome, adapter) = run(whole.path(), &mut through);
    assert!(!outcome.interrupted && outcome.checkpoint.is_none());
    let mut outcomes: Vec<_> = parts.iter_mut().map(|it| run(cut.path(), it)).collect();
    for (outcome, step) in outcomes.iter().zip([6, 7]) {
        assert_eq!((outcome.0.interrupted, outcome.0.steps), (true, step));
        assert_eq!(outcome.0.checkpoint.as_deref(), Some(&*cut.path().join(format!("checkpoint-{step}"))));
    }
    let (last, resumed) = outcomes.pop().unwrap();
    assert_eq!((last.interrupted, last.steps, resumed), (false, 10, adapter));
    assert_eq!(told(whole.path()), told(cut.path()));
    assert_eq!(parts.iter().flat_map(|it| it.logged.clone()).collect::<Vec<_>>(), through.logged);
    let starts: Vec<_> = parts.iter().map(|it| (it.started[0].step, it.started[0].anew)).collect();
    assert_eq!(starts, [(0, true), (6, false), (7, false)]);

    // A run that is finished does nothing more, and its last loss is still known.
    let mut after = StopAfter::new(100);
    let settings = TrainConfig { save_steps: 5, ..settings.clone() };
    let folder = tempfile::tempdir().unwrap();
    for at in 0..2 {
        let mut peft = fresh(0.2);
        let trainer = Trainer::new(&mut peft, &task, settings.clone()).eval(&task).output(folder.path()).resume(true);
        let again = trainer.observer(&mut after).run().unwrap();
        assert_eq!((again.steps, again.last_loss.to_bits()), (10, outcome.last_loss.to_bits()));
        assert_eq!(after.started[at].finished, at == 1);
    }
    assert_eq!(after.steps, 90);
}

/// Ends a run in the middle of an evaluation, as a signal does: the first batches of it are done.
struct StopInEvaluation {
    batches: Arc<AtomicUsize>,
    after: usize,
}

impl Observer for StopInEvaluation {
    fn stops_evaluations(&self) -> Option<StopAsked> {
        let (batches, after) = (self.batches.clone(), self.after);
        Some(Arc::new(move || batches.fetch_add(1, Ordering::Relaxed) >= after))
    }
}

/// An evaluation takes longer than a step. One that is cut leaves no line, and is done when the run goes on; that of the last
/// step too.
#[test]
fn a_run_that_was_ended_in_an_evaluation_goes_on_with_it() {
    alone!();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let settings = TrainConfig { eval_steps: 2, eval_batch_size: 4, save_steps: 0, ..config(4) };
    // Twelve items are three batches of an evaluation.
    let run = |folder: &Path, after: usize| {
        let mut observer = StopInEvaluation { batches: Arc::default(), after };
        let mut peft = fresh(0.2);
        let trainer = Trainer::new(&mut peft, &task, settings.clone()).eval(&task).output(folder).resume(true);
        let outcome = trainer.observer(&mut observer).run().unwrap();
        (outcome.interrupted, outcome.steps, outcome.evaluation.map(|it| it.loss.to_bits()))
    };
    let told = |folder: &Path| {
        let records = log::read(folder.join(LOG_FILE)).unwrap();
        let told = records.into_iter().map(|it| match it {
            Record::Train(it) => (it.step, "train", it.loss.to_bits()),
            Record::Eval(it) => (it.step, "eval", it.loss.to_bits()),
        });
        told.collect::<Vec<_>>()
    };
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let uninterrupted = run(whole.path(), 1000);
    assert_eq!(told(whole.path()).len(), 6);
    assert_eq!(run(cut.path(), 2), (true, 2, None));
    assert_eq!(told(cut.path()).last().unwrap().1, "train");
    // Once more in the same evaluation, then in that of the last step.
    assert!(run(cut.path(), 0).0);
    let second = run(cut.path(), 4);
    assert_eq!((second.0, second.1), (true, 4));
    assert_eq!(told(cut.path()).len(), 5);
    for _ in 0..2 {
        let last = run(cut.path(), 1000);
        assert_eq!((last.0, last.1), (false, 4));
        assert_eq!(last.2, uninterrupted.2);
        assert_eq!(told(cut.path()), told(whole.path()));
    }
}

/// Every file of a checkpoint: one byte changed, or cut off, or gone.
#[test]
fn a_damaged_checkpoint_is_named_whichever_file_it_is() {
    alone!();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let lora = LoraConfig::new(4, 6.0).all_linear();
    let adalora = AdaLoraConfig { init_r: 4, target_r: 2, total_step: Some(9), tfinal: 2, lora, ..Default::default() };
    let settings = TrainConfig { early_stopping_patience: 5, eval_steps: 1, ..config(2) };
    let folder = tempfile::tempdir().unwrap();
    let run = || {
        let mut peft = with(adalora.clone());
        let trainer = Trainer::new(&mut peft, &task, settings.clone()).eval(&task).output(folder.path()).resume(true);
        trainer.run()
    };
    run().unwrap();
    let checkpoint = folder.path().join("checkpoint-2");
    let mut files: Vec<_> = std::fs::read_dir(&checkpoint).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 6, "{files:?}");
    for path in files {
        let whole = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x10;
        // A digit of a number in the middle of the state says nothing that is wrong in itself.
        let changed = (name != "trainer_state.json").then_some(&flipped[..]);
        for bytes in [changed, Some(&whole[..whole.len() / 2]), Some(b"")].into_iter().flatten() {
            std::fs::write(&path, bytes).unwrap();
            let error = run().unwrap_err().to_string();
            assert!(error.contains(name) && error.len() < 600, "{name}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = run().unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
        std::fs::write(&path, whole).unwrap();
    }
    run().unwrap();
}
