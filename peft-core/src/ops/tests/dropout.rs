//! Dropout.

use burn::tensor::Tensor;

use super::{device, values};
use crate::ops::{self, Layout, LowRank};

/// One test, since the generator of the device is shared.
#[test]
fn dropout_is_a_mask_that_the_backward_pass_remembers() {
    let device = device();
    let ones = || Tensor::<2>::ones([300, 200], &device);
    let drawn: Vec<Vec<f32>> = (0..2).map(|_| values(ops::dropout(ones(), 0.1))).collect();
    for mask in &drawn {
        assert!(mask.iter().all(|x| *x == 0.0 || (*x - 1.0 / 0.9).abs() < 1e-6));
        let dropped = mask.iter().filter(|x| **x == 0.0).count() as f64 / mask.len() as f64;
        // Four standard deviations.
        assert!((dropped - 0.1).abs() < 0.005, "{dropped}");
        // Neighbours are independent: a pair is dropped in one case of a hundred.
        for distance in [1, 2, 16, 200] {
            let pairs = mask.iter().zip(&mask[distance..]).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
            let share = pairs as f64 / (mask.len() - distance) as f64;
            assert!((share - 0.01).abs() < 0.002, "{share} at {distance}");
        }
    }
    assert_ne!(drawn[0], drawn[1]);

    let x = ones().autodiff().require_grad();
    let y = ops::dropout(x.clone(), 0.4);
    let grads = y.clone().sum().backward();
    assert_eq!(values(x.grad(&grads).expect("a gradient")), values(y.inner()));

    // With dropout before the product: of ones times ones, the output counts what was kept.
    let [y, x, a, b] =
        [[4, 3], [4, 50], [1, 50], [3, 1]].map(|shape| Tensor::<2>::ones(shape, &device).autodiff().require_grad());
    let update = |a, b| LowRank { a, b, scale: 1.0, dropout: 0.5 };
    let output = ops::low_rank_update(y.clone(), x.clone(), update(a.clone(), b.clone()));
    let grads = output.clone().sum().backward();
    let kept = values(x.grad(&grads).expect("a gradient"));
    let counted: Vec<f32> = kept.chunks(50).map(|row| row.iter().sum::<f32>() / 3.0).collect();
    for (row, kept) in values(output.inner()).chunks(3).zip(counted) {
        assert!(kept > 0.0 && row.iter().all(|x| (x - 1.0 - kept).abs() < 1e-4));
    }
    let by_column = values(a.grad(&grads).expect("a gradient"));
    for (column, gradient) in by_column.into_iter().enumerate() {
        let sum: f32 = kept.iter().skip(column).step_by(50).sum();
        assert!((gradient - sum).abs() < 1e-4);
    }

    // The same below a layer whose weight counts every input: it is not dropped, and its gradient is not either.
    let weight = Tensor::<2>::ones([3, 50], &device).autodiff();
    let output = ops::linear_low_rank(x.clone(), weight, None, Layout::OutIn, update(a, b));
    let grads = output.clone().sum().backward();
    let slopes = values(x.grad(&grads).expect("a gradient"));
    assert!(slopes.iter().all(|it| (it - 3.0).abs() < 1e-4 || (it - 9.0).abs() < 1e-4));
    for (row, slopes) in values(output.inner()).chunks(3).zip(slopes.chunks(50)) {
        let kept: f32 = slopes.iter().map(|it| (it - 3.0) / 3.0).sum();
        assert!(kept > 0.0 && row.iter().all(|x| (x - 50.0 - kept).abs() < 1e-3));
    }
}
