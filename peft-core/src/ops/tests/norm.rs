//! Norms.

use burn::tensor::Tensor;

use super::{SHAPES, check, numbers};
use crate::ops::{self, plain};

#[test]
fn norms_are_their_compositions() {
    for shape in SHAPES.into_iter().filter(|it| it[2] > 1) {
        let flat = |it: Tensor<3>| it.slice([0..1, 0..1, 0..shape[2]]).reshape([shape[2]]);
        let inputs = || [numbers(shape, 1), numbers([1, 1, shape[2]], 2), numbers([1, 1, shape[2]], 3)];
        check(
            "layer_norm",
            inputs(),
            |[x, w, b]| ops::layer_norm(x, flat(w), flat(b), 1e-5),
            |[x, w, b]| plain::layer_norm(x, flat(w), flat(b), 1e-5),
        );
        let [x, w, _] = inputs();
        check("rms_norm", [x, w], |[x, w]| ops::rms_norm(x, flat(w), 1e-6), |[x, w]| plain::rms_norm(x, flat(w), 1e-6));
    }
}
