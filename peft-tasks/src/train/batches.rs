//! Which samples make up which step.
//!
//! The plan of an epoch is a function of the seed and the epoch's number. A run that was cut off makes the same plan
//! again and goes on at any step, without a saved state and without reading what came before.

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

use crate::data::rng;
use crate::train::config::TrainConfig;

/// How samples are put into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchOptions {
    /// Samples a batch.
    pub batch_size: usize,
    /// A new order every epoch.
    pub shuffle: bool,
    /// Samples of like length together, which saves filling. The order is less random for it.
    pub group_by_length: bool,
    /// Leaves out a last batch that is not full.
    pub drop_last: bool,
    /// What the order depends on.
    pub seed: u64,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { batch_size: 8, shuffle: true, group_by_length: false, drop_last: false, seed: 42 }
    }
}

impl BatchOptions {
    /// Every sample once, in order: for evaluation.
    pub fn in_order(batch_size: usize) -> Self {
        Self { batch_size, shuffle: false, ..Self::default() }
    }

    /// Number of batches that `samples` make in every epoch.
    ///
    /// # Errors
    /// There would be none.
    pub fn batches(&self, samples: usize) -> Result<usize> {
        if self.batch_size == 0 {
            return Err(PeftError::config("batch_size", "is 0, expected at least 1"));
        }
        match if self.drop_last { samples / self.batch_size } else { samples.div_ceil(self.batch_size) } {
            0 if samples > 0 => Err(PeftError::config(
                "batch_size",
                format!("is {}, there are {samples} samples and `drop_last` is set; lower it", self.batch_size),
            )),
            0 => Err(PeftError::Invalid("there is no sample to train on".to_owned())),
            batches => Ok(batches),
        }
    }
}

/// The batches of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochPlan {
    /// Counted from 0.
    pub epoch: u64,
    /// Indices of samples, batch by batch.
    pub batches: Vec<Vec<usize>>,
}

impl EpochPlan {
    /// Plans an epoch over samples of `lengths` tokens.
    ///
    /// With `group_by_length` a shuffled epoch is cut into stretches of up to 50 batches, each sorted by length, as
    /// transformers' `LengthGroupedSampler` does; then the batches are shuffled, and the one with the longest sample
    /// comes first, so that a lack of memory shows at once. Without `shuffle` all samples are sorted, longest first.
    ///
    /// # Errors
    /// See [`BatchOptions::batches`].
    pub fn new(lengths: &[usize], options: &BatchOptions, epoch: u64) -> Result<Self> {
        let wanted = options.batches(lengths.len())?;
        let size = options.batch_size;
        let mut generator = rng::generator(options.seed, epoch);
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        if options.shuffle {
            rng::shuffle(&mut generator, &mut order);
        }
        let by_length = |it: &usize| std::cmp::Reverse(lengths[*it]);
        if !options.group_by_length {
            let batches = order.chunks(size).take(wanted).map(<[usize]>::to_vec).collect();
            return Ok(Self { epoch, batches });
        }
        let stretch = if options.shuffle { (lengths.len() / (size * 4)).clamp(1, 50) * size } else { lengths.len() };
        order.chunks_mut(stretch).for_each(|it| it.sort_by_key(by_length));
        let mut batches: Vec<Vec<usize>> = order.chunks(size).map(<[usize]>::to_vec).collect();
        if options.shuffle {
            // A short batch stays last: a dropped one must be it, and not whichever ends up there.
            let full = lengths.len() / size;
            rng::shuffle(&mut generator, &mut batches[..full]);
            let longest = |it: &&Vec<usize>| it.iter().map(|it| lengths[*it]).max();
            let first = (0..full).max_by_key(|it| (longest(&&batches[*it]), std::cmp::Reverse(*it)));
            if let Some(first) = first {
                batches.swap(0, first);
            }
        }
        batches.truncate(wanted);
        Ok(Self { epoch, batches })
    }
}

/// The steps of a run, of which each takes several batches: the last one of an epoch perhaps fewer.
#[derive(Debug, Clone)]
pub struct Steps {
    lengths: Vec<usize>,
    options: BatchOptions,
    batches_per_step: usize,
    per_epoch: usize,
    total: usize,
    plan: Option<EpochPlan>,
}

impl Steps {
    /// The steps that a configuration makes of samples of `lengths` tokens.
    ///
    /// # Errors
    /// See [`BatchOptions::batches`].
    pub fn new(lengths: Vec<usize>, config: &TrainConfig) -> Result<Self> {
        let options = BatchOptions {
            batch_size: config.batch_size,
            shuffle: true,
            group_by_length: config.group_by_length,
            drop_last: false,
            seed: config.seed,
        };
        let batches_per_step = config.gradient_accumulation_steps.max(1);
        let per_epoch = options.batches(lengths.len())?.div_ceil(batches_per_step);
        let of_epochs = (config.num_train_epochs * per_epoch as f64).ceil() as usize;
        let total = config.max_steps.unwrap_or(of_epochs).max(1);
        Ok(Self { lengths, options, batches_per_step, per_epoch, total, plan: None })
    }

