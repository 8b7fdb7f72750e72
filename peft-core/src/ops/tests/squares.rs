//! Sums of squares.

use burn::tensor::Tensor;

use super::{numbers, values};
use crate::ops::{self};

#[test]
fn sums_of_squares_are_those_of_all_numbers() {
    let mut sums = Vec::new();
    let parts: [Tensor<2>; 3] = [numbers([3, 17], 1), numbers([40, 64], 2), numbers([1, 1], 3)];
    let wanted: f64 = parts.iter().flat_map(|it| values(it.clone())).map(|x| f64::from(x) * f64::from(x)).sum();
    // A view is no contiguous tensor.
    let [a, b, c] = parts;
    for part in [a, b.transpose(), c] {
        ops::squares_onto(&mut sums, part);
    }
    let sum: f64 = sums.into_iter().flat_map(values).map(f64::from).sum();
    assert!((sum - wanted).abs() < 1e-5 * wanted, "{sum} is not {wanted}");
}
