//! Sums of squares, and tensors by a number.

use burn::tensor::Tensor;

use super::{device, numbers, values};
use crate::ops;

#[test]
fn sums_of_squares_are_those_of_all_numbers() {
    // More than a kernel takes, rows that vectors divide and others, and views, which are no contiguous tensors.
    let parts: Vec<Tensor<2>> = (0..150).map(|at| numbers([1 + at % 7, 1 + at * 5 % 66], at)).collect();
    let parts = [parts, vec![numbers([40, 64], 2).transpose(), numbers([4200, 512], 3), numbers([1, 1], 4)]].concat();
    let wanted: f64 = parts.iter().flat_map(|it| values(it.clone())).map(|x| f64::from(x) * f64::from(x)).sum();
    let add = || {
        // What there is already counts, too.
        let mut sums = vec![numbers([1], 9)];
        let before: f64 = values(sums[0].clone()).into_iter().map(f64::from).sum();
        parts.iter().for_each(|part| ops::squares_onto(&mut sums, part.clone()));
        (sums, before)
    };
    for (sums, before) in [add(), ops::together(add)] {
        let sum = sums.into_iter().flat_map(values).map(f64::from).sum::<f64>() - before;
        assert!((sum - wanted).abs() < 1e-5 * wanted, "{sum} is not {wanted}");
    }
}

#[test]
fn tensors_are_scaled_by_the_number_that_is_given_with_each() {
    let parts: Vec<Tensor<2>> = (0..150).map(|at| numbers([1 + at % 7, 1 + at * 5 % 66], at)).collect();
    let parts = [parts, vec![numbers([40, 64], 2).transpose(), numbers([4200, 512], 3), numbers([0, 3], 4)]].concat();
    let factors = [-2.0f32, 0.5];
    let tensors = factors.map(|it| Tensor::<1>::from_data([it], &device()));
    let scale =
        || parts.iter().enumerate().map(|(at, it)| ops::scaled(it.clone(), &tensors[at % 2])).collect::<Vec<_>>();
    for all in [scale(), ops::together(scale)] {
        for (at, (part, scaled)) in parts.iter().zip(all).enumerate() {
            assert_eq!(values(part.clone()).iter().map(|x| factors[at % 2] * x).collect::<Vec<_>>(), values(scaled));
        }
    }
}
