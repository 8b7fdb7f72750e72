//! Singular values, for factors of a given rank.

use burn::tensor::{Tensor, TensorData};
use faer::Mat;
use peft_core::{ModelSpec, PeftError, Result};

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

/// Refuses a rank of 0, and one that no layer of the model has a use for: beyond the full rank of a layer there are only
/// zeros to write, which is fine for the smaller ones.
pub(crate) fn check_rank(rank: usize, spec: &ModelSpec) -> Result<()> {
    let limit = spec.layers().map(|it| it.features()).map(|(d_in, d_out)| d_in + d_out).max().unwrap_or(1);
    if (1..=limit).contains(&rank) {
        return Ok(());
    }
    let reason = format!("is {rank}, expected from 1 to {limit}: no layer of this model is larger");
    Err(PeftError::config("rank", reason))
}

/// Whether no element is NaN or infinite.
pub(crate) fn is_finite<T: Copy + Into<f64>>(mat: &Mat<T>) -> bool {
    mat.col_iter().all(|column| column.iter().all(|it| (*it).into().is_finite()))
}

/// `U S Vᵀ` with as few columns as the smaller side has.
///
/// Of a matrix that is not finite all three are NaN: what is made of them is then refused where any other number that is
/// not finite is, by the name of its tensor.
pub(crate) fn thin(weight: &Mat<f32>) -> (Mat<f32>, Vec<f32>, Mat<f32>) {
    match Some(weight).filter(|it| is_finite(it)).and_then(|it| it.thin_svd().ok()) {
        Some(svd) => (svd.U().to_owned(), svd.S().column_vector().iter().copied().collect(), svd.V().to_owned()),
        None => {
            let small = weight.nrows().min(weight.ncols());
            let nan = |rows, columns| Mat::from_fn(rows, columns, |_, _| f32::NAN);
            (nan(weight.nrows(), small), vec![f32::NAN; small], nan(weight.ncols(), small))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_stays_so_and_stops_nobody() {
        for bad in [f32::NAN, f32::INFINITY] {
            let weight = Mat::from_fn(3, 5, |row, column| if row == column { bad } else { 1.0 });
            let (a, b, values) = factors(&weight, 2);
            assert_eq!((a.nrows(), a.ncols(), b.nrows(), b.ncols(), values.len()), (2, 5, 3, 2, 3));
            assert!(!is_finite(&a) && !is_finite(&b));
        }
    }
}
