//! A run that ends early.

use std::path::Path;

use burn::module::Module;
use peft::core::{DEFAULT_ADAPTER, PeftModel};
use peft::lora::{AdaLoraConfig, LoraConfig};
use peft::models::auto::AutoCausalLm;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::Task;
use peft::tasks::train::log::{Record, read};
use peft::tasks::train::{TrainConfig, Trainer};

use super::runs::{config, copy_tree, fresh, samples, with};
use crate::support::{device, numbers};

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
    alone!();
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
