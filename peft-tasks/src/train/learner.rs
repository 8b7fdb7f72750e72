//! What changes the adapter in a step, and goes on from a checkpoint.

use std::collections::HashSet;
use std::path::Path;

use burn::module::{Module, ParamId};
use burn::optim::{GradientsParams, ModuleOptimizer};
use peft_core::model::state as tensors;
use peft_core::ops;
use peft_core::{AfterStep, PeftModel, Result};
use serde_json::{Map, Value};

use crate::train::checkpoint::{BestAdapter, Checkpoint, Snapshot};
use crate::train::config::TrainConfig;
use crate::train::optimizer;
use crate::train::state::TrainerState;

/// What changes the adapter: the optimizer, and what its method does after every step.
pub(crate) struct Learner {
    adapter: String,
    /// What its checkpoints belong to.
    identity: Map<String, Value>,
    optimizer: ModuleOptimizer,
    /// Parameters that the optimizer wants frozen.
    pub(crate) frozen: HashSet<ParamId>,
    hook: Option<Box<dyn AfterStep>>,
    pub(crate) best: Option<BestAdapter>,
    /// Evaluations without gain that end the run; 0 for no end, and no best adapter.
    patience: usize,
}

impl Learner {
    /// At the start of a run, or at the last checkpoint of one that is resumed.
    pub(crate) fn new<M: Module>(
        peft: &mut PeftModel<M>,
        name: &str,
        config: &TrainConfig,
        identity: Map<String, Value>,
        checkpoint: Option<&Path>,
    ) -> Result<(Self, TrainerState, Vec<String>)> {
        let mut hook = peft.adapters().get(name).and_then(|it| it.config.after_step());
        let (mut state, mut best, mut changed) = (TrainerState::default(), None, Vec::new());
        let checkpoint = checkpoint.map(Checkpoint::open).transpose()?;
        if let Some(checkpoint) = &checkpoint {
            changed = checkpoint.compare(&identity)?;
            best = checkpoint.best(peft.model(), name)?;
            state = checkpoint.restore(peft, name, hook.as_mut())?;
        }
        let (mut optimizer, frozen) = optimizer::optimizer(config, peft, name)?;
        if let Some(checkpoint) = &checkpoint {
            optimizer = checkpoint.optimizer(optimizer, &peft.device().without_autodiff())?;
        }
        let (adapter, patience) = (name.to_owned(), config.early_stopping_patience);
        Ok((Self { adapter, identity, optimizer, frozen, hook, best, patience }, state, changed))
    }

    /// Whether evaluations have brought nothing for so long that the run ends.
    pub(crate) fn has_enough(&self, state: &TrainerState) -> bool {
        self.patience > 0 && state.evaluations_without_gain >= self.patience
    }

    /// Whether the method reads the gradients of every step, for what it does then.
    pub(crate) fn reads_gradients(&self) -> bool {
        self.hook.is_some()
    }

    /// One step, number `step` counted from 0.
    pub(crate) fn step<M: Module>(
        &mut self,
        lr: f64,
        model: M,
        gradients: GradientsParams,
        step: usize,
        peft: &mut PeftModel<M>,
    ) -> Result<M> {
        let name = &self.adapter;
        let seen = self.hook.as_ref().map(|_| tensors::step_gradients(&model, name, &gradients));
        let model = ops::together(|| self.optimizer.step(lr, model, gradients));
        let (Some(hook), Some(seen)) = (&mut self.hook, seen) else { return Ok(model) };
        let changed = hook.after_step(step, &tensors::tensors(&model, name), &seen)?;
        peft.set_config(name, hook.config())?;
        Ok(tensors::assign(model, name, changed.into_iter().map(|it| (it.key, it.data)).collect()))
    }

    /// Remembers the adapter if none was better before.
    pub(crate) fn evaluated<M: Module>(&mut self, model: &M, loss: f64, state: &mut TrainerState) {
        if state.best.is_none_or(|best| loss < best) {
            (state.best, state.best_step, state.evaluations_without_gain) = (Some(loss), state.step, 0);
            self.best = (self.patience > 0).then(|| BestAdapter::of(model, &self.adapter, self.hook.as_deref()));
        } else {
            state.evaluations_without_gain += 1;
        }
    }

    /// The model with its adapter as it was when its evaluation was best.
    pub(crate) fn put_back<M: Module>(&mut self, best: BestAdapter, model: M, peft: &mut PeftModel<M>) -> Result<M> {
        let model = best.put_back(model, &self.adapter, self.hook.as_mut())?;
        if let Some(hook) = &self.hook {
            peft.set_config(&self.adapter, hook.config())?;
        }
        Ok(model)
    }

    pub(crate) fn snapshot<'a>(&'a self, state: &'a TrainerState) -> Snapshot<'a> {
        let (optimizer, hook, best) = (&self.optimizer, self.hook.as_deref(), self.best.as_ref());
        Snapshot { state, identity: &self.identity, optimizer, hook, best }
    }
}
