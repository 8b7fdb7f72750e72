//! Convolutions.

use burn::tensor::Tensor;

use super::{agree, check, numbers, values};
use crate::ops::{self, Convolution, plain};

/// Kernels that overlap, leave gaps, reach beyond the picture and go by groups; few places and many, one channel and more
/// than a tile has rows.
#[test]
fn convolutions_are_their_compositions() {
    let how = |stride, padding, groups| Convolution { stride, padding, groups };
    let cases = [
        // batch, in, out, picture, kernel
        ([2, 3, 5], [7, 6], [3, 3], how([1, 1], [1, 1], 1)),
        ([1, 4, 20], [9, 33], [3, 3], how([1, 1], [1, 1], 1)),
        ([2, 2, 9], [8, 5], [3, 2], how([2, 1], [0, 1], 1)),
        ([1, 3, 4], [11, 12], [7, 7], how([4, 4], [3, 3], 1)),
        ([2, 5, 3], [4, 6], [1, 1], how([1, 1], [0, 0], 1)),
        ([1, 5, 3], [5, 6], [1, 1], how([2, 2], [0, 0], 1)),
        ([1, 2, 3], [2, 3], [2, 3], how([1, 1], [3, 4], 1)),
        ([2, 6, 6], [5, 7], [3, 3], how([1, 1], [1, 1], 6)),
        ([2, 6, 4], [6, 5], [2, 3], how([2, 3], [1, 0], 2)),
        ([1, 6, 12], [6, 5], [3, 3], how([1, 1], [2, 0], 3)),
        ([2, 3, 7], [1, 40], [1, 3], how([1, 2], [0, 1], 1)),
        ([1, 3, 2], [3, 4], [1, 1], how([1, 1], [1, 2], 1)),
        // Fewer places than channels of the output: the gradient is added up.
        ([1, 3, 40], [3, 4], [3, 3], how([1, 1], [1, 1], 1)),
        ([1, 180, 8], [10, 12], [3, 3], how([1, 1], [1, 1], 1)),
    ];
    for ([batch, d_input, d_output], [height, width], [rows, columns], how) in cases {
        let name = format!("convolution of {d_input}x{height}x{width} by {d_output}x{rows}x{columns}, {how:?}");
        let bias = numbers([1, 1, 1, d_output], 3);
        let inputs = [
            numbers([batch, d_input, height, width], 1),
            numbers([d_output, d_input / how.groups, rows, columns], 2),
            bias,
        ];
        let line = move |bias: Tensor<4>| bias.reshape([d_output]);
        check(
            &name,
            inputs.clone(),
            |[x, w, b]| ops::conv2d(x, w, Some(line(b)), how),
            |[x, w, b]| plain::conv2d(x, w, Some(line(b)), how),
        );
        let [x, w, _] = inputs;
        agree(
            &format!("{name} without a bias"),
            &[x, w],
            |[x, w]| ops::conv2d(x, w, None, how),
            |[x, w]| plain::conv2d(x, w, None, how),
        );
    }
}

/// Frozen kernels get no gradient, and the picture's is the same.
#[test]
fn frozen_kernels_leave_the_gradient_of_the_picture_alone() {
    let how = Convolution { stride: [1, 1], padding: [1, 1], groups: 1 };
    let (x, w) = (numbers([1, 3, 5, 6], 1), numbers([4, 3, 3, 3], 2));
    let gradient = |w: Tensor<4>| {
        let x = Tensor::from_inner(x.clone()).require_grad();
        let grads = ops::conv2d(x.clone(), w.clone(), None, how).square().sum().backward();
        (values(x.grad(&grads).expect("a gradient")), w.grad(&grads).is_some())
    };
    let (frozen, trained) = (gradient(Tensor::from_inner(w.clone())), gradient(Tensor::from_inner(w).require_grad()));
    assert_eq!((&frozen.0, frozen.1), (&trained.0, false));
    assert!(trained.1);
}
