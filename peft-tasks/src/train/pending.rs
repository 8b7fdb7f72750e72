//! Losses and norms of steps that a card may still compute.

use std::borrow::Borrow;
use std::cell::{Cell, OnceCell};
use std::time::Instant;

use burn::tensor::{Tensor, Transaction};
use peft_core::{PeftError, Result};

/// The loss of a step.
#[derive(Debug)]
pub(crate) enum Loss {
    Known(f64),
    /// The sum of these.
    OnDevice(Vec<Tensor<1>>),
}

/// What a step found, once it is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) loss: f64,
    /// Norm of all gradients before clipping.
    pub(crate) grad_norm: f64,
}

/// The loss and the norm of the gradients of a step. To read them is to wait for the device.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Counted from 0.
    pub(crate) step: usize,
    known: f64,
    losses: Vec<Tensor<1>>,
    /// The sum of the squares of the gradients.
    squares: Option<Tensor<1>>,
    found: OnceCell<Result<Found, String>>,
    /// Seconds that were waited for them.
    waited: Cell<f64>,
}

impl Pending {
    pub(crate) fn new(step: usize, loss: Loss, squares: Option<Tensor<1>>) -> Self {
        let (known, losses) = match loss {
            Loss::Known(loss) => (loss, Vec::new()),
            Loss::OnDevice(losses) => (0.0, losses),
        };
        Self { step, known, losses, squares, found: OnceCell::new(), waited: Cell::new(0.0) }
    }

    /// Seconds that were waited for it so far.
    pub(crate) fn waited(&self) -> f64 {
        self.waited.get()
    }

    /// Waits for this step, if nobody did before.
    pub(crate) fn read(&self) -> Result<Found> {
        read(&[self]).map(|found| found[0])
    }
}

/// What some steps found, by one wait for all that is not read yet.
pub(crate) fn read<P: Borrow<Pending>>(steps: &[P]) -> Result<Vec<Found>> {
    let begun = Instant::now();
    let unread: Vec<&Pending> = steps.iter().map(P::borrow).filter(|it| it.found.get().is_none()).collect();
    let tensors: Vec<_> = unread.iter().flat_map(|it| it.losses.iter().chain(&it.squares)).cloned().collect();
    let data = match tensors.is_empty() {
        true => Ok(Vec::new()),
        false => tensors.into_iter().fold(Transaction::default(), Transaction::register).try_execute(),
    };
    let data = data.map_err(|error| error.to_string());
    let mut numbers = data.iter().flatten().flat_map(|it| it.iter::<f64>());
    for it in &unread {
        let loss = it.known + numbers.by_ref().take(it.losses.len()).sum::<f64>();
        let squares: f64 = numbers.by_ref().take(it.squares.iter().len()).sum();
        let found = data.as_ref().map(|_| Found { loss, grad_norm: squares.sqrt() }).map_err(Clone::clone);
        let _ = it.found.set(found);
    }
    if let Some(last) = unread.last() {
        last.waited.set(begun.elapsed().as_secs_f64());
    }
    let found = steps.iter().filter_map(|it| it.borrow().found.get().cloned());
    found.collect::<Result<_, _>>().map_err(PeftError::Device)
}
