//! Several processes train what one trains, on the batch of all of them.

use std::path::Path;

use peft::core::{Adaptable, DEFAULT_ADAPTER, PeftConfig, PeftModel, nn};
use peft::lora::{AdaLoraConfig, LoraConfig};
use peft::models::auto::{AutoCausalLm, load_causal_lm};
use peft::tasks::data::sample::Sample;
use peft::tasks::parallel::group::{is_first, run_local};
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::Task;
use peft::tasks::train::schedule::{ScheduleConfig, ScheduleKind};
use peft::tasks::train::{Observer, Outcome, StepDone, TrainConfig, Trainer};

use super::runs::{config, losses, samples};
use crate::support::{device, fixtures, numbers};

/// On a base without dropout: rows of other processes would drop other numbers.
fn with(config: impl PeftConfig + 'static) -> PeftModel<AutoCausalLm> {
    let (model, _) = load_causal_lm(fixtures().join("models/llama-tiny"), &device()).unwrap();
    let spec = model.spec();
    let mut peft = PeftModel::with_spec(model, spec);
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 1).unwrap();
    peft
}

fn fresh() -> PeftModel<AutoCausalLm> {
    with(LoraConfig::new(4, 6.0).all_linear())
}

/// Eleven rows: the last batch of an epoch has fewer than there are processes, or none for one of them.
fn rows() -> Vec<Sample> {
    samples().into_iter().take(11).chain(samples().into_iter().take(2)).collect()
}

fn padded() -> LanguageModelling {
    LanguageModelling::padded(rows(), 0).unwrap()
}

/// `batch` rows a step for all processes together.
fn shared(batch: usize, processes: usize, steps: usize) -> TrainConfig {
    assert_eq!(batch % processes, 0);
    // The same rate in runs of other lengths.
    let schedule = ScheduleConfig { lr_scheduler_type: ScheduleKind::Constant, ..ScheduleConfig::default() };
    TrainConfig { learning_rate: 1e-3, batch_size: batch / processes, schedule, ..config(steps) }
}

fn adapter(peft: &PeftModel<AutoCausalLm>) -> Vec<f64> {
    peft.adapter_tensors(DEFAULT_ADAPTER).unwrap().iter().flat_map(|it| numbers(&it.data)).collect()
}

/// Losses and adapters of a run in `processes`, which all end with the same ones.
fn run(
    processes: usize,
    batch: usize,
    steps: usize,
    task: impl Fn() -> LanguageModelling + Sync,
    fresh: impl Fn() -> PeftModel<AutoCausalLm> + Sync,
    folder: &Path,
) -> (Vec<f64>, Vec<f64>) {
    let work = || {
        let mut peft = fresh();
        let training = shared(batch, processes, steps);
        let outcome = Trainer::new(&mut peft, &task(), training).output(folder).resume(true).run().unwrap();
        assert_eq!(outcome.steps, steps);
        adapter(&peft)
    };
    let adapters = if processes == 1 { vec![work()] } else { run_local(processes, |_| work()) };
    assert!(adapters.iter().all(|it| *it == adapters[0]), "the processes do not agree");
    let losses = losses(folder).iter().map(|it| f64::from_bits(it.1)).collect();
    (losses, adapters.into_iter().next().unwrap())
}

#[track_caller]
fn assert_same(found: &(Vec<f64>, Vec<f64>), wanted: &(Vec<f64>, Vec<f64>)) {
    for (what, found, wanted) in [("loss", &found.0, &wanted.0), ("number of the adapter", &found.1, &wanted.1)] {
        assert_eq!(found.len(), wanted.len());
        for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            assert!((found - wanted).abs() <= 1e-6 * wanted.abs().max(1.0), "{what} {at} is {found}, not {wanted}");
        }
    }
}

