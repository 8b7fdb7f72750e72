//! Rotary position embedding.

use burn::tensor::{Int, Tensor};

use super::{check, device, numbers};
use crate::ops::{Pairing, RotaryTable};

#[test]
fn rotations_are_their_compositions() {
    for pairing in [Pairing::HalfSplit, Pairing::Neighbours] {
        for (shape, batches, half) in [([2, 3, 5, 8], 2, 4), ([1, 2, 7, 10], 1, 3), ([3, 4, 40, 66], 1, 33)] {
            let positions = Tensor::<1, Int>::arange(3..(3 + batches * shape[2]) as i64, &device());
            let frequencies: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i)).collect();
            let positions = positions.reshape([batches, shape[2]]);
            let table = RotaryTable::new(positions, &frequencies, 1.3, pairing);
            let x = || [numbers(shape, 6)];
            check("rotate", x(), |[x]| table.rotate(x), |[x]| table.rotate_plain(x));
            // As attention calls it: heads are the second axis by a view.
            let [x] = x();
            let x = [x.swap_dims(1, 2).reshape([shape[0], shape[2], shape[1], shape[3]])];
            check(
                "rotate a view",
                x,
                |[x]| table.rotate(x.swap_dims(1, 2)),
                |[x]| table.rotate_plain(x.swap_dims(1, 2)),
            );
        }
    }
}
