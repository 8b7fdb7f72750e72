//! Singular values, for factors of a given rank.

use burn::tensor::{Tensor, TensorData};
use faer::Mat;

/// A matrix on the host.
pub(crate) fn to_mat(tensor: &Tensor<2>) -> Mat<f32> {
    let [rows, cols] = tensor.dims();
    let data = tensor.to_data().convert::<f32>();
    let values = data.as_slice::<f32>().expect("converted to f32");
    Mat::from_fn(rows, cols, |row, col| values[row * cols + col])
}

/// A matrix on a device.
pub(crate) fn to_tensor(mat: &Mat<f32>, device: &burn::tensor::Device) -> Tensor<2> {
    let (rows, cols) = (mat.nrows(), mat.ncols());
    let values: Vec<f32> = (0..rows * cols).map(|at| mat[(at / cols, at % cols)]).collect();
    Tensor::from_data(TensorData::new(values, [rows, cols]), device)
}

/// `U S Vᵀ` with as few columns as the smaller side has.
pub(crate) fn thin(weight: &Mat<f32>) -> (Mat<f32>, Vec<f32>, Mat<f32>) {
    let svd = weight.thin_svd().expect("the singular values of a finite matrix converge");
    let values = svd.S().column_vector().iter().copied().collect();
    (svd.U().to_owned(), values, svd.V().to_owned())
}

/// The best factors of this rank: `A = Vᵀ` `[rank, in]`, `B = U S` `[out, rank]`, and the singular values of all of it.
/// A matrix of lower rank gives fewer rows.
pub(crate) fn factors(update: &Mat<f32>, rank: usize) -> (Mat<f32>, Mat<f32>, Vec<f32>) {
    let svd = thin(update);
    let (a, b) = leading(&svd, rank);
    (a, b, svd.1)
}

/// The same of a matrix that is decomposed already.
pub(crate) fn leading((u, s, v): &(Mat<f32>, Vec<f32>, Mat<f32>), rank: usize) -> (Mat<f32>, Mat<f32>) {
    let rank = rank.min(s.len());
    let a = Mat::from_fn(rank, v.nrows(), |row, column| v[(column, row)]);
    let b = Mat::from_fn(u.nrows(), rank, |row, column| u[(row, column)] * s[column]);
    (a, b)
}
