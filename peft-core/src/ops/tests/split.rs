//! Parts of a tensor.

use burn::tensor::Tensor;

use super::{check, device, numbers};
use crate::ops::{self, plain};

#[test]
fn parts_are_views_and_their_gradients_meet_in_one_tensor() {
    // All parts, some of them, one twice, and the whole beside its parts.
    fn mix<const N: usize>(parts: [Tensor<3>; N], whole: Tensor<3>, which: usize) -> Tensor<3> {
        let [a, b] = [0, N - 1].map(|at| parts[at].clone());
        match which {
            0 => Tensor::cat(parts.into_iter().rev().map(|it| it * 2.0).collect(), 2),
            1 => b.clone() * b,
            2 => Tensor::cat(vec![a.clone().sin(), whole * 3.0, a], 2),
            _ => a.swap_dims(0, 1),
        }
    }
    for which in 0..4 {
        let inputs = || [numbers([3, 5, 12], 1)];
        check(
            "split",
            inputs(),
            |[x]| mix(ops::split(x.clone(), [5, 3, 4]), x, which),
            |[x]| mix(plain::split(x.clone(), [5, 3, 4]), x, which),
        );
        // Not a leaf, and large enough for several tasks.
        check(
            "split of a product",
            [numbers([4, 70, 120], 1)],
            |[x]| mix(ops::split(x.clone() * 0.5, [40, 40, 40]), x, which),
            |[x]| mix(plain::split(x.clone() * 0.5, [40, 40, 40]), x, which),
        );
    }
    let [a, b] = ops::split(Tensor::<2>::zeros([0, 5], &device()), [2, 3]);
    assert_eq!((a.dims(), b.dims()), ([0, 2], [0, 3]));
}
