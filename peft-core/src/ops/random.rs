//! What a forward draws at random.

use std::cell::RefCell;

use burn::tensor::{Device, Distribution, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::context;
use crate::device::is_eager;

/// Random numbers for a forward; nothing tracks them.
///
/// Whatever a layer draws goes through this, [`drawn`] or [`dropout`](super::dropout), so that it draws the same again when it is
/// computed a second time: see [`gradient_checkpointing`](crate::forward::gradient_checkpointing).
pub fn random<const D: usize>(shape: [usize; D], distribution: Distribution, device: &Device) -> Tensor<D> {
    context::draw(|| Tensor::random(shape, distribution, &device.clone().without_autodiff()))
}

thread_local! {
    /// Draws what a card need not know.
    static GENERATOR: RefCell<Option<ChaCha8Rng>> = const { RefCell::new(None) };
}

/// While it lives, [`drawn`] asks no card.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Seeded(Option<ChaCha8Rng>);

impl Drop for Seeded {
    fn drop(&mut self) {
        GENERATOR.set(self.0.take());
    }
}

impl Seeded {
    fn new(seed: u64) -> Self {
        Self(GENERATOR.replace(Some(ChaCha8Rng::seed_from_u64(seed))))
    }
}

/// Seeds what this thread draws: on the device, and for the program itself.
pub fn seeded(device: &Device, seed: u64) -> Seeded {
    device.seed(seed);
    Seeded::new(seed)
}

/// Numbers from 0 to 1, without 1, that the program itself needs. While [`seeded`] lives a card is not waited for; otherwise they
/// come from the generator of the device.
pub fn drawn(count: usize, device: &Device) -> Vec<f32> {
    context::draw(|| {
        let own = if is_eager(device) { None } else { drawn_here(count) };
        own.unwrap_or_else(|| {
            let device = device.clone().without_autodiff();
            let drawn = Tensor::<1>::random([count], Distribution::Uniform(0.0, 1.0), &device);
            drawn.into_data().iter::<f32>().collect()
        })
    })
}

fn drawn_here(count: usize) -> Option<Vec<f32>> {
    GENERATOR.with_borrow_mut(|it| {
        let generator = it.as_mut()?;
        Some((0..count).map(|_| generator.random()).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_here_depends_on_the_seed_alone() {
        assert_eq!(drawn_here(1), None);
        let draw = |seed| {
            let _seeded = Seeded::new(seed);
            drawn_here(1000)
        };
        let outer = Seeded::new(3);
        let (first, inner, then) = (drawn_here(1), [draw(1), draw(1), draw(2)], drawn_here(1));
        drop(outer);
        assert_eq!(inner[0], inner[1]);
        assert_ne!(inner[0], inner[2]);
        assert!(inner[0].iter().flatten().all(|it| (0.0..1.0).contains(it)));
        let _again = Seeded::new(3);
        assert_eq!([first, then], [drawn_here(1), drawn_here(1)]);
    }
}
