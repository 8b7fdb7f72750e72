//! Which matrix is used after which.

use std::collections::HashMap;

/// What came next the last time, after two matrices in a row: in a backward pass another one follows than in a forward.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The last two.
    last: [Option<usize>; 2],
    next: HashMap<[Option<usize>; 2], usize>,
}

impl Order {
    /// Notes that a matrix is used, and says which one will be next.
    pub(super) fn used(&mut self, matrix: usize) -> Option<usize> {
        self.next.insert(self.last, matrix);
        self.last = [self.last[1], Some(matrix)];
        self.next.get(&self.last).copied()
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
