//! Random choices that depend on a seed and a round alone (SplitMix64).

use std::cell::Cell;

pub(super) struct Random(Cell<u64>);

impl Random {
    pub(super) fn new(kind: &str, seed: u64, round: u64) -> Self {
        let kind = kind.bytes().fold(0, |sum: u64, it| sum.wrapping_mul(31).wrapping_add(it.into()));
        let random = Self(Cell::new(seed ^ kind.rotate_left(32)));
        let start = random.next() ^ round;
        random.0.set(start);
        random
    }

    pub(super) fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    pub(super) fn below(&self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// From 0 to 1.
    pub(super) fn share(&self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn one<'a, T>(&self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub(super) fn word(&self, of: &[&'static str]) -> &'static str {
        of[self.below(of.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_differ_and_can_be_seen_again() {
        let first = |kind, seed, round| Random::new(kind, seed, round).next();
        assert_eq!(first("a", 1, 2), first("a", 1, 2));
        let all = [first("a", 1, 2), first("a", 1, 3), first("a", 2, 2), first("b", 1, 2)];
        assert!((0..4).all(|at| (0..at).all(|other| all[at] != all[other])));
    }
}
