//! What a run changes and what it leaves alone, and how it fails.

use burn::module::Module;
use peft::core::{DEFAULT_ADAPTER, PeftError, PeftModel};
use peft::ia3::Ia3Config;
use peft::lora::LoraConfig;
use peft::models::auto::AutoCausalLm;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::train::log::TrainRecord;
use peft::tasks::train::{Observer, StepDone, TrainConfig, Trainer};

use super::runs::{config, fresh, losses, samples, with};
use crate::support::{device, numbers};

#[test]
fn training_lowers_the_loss_and_leaves_the_base_alone() {
    alone!();
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

/// Mixed precision rounds what enters a product, so losses move in the third digit; where there is none it is refused.
#[test]
fn a_run_in_bf16_follows_one_in_single_precision() {
    alone!();
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
    alone!();
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

/// The same step is named, however many a card was ahead.
#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    alone!();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    for logging_steps in [1, 10] {
        let config = TrainConfig { learning_rate: 1e30, max_grad_norm: 0.0, logging_steps, ..config(20) };
        let error = Trainer::new(&mut fresh(0.0), &task, config).run();
        let Err(PeftError::NotFinite(reason)) = error else { panic!("{error:?}") };
        assert!(reason.starts_with("the loss of step 2 is "), "{reason}");
    }
}

/// Reads the loss of every so many steps.
struct Reads {
    every: usize,
    /// Step, loss and norm of the gradients.
    steps: Vec<(usize, f64, f64)>,
    lines: Vec<(usize, f64, f64)>,
}

impl Observer for Reads {
    fn step(&mut self, done: &StepDone<'_>, _total: usize) {
        if self.every > 0 && done.step.is_multiple_of(self.every) {
            self.steps.push((done.step, done.loss(), done.grad_norm()));
        }
    }

    fn logged(&mut self, record: &TrainRecord, _total: usize) {
        self.lines.push((record.step, record.loss, record.grad_norm.unwrap()));
    }
}

/// A card is asked for the loss of a step when a line of the log needs it, or when an observer does.
#[test]
fn losses_do_not_depend_on_when_they_are_read() {
    alone!();
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    // Lines of 4, 4, and 3 steps; an evaluation and a checkpoint in the middle of the second.
    let settings = TrainConfig { logging_steps: 4, eval_steps: 6, save_steps: 7, ..config(11) };
    let [always, sometimes, never] = [1, 3, 0].map(|every| {
        let folder = tempfile::tempdir().unwrap();
        let mut reads = Reads { every, steps: Vec::new(), lines: Vec::new() };
        let mut peft = fresh(0.0);
        let trainer = Trainer::new(&mut peft, &task, settings.clone()).eval(&task).output(folder.path());
        let outcome = trainer.observer(&mut reads).run().unwrap();
        (reads, outcome.last_loss)
    });
    assert_eq!(always.0.steps.len(), 11);
    assert_eq!(always.0.steps[10].1, always.1);
    let some: Vec<_> = always.0.steps.iter().copied().filter(|it| it.0 % 3 == 0).collect();
    assert_close(&sometimes.0.steps, &some);
    for (reads, last_loss) in [&sometimes, &never] {
        assert_close(&reads.lines, &always.0.lines);
        assert!((last_loss - always.1).abs() < 1e-6, "{last_loss} is not {}", always.1);
    }
    let lines = always.0.steps.chunks(4).map(|steps| {
        let mean = steps.iter().map(|it| it.1).sum::<f64>() / steps.len() as f64;
        let (step, _, grad_norm) = steps[steps.len() - 1];
        (step, mean, grad_norm)
    });
    assert_close(&always.0.lines, &lines.collect::<Vec<_>>());
}

/// Not bit for bit: libtorch adds in the order in which its threads come.
fn assert_close(ours: &[(usize, f64, f64)], wanted: &[(usize, f64, f64)]) {
    let is_close = |a: &(usize, f64, f64), b: &(usize, f64, f64)| {
        a.0 == b.0 && (a.1 - b.1).abs() < 1e-6 && (a.2 - b.2).abs() < 1e-5
    };
    let all = ours.len() == wanted.len() && ours.iter().zip(wanted).all(|(a, b)| is_close(a, b));
    assert!(all, "{ours:?} are not {wanted:?}");
}