    /// Steps in an epoch.
    pub fn per_epoch(&self) -> usize {
        self.per_epoch
    }

    /// Steps of the whole run, at least 1.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The batches of a step, counted from 0 over all epochs, as indices of samples.
    ///
    /// # Errors
    /// See [`BatchOptions::batches`].
    pub fn batches(&mut self, step: usize) -> Result<&[Vec<usize>]> {
        let epoch = (step / self.per_epoch) as u64;
        let plan = match self.plan.take().filter(|it| it.epoch == epoch) {
            Some(plan) => plan,
            None => EpochPlan::new(&self.lengths, &self.options, epoch)?,
        };
        let all = &self.plan.insert(plan).batches;
        let first = step % self.per_epoch * self.batches_per_step;
        Ok(&all[first..all.len().min(first + self.batches_per_step)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(samples: usize) -> Vec<usize> {
        (0..samples).map(|it| 1 + it * 7919 % 97).collect()
    }

    #[test]
    fn every_sample_comes_once_an_epoch() {
        for samples in [1, 7, 8, 9, 500] {
            for bits in 0..4 {
                let (shuffle, group_by_length) = (bits & 1 == 1, bits & 2 == 2);
                let options = BatchOptions { shuffle, group_by_length, ..BatchOptions::default() };
                let plan = EpochPlan::new(&lengths(samples), &options, 3).unwrap();
                assert_eq!(plan.batches.len(), options.batches(samples).unwrap());
                assert!(plan.batches.iter().rev().skip(1).all(|it| it.len() == 8));
                let mut seen = plan.batches.concat();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..samples));
            }
        }
    }

    #[test]
    fn a_plan_depends_on_seed_and_epoch_alone() {
        let plan = |seed, epoch| {
            let options = BatchOptions { seed, ..BatchOptions::default() };
            EpochPlan::new(&lengths(100), &options, epoch).unwrap().batches
        };
        assert_eq!(plan(1, 5), plan(1, 5));
        assert_ne!(plan(1, 5), plan(1, 6));
        assert_ne!(plan(1, 5), plan(2, 5));
    }

    #[test]
    fn grouping_saves_filling_and_starts_with_the_longest() {
        let lengths = lengths(500);
        let filled = |group_by_length| {
            let plan =
                EpochPlan::new(&lengths, &BatchOptions { group_by_length, ..BatchOptions::default() }, 0).unwrap();
            let width = |batch: &Vec<usize>| batch.iter().map(|it| lengths[*it]).max().unwrap() * batch.len();
            (plan.batches.iter().map(width).sum::<usize>(), width(&plan.batches[0]))
        };
        assert!(filled(true).0 * 10 < filled(false).0 * 7, "{} {}", filled(true).0, filled(false).0);
        assert_eq!(filled(true).1, 97 * 8);
    }

    #[test]
    fn the_last_batch_can_be_dropped() {
        let options = BatchOptions { drop_last: true, batch_size: 4, ..BatchOptions::default() };
        for group_by_length in [false, true] {
            let plan = EpochPlan::new(&lengths(11), &BatchOptions { group_by_length, ..options }, 0).unwrap();
            assert_eq!(plan.batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
        }
        assert!(EpochPlan::new(&lengths(3), &options, 0).unwrap_err().to_string().contains("lower it"));
        assert!(EpochPlan::new(&[], &BatchOptions::default(), 0).is_err());
    }

    #[test]
    fn steps_are_found_again() {
        let config = TrainConfig { batch_size: 4, gradient_accumulation_steps: 2, ..TrainConfig::default() };
        let mut steps = Steps::new(lengths(18), &config).unwrap();
        assert_eq!((steps.per_epoch(), steps.total()), (3, 9));
        let options = BatchOptions { batch_size: 4, ..BatchOptions::default() };
        let plan = |epoch| EpochPlan::new(&lengths(18), &options, epoch).unwrap().batches;
        // Five batches an epoch: two, two and one.
        assert_eq!(steps.batches(0).unwrap(), &plan(0)[..2]);
        assert_eq!(steps.batches(8).unwrap(), &plan(2)[4..]);
        assert_eq!(steps.batches(4).unwrap(), &plan(1)[2..4]);
        let longer = TrainConfig { max_steps: Some(20), ..config };
        assert_eq!(Steps::new(lengths(18), &longer).unwrap().total(), 20);
    }
}
