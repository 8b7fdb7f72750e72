//! Low-rank updates.

use burn::tensor::Tensor;

use super::{check, device, numbers};
use crate::ops::{self, Layout, LowRank, plain};

#[test]
fn low_rank_updates_are_their_compositions() {
    let update = |a, b| LowRank { a, b, scale: 1.7, dropout: 0.0 };
    // Thin and wide ranks, few rows, ragged columns, and more terms than a run has.
    for (rows, d_in, d_out, rank) in [
        (3, 5, 7, 2),
        (1, 8, 3, 4),
        (40, 65, 130, 9),
        (33, 16, 700, 1),
        (40, 48, 50, 33),
        (70, 1590, 49, 20),
        (2, 40, 90, 3),
    ] {
        let inputs =
            [numbers([rows, d_out], 1), numbers([rows, d_in], 2), numbers([rank, d_in], 3), numbers([d_out, rank], 4)];
        let shrink = 0.5 / (d_in as f64 / 50.0).sqrt().max(1.0);
        let inputs = inputs.map(|it| it.mul_scalar(shrink));
        check(
            "low_rank_update",
            inputs.clone(),
            |[y, x, a, b]| ops::low_rank_update(y, x, update(a, b)),
            |[y, x, a, b]| plain::low_rank_update(y, x, a, b, 1.7),
        );
        let [_, x, a, b] = inputs;
        let weight = numbers([d_out, d_in], 5).mul_scalar(shrink);
        check(
            "linear_low_rank",
            [x.clone(), weight.clone(), a.clone(), b.clone()],
            |[x, w, a, b]| ops::linear_low_rank(x, w, None, Layout::OutIn, update(a, b)),
            |[x, w, a, b]| plain::low_rank_update(plain::linear(x.clone(), w.transpose(), None), x, a, b, 1.7),
        );
        check(
            "linear_low_rank with a bias",
            [x, weight.transpose(), a, b, numbers([1, d_out], 6)],
            |[x, w, a, b, bias]| ops::linear_low_rank(x, w, Some(bias.reshape([d_out])), Layout::InOut, update(a, b)),
            |[x, w, a, b, bias]| {
                let output = plain::linear(x.clone(), w, Some(bias.reshape([d_out])));
                plain::low_rank_update(output, x, a, b, 1.7)
            },
        );
    }
    let empty = |shape| Tensor::<2>::zeros(shape, &device());
    let y = ops::low_rank_update(empty([0, 3]), empty([0, 5]), update(empty([2, 5]), empty([3, 2])));
    assert_eq!(y.dims(), [0, 3]);
    let layer =
        ops::linear_low_rank(empty([0, 5]), empty([3, 5]), None, Layout::OutIn, update(empty([2, 5]), empty([3, 2])));
    assert_eq!(layer.dims(), [0, 3]);
}

#[test]
fn a_frozen_weight_below_an_update_gets_no_gradient() {
    let auto = |tensor: Tensor<2>| Tensor::from_inner(tensor);
    let x = auto(numbers([50, 40], 1)).require_grad();
    let w = auto(numbers([60, 40], 2));
    let [a, b] = [numbers([3, 40], 3), numbers([60, 3], 4)].map(|it| auto(it).require_grad());
    let update = LowRank { a: a.clone(), b: b.clone(), scale: 2.0, dropout: 0.0 };
    let grads = ops::linear_low_rank(x.clone(), w.clone(), None, Layout::OutIn, update).sum().backward();
    assert!(w.grad(&grads).is_none());
    assert!([x, a, b].iter().all(|it| it.grad(&grads).is_some()));
}