#[test]
fn fifty_steps_are_those_of_one_process_with_the_batch_of_all() {
    alone!();
    let packed = || LanguageModelling::packed(rows(), 16, 0).unwrap();
    let padded_run = |processes, folder: &Path| run(processes, 6, 50, padded, fresh, folder);
    let packed_run = |processes, folder: &Path| run(processes, 6, 20, packed, fresh, folder);
    for run in [&padded_run as &dyn Fn(usize, &Path) -> _, &packed_run] {
        let folders = [(); 3].map(|_| tempfile::tempdir().unwrap());
        let alone = run(1, folders[0].path());
        assert_same(&run(2, folders[1].path()), &alone);
        assert_same(&run(3, folders[2].path()), &alone);
    }
}

/// A method that adds to the loss, and looks at gradients after every step.
#[test]
fn methods_with_a_loss_of_their_own_add_it_once() {
    alone!();
    let fresh = || {
        let lora = LoraConfig::new(4, 6.0).all_linear();
        let schedule = AdaLoraConfig { init_r: 4, target_r: 2, total_step: Some(9), tfinal: 2, ..Default::default() };
        with(AdaLoraConfig { lora, ..schedule })
    };
    let folders = [(); 2].map(|_| tempfile::tempdir().unwrap());
    let alone = run(1, 6, 9, padded, fresh, folders[0].path());
    assert_same(&run(2, 6, 9, padded, fresh, folders[1].path()), &alone);
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    alone!();
    let whole = tempfile::tempdir().unwrap();
    let uninterrupted = run(1, 6, 8, padded, fresh, whole.path());
    let cut = tempfile::tempdir().unwrap();
    run(2, 6, 4, padded, fresh, cut.path());
    run(3, 6, 6, padded, fresh, cut.path());
    assert_same(&run(1, 6, 8, padded, fresh, cut.path()), &uninterrupted);
    // Not with another batch.
    let mut peft = fresh();
    let other = Trainer::new(&mut peft, &padded(), shared(4, 1, 9)).output(cut.path()).resume(true).run();
    assert!(other.unwrap_err().to_string().contains("`batch_size` was 6 and is 4"));
}

#[test]
fn evaluations_are_shared() {
    alone!();
    let measured = || {
        let peft = fresh();
        let task = padded();
        let evaluation = task.evaluate(&nn::eval(peft.model()), 2, &device()).unwrap();
        (evaluation.loss, evaluation.metrics["perplexity"].clone())
    };
    let alone = measured();
    for found in run_local(3, |_| measured()) {
        assert_eq!(found, alone);
    }
}

#[test]
fn a_process_on_other_data_is_refused_by_name() {
    alone!();
    let outcomes = run_local(3, |group| {
        let mut rows = rows();
        rows.truncate(if group.rank() == 2 { 9 } else { 13 });
        let task = LanguageModelling::padded(rows, 0).unwrap();
        Trainer::new(&mut fresh(), &task, shared(6, 3, 4)).run().map(|_| ()).unwrap_err().to_string()
    });
    for outcome in outcomes {
        assert!(outcome.starts_with("rank 2 does not run what rank 0 runs: `items` is 13"), "{outcome}");
    }
}

/// Asks one process to end after its third step.
struct Stop(bool, usize);

impl Observer for Stop {
    fn step(&mut self, done: &StepDone<'_>, _total: usize) {
        self.1 = done.step;
    }

    fn stop_asked(&mut self) -> bool {
        self.0 && self.1 >= 3
    }
}

#[test]
fn what_ends_one_process_ends_all_with_one_checkpoint() {
    alone!();
    let folder = tempfile::tempdir().unwrap();
    let outcomes: Vec<Outcome> = run_local(2, |group| {
        let mut observer = Stop(group.rank() == 1, 0);
        let training = TrainConfig { save_steps: 0, ..shared(6, 2, 9) };
        let mut peft = fresh();
        let task = padded();
        let trainer = Trainer::new(&mut peft, &task, training).output(folder.path());
        assert_eq!(is_first(), group.rank() == 0);
        trainer.observer(&mut observer).run().unwrap()
    });
    for outcome in &outcomes {
        assert!(outcome.interrupted);
        assert_eq!(outcome.steps, outcomes[0].steps);
        assert!(outcome.checkpoint.as_ref().unwrap().join("trainer_state.json").is_file());
    }
    assert!(outcomes[0].steps < 9);
}
