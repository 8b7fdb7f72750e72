//! The loss of a head.

use burn::tensor::{Int, Tensor, TensorData};

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
