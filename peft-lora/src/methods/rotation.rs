//! Orthogonal matrices in blocks, as OFT and BOFT use them.

use burn::tensor::{Tensor, TensorData};
use faer::Mat;
use faer::linalg::solvers::DenseSolveCore;

/// `x · blockdiag(R)`: `[rows, blocks · b]` by `[blocks, b, b]`.
pub(crate) fn turn(x: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    let [rows, width] = x.dims();
    let [count, size, _] = blocks.dims();
    let turned = x.reshape([rows, count, size]).swap_dims(0, 1).matmul(blocks);
    turned.swap_dims(0, 1).reshape([rows, width])
}

/// Skew-symmetric matrices from what stands above the diagonal, row by row: `[blocks, b (b − 1) / 2]` to
/// `[blocks, b, b]`.
pub(crate) fn skew(above: Tensor<2>, size: usize) -> Tensor<3> {
    let count = above.dims()[0];
    let mut places = vec![0i64; size * size];
    let mut signs = vec![0f32; size * size];
    let mut next = 0;
    for row in 0..size {
        for column in row + 1..size {
            (places[row * size + column], signs[row * size + column]) = (next, 1.0);
            (places[column * size + row], signs[column * size + row]) = (next, -1.0);
            next += 1;
        }
    }
    let device = above.device();
    if next == 0 {
        return Tensor::zeros([count, size, size], &device);
    }
    let places = Tensor::from_data(TensorData::new(places, [size * size]), &device);
    let signs = Tensor::<1>::from_data(TensorData::new(signs, [size * size]), &device);
    (above.select(1, places) * signs.unsqueeze()).reshape([count, size, size])
}

/// Cayley's transform `(I − Q)(I + Q)⁻¹` of every block: orthogonal if `Q` is skew-symmetric.
///
/// The inverse comes from the host and is a constant of the graph. One step of Newton, `M (2 I − (I + Q) M)`, leaves its
/// value as it is and has the gradient of the inverse.
pub(crate) fn cayley(skew: Tensor<3>) -> Tensor<3> {
    let [count, size, _] = skew.dims();
    let device = skew.device();
    let identity = Tensor::<2>::eye(size, &device).unsqueeze::<3>();
    let inverse = inverse_of_one_plus(&skew.clone().detach());
    let inverse = Tensor::from_data(TensorData::new(inverse, [count, size, size]), &device);
    let newton = identity.clone().mul_scalar(2.0) - (identity.clone() + skew.clone()).matmul(inverse.clone());
    (identity - skew).matmul(inverse.matmul(newton))
}

/// `(I + Q)⁻¹`, which exists for every skew-symmetric `Q`.
fn inverse_of_one_plus(skew: &Tensor<3>) -> Vec<f32> {
    let [count, size, _] = skew.dims();
    let values: Vec<f32> = skew.to_data().iter::<f32>().collect();
    let mut inverse = Vec::with_capacity(values.len());
    for block in 0..count {
        let at = |row: usize, column: usize| f64::from(values[(block * size + row) * size + column]);
        let one = |row, column| if row == column { 1.0 } else { 0.0 };
        let matrix = Mat::from_fn(size, size, |row, column| one(row, column) + at(row, column));
        let inverted = matrix.partial_piv_lu().inverse();
        inverse.extend((0..size * size).map(|it| inverted[(it / size, it % size)] as f32));
    }
    inverse
}

/// Cayley's transform as Neumann's series, as the reference cuts it off: `I + 2 Q + 2 Q² + … + Qⁿ`. Its sign is that of
/// `(I + Q)(I − Q)⁻¹`, the inverse of [`cayley`]; three and four terms give the same.
pub(crate) fn cayley_neumann(skew: Tensor<3>, terms: usize) -> Tensor<3> {
    let size = skew.dims()[1];
    let [count, _, _] = skew.dims();
    let identity = Tensor::<2>::eye(size, &skew.device()).unsqueeze::<3>().repeat_dim(0, count);
    if terms < 2 {
        return identity;
    }
    let mut sum = identity + skew.clone().mul_scalar(2.0);
    if terms < 3 {
        return sum;
    }
    let mut power = skew.clone().matmul(skew.clone());
    sum = sum + power.clone().mul_scalar(2.0);
    for _ in 3..terms - 1 {
        power = power.matmul(skew.clone());
        sum = sum + power.clone().mul_scalar(2.0);
    }
    sum + power.matmul(skew)
}
