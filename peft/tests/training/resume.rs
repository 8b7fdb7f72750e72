//! A run that is cut and resumed gives what an uninterrupted one gives.

use std::path::Path;

use peft::core::{DEFAULT_ADAPTER, PeftModel};
use peft::lora::{AdaLoraConfig, LoraConfig};
use peft::models::auto::AutoCausalLm;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::train::{TrainConfig, Trainer};

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
    let other = TrainConfig { learning_rate: 5e-3, ..config(4) };
    let error = Trainer::new(&mut fresh(0.0), &task, other).output(folder.path()).resume(true).run();
    assert!(error.unwrap_err().to_string().contains("other settings"));
}
