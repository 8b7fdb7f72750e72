//! Random numbers that stay the same: across platforms, thread counts and versions of `rand`.
//!
//! Everything random of a run (row order, batches, sampled tokens) is ChaCha8 with a seed and a stream number, so any
//! part of it can be computed again without replaying what came before.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The generator of one `stream` (an epoch, a row) under `seed`.
pub fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    // Not `seed_from_u64`: its expansion of the seed is a detail of `rand_core`.
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(stream);
    generator
}

/// A number in `0..bound`; 0 when `bound` is 0.
pub fn below(generator: &mut ChaCha8Rng, bound: usize) -> usize {
    // Multiply-shift: the bias is below 2⁻³² for any list that fits in memory.
    ((u128::from(generator.next_u64()) * bound as u128) >> 64) as usize
}

/// A number in `[0, 1)` with 53 random bits.
pub fn unit(generator: &mut ChaCha8Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Fisher–Yates from the back.
pub fn shuffle<T>(generator: &mut ChaCha8Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(generator, last + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_is_a_permutation_and_is_pinned() {
        let mut items: Vec<usize> = (0..10).collect();
        shuffle(&mut generator(42, 0), &mut items);
        // Written down from this implementation: a change here changes every user's batches.
        assert_eq!(items, [7, 6, 5, 1, 0, 4, 8, 9, 2, 3]);
        items.sort_unstable();
        assert_eq!(items, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn streams_and_seeds_differ() {
        let draw = |seed, stream| generator(seed, stream).next_u64();
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }

    #[test]
    fn units_are_spread_over_the_interval() {
        let mut generator = generator(7, 0);
        let draws: Vec<f64> = (0..4000).map(|_| unit(&mut generator)).collect();
        assert!(draws.iter().all(|it| (0.0..1.0).contains(it)));
        let mean = draws.iter().sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
