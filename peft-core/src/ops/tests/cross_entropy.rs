//! The loss of a head.

use burn::tensor::{Int, Tensor, TensorData};

use super::linear::{exact, flipped, rounded};
use super::{check, device, is_on_flex, numbers, values};
use crate::ops::{self, plain};

#[test]
fn the_loss_of_a_head_is_its_composition() {
    // The last one is cut into chunks.
    for (rows, classes, d_model) in [(1, 2, 3), (7, 101, 16), (50, 101, 4)] {
        let all = |row: usize| (row * 37 % classes) as i64;
        let some = |row: usize| if row % 3 == 1 { ops::IGNORE_INDEX } else { all(row) };
        for (labels, smoothing) in [(&all as &dyn Fn(usize) -> i64, 0.0), (&some, 0.0), (&some, 0.1)] {
            let labels: Vec<i64> = (0..rows).map(labels).collect();
            let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [rows]), &device());
            let inputs = [numbers([rows, d_model], 1), numbers([classes, d_model], 2)];
            let plain = |[h, w]: [Tensor<2>; 2]| {
                plain::cross_entropy(h.matmul(w.transpose()), labels.clone(), smoothing).unsqueeze::<2>()
            };
            let fused =
                |[h, w]: [Tensor<2>; 2]| ops::linear_cross_entropy(h, w, labels.clone(), smoothing).unsqueeze::<2>();
            check("linear_cross_entropy", inputs, fused, plain);
        }
    }
}

#[test]
fn a_loss_in_bf16_is_that_of_rounded_factors() {
    if ops::check_bf16(&device()).is_err() {
        return;
    }
    // The second one is cut into chunks on cards.
    for (rows, classes, d_model) in [(9, 33, 64), (40, 130, 48)] {
        let (hidden, weight) = (numbers([rows, d_model], 1), numbers([classes, d_model], 2));
        let label = |row: usize| row * 37 % classes;
        let labels: Vec<i64> = (0..rows).map(|row| label(row) as i64).collect();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [rows]), &device());
        let right = flipped(&rounded(weight.clone()), [classes, d_model]);
        let logits = exact(&rounded(hidden.clone()), &right, [rows, d_model, classes]);
        let loss_of = |row: usize| {
            let logits = &logits[row * classes..][..classes];
            logits.iter().map(|it| it.exp()).sum::<f64>().ln() - logits[label(row)]
        };
        let wanted = (0..rows).map(loss_of).sum::<f64>() / rows as f64;
        let weight = Tensor::<2>::from_inner(weight);
        let loss = |bf16: bool| {
            let tracked = Tensor::<2>::from_inner(hidden.clone()).require_grad();
            let run = || ops::linear_cross_entropy(tracked.clone(), weight.clone(), labels.clone(), 0.0);
            let loss = if bf16 { ops::within_bf16(&device(), run).expect("bf16") } else { run() };
            let grads = loss.backward();
            (f64::from(values(loss.inner())[0]), values(tracked.grad(&grads).expect("a gradient")))
        };
        let ((ours, to_hidden), (single, single_to_hidden)) = (loss(true), loss(false));
        assert!((ours - wanted).abs() < 1e-5 * wanted, "{ours} is not {wanted}");
        assert!((single - wanted).abs() > 1e-4 * wanted, "rounding shows: {single}");
        let largest = single_to_hidden.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (x, y) in to_hidden.iter().zip(&single_to_hidden) {
            assert!((x - y).abs() < 2e-2 * largest, "{x} is not {y} (largest {largest})");
        }
        assert_ne!(to_hidden, single_to_hidden);
    }
}

/// A card does not wait until somebody has looked at the labels.
#[test]
fn a_label_that_is_no_class_does_not_pass() {
    if is_on_flex() || !ops::has_adamw_step(&numbers([1], 1)) {
        return;
    }
    for label in [5, -1] {
        let labels = Tensor::<1, Int>::from_data(TensorData::new(vec![1, label], [2]), &device());
        let loss = ops::linear_cross_entropy(numbers([2, 3], 1), numbers([5, 3], 2), labels, 0.0);
        assert!(values(loss)[0].is_nan());
    }
}

#[test]
fn a_loss_of_nothing_is_not_a_number() {
    let labels = Tensor::<1, Int>::from_data(TensorData::new(vec![ops::IGNORE_INDEX; 2], [2]), &device());
    let loss = ops::linear_cross_entropy(numbers([2, 3], 1), numbers([5, 3], 2), labels, 0.0);
    assert!(values(loss)[0].is_nan());
}
