//! The forward and backward passes of a step.

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};
use peft_core::forward::{self, gradient_checkpointing};
use peft_core::model::state as tensors;
use peft_core::{Result, ops};

use crate::parallel::group::ProcessGroup;
use crate::tasks::task::{Task, scalar};
use crate::train::config::TrainConfig;
use crate::train::pending::Loss;
use crate::train::shared;

/// How the gradients of a step are computed.
pub(crate) struct Pass<'a, T: ?Sized> {
    task: &'a T,
    config: &'a TrainConfig,
    device: &'a Device,
    /// Who computes the rest of every batch.
    group: Option<&'a dyn ProcessGroup>,
    virtual_tokens: usize,
    /// Whether adapters add a term of their own to the loss.
    adds_to_loss: bool,
}

impl<'a, T: ?Sized> Pass<'a, T> {
    pub(crate) fn new<M: Module>(
        model: &M,
        task: &'a T,
        config: &'a TrainConfig,
        device: &'a Device,
        group: Option<&'a dyn ProcessGroup>,
    ) -> Self {
        // Neither changes during a run, and to find out takes a walk through the model.
        let (virtual_tokens, adds_to_loss) = (forward::virtual_tokens(model), tensors::loss(model).is_some());
        Self { task, config, device, group, virtual_tokens, adds_to_loss }
    }

    pub(crate) fn tokens<M: Module>(&self, batches: &[Vec<usize>]) -> u64
    where
        T: Task<M>,
    {
        batches.iter().map(|items| self.task.tokens(items) as u64).sum()
    }

    /// What this process computes of a batch: every so many rows, so that long and short ones are dealt out evenly.
    pub(crate) fn share(&self, batch: &[usize]) -> Vec<usize> {
        let (rank, world_size) = self.group.map_or((0, 1), |it| (it.rank(), it.world_size()));
        batch.iter().skip(rank).step_by(world_size).copied().collect()
    }

    /// The mean loss over the targets of all batches, and its gradients: those of all processes. And whether one of several
    /// processes was asked to end, of which `asked` says it for this one.
    pub(crate) fn gradients<M: Module>(
        &self,
        model: &M,
        batches: &[Vec<usize>],
        asked: impl FnOnce() -> bool,
    ) -> Result<(Loss, GradientsParams, bool)>
    where
        T: Task<M>,
    {
        let (losses, gradients) = self.own_gradients(model, batches)?;
        let Some(group) = self.group else { return Ok((Loss::OnDevice(losses), gradients, false)) };
        let loss = losses.iter().map(scalar).sum();
        let (loss, gradients, asked) = shared::sum(group, model, loss, gradients, asked())?;
        Ok((Loss::Known(loss), gradients, asked))
    }

    /// The part of this process.
    fn own_gradients<M: Module>(&self, model: &M, batches: &[Vec<usize>]) -> Result<(Vec<Tensor<1>>, GradientsParams)>
    where
        T: Task<M>,
    {
        // Of all processes: the sum over them is the mean.
        let targets: usize = batches.iter().map(|items| self.task.targets(self.virtual_tokens, items)).sum();
        let mut accumulator = GradientsAccumulator::new();
        let mut losses = Vec::new();
        // What adapters add is there once, however many compute. The first process has rows of every batch.
        let adds_to_loss = self.adds_to_loss && self.group.is_none_or(|it| it.rank() == 0);
        for items in batches.iter().map(|it| self.share(it)).filter(|it| !it.is_empty()) {
            let items = items.as_slice();
            let forward = || match self.config.gradient_checkpointing {
                true => gradient_checkpointing::scope(model, |model| self.task.loss_sum(model, items, self.device))?,
                false => self.task.loss_sum(model, items, self.device),
            };
            let sum = if self.config.bf16 { ops::within_bf16(self.device, forward)?? } else { forward()? };
            let mut mean = sum.div_scalar(targets.max(1) as f64);
            if let Some(own) = adds_to_loss.then(|| tensors::loss(model)).flatten() {
                mean = mean + own.div_scalar(batches.len() as f64);
            }
            losses.push(mean.clone().inner());
            let gradients = GradientsParams::from_grads(mean.backward(), model);
            accumulator.accumulate(model, gradients);
        }
        Ok((losses, accumulator.grads()))
    }
}
