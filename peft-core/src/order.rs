//! In which order matrices are used: the same in every step, forwards and then backwards.

use std::collections::HashMap;
use std::hash::Hash;

/// What came next the last time, after two matrices in a row: in a backward pass another one follows than in a forward.
#[derive(Debug)]
pub(crate) struct Order<T> {
    /// The last two.
    last: [Option<T>; 2],
    next: HashMap<[Option<T>; 2], T>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self { last: [None, None], next: HashMap::new() }
    }
}

impl<T: Copy + Eq + Hash> Order<T> {
    /// Notes that a matrix is used, and says which one will be next.
    pub(crate) fn used(&mut self, matrix: T) -> Option<T> {
        self.next.insert(self.last, matrix);
        self.last = [self.last[1], Some(matrix)];
        self.following().next()
    }

    /// Those that will be next, as far as they are known; where the order comes back to itself, without an end.
    pub(crate) fn following(&self) -> impl Iterator<Item = T> {
        let mut last = self.last;
        std::iter::from_fn(move || {
            let next = *self.next.get(&last)?;
            last = [last[1], Some(next)];
            Some(next)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_pass_is_known() {
        let step = [0, 1, 2, 3, 3, 2, 1];
        let mut order = Order::default();
        for matrix in step {
            order.used(matrix);
        }
        order.used(0);
        let known: Vec<_> = step[1..].iter().map(|it| order.used(*it)).collect();
        assert_eq!(known, [2, 3, 3, 2, 1, 0].map(Some));
    }
}
