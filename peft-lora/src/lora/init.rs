//! Where the factors of a linear layer start. Source: `peft/tuners/lora/layer.py`, the `*_init` functions.
//!
//! The reference's PiSSA and OLoRA subtract their start from the base weight. Here the base stays as it is and the
//! start is subtracted in the update, so that several adapters can share a base and disabling one gives it back bit
//! for bit. The function computed is the same.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use faer::Mat;
use peft_core::{Init, ParamSpec};

use crate::lora::data_init::calibration::InitialFactors;
use crate::lora::init_weights::InitWeights;
use crate::lora::loftq;
use crate::svd::{self, to_mat, to_tensor};

/// A pair of factors that is not trained.
#[derive(Module, Debug)]
pub struct Factors {
    /// `[rank, in]`
    pub a: Tensor<2>,
    /// `[out, rank]`
    pub b: Tensor<2>,
}

impl Factors {
    pub(crate) fn product(&self) -> Tensor<2> {
        self.b.clone().matmul(self.a.clone())
    }
}

/// Starting values, and what to subtract where they do not cancel.
pub(crate) struct Started {
    pub(crate) a: Param<Tensor<2>>,
    pub(crate) b: Param<Tensor<2>>,
    pub(crate) origin: Option<Factors>,
    /// What stands in the place of the base, `[out, in]`.
    pub(crate) quantised: Option<Tensor<2>>,
}

/// Starts a linear layer with `out` outputs from what data gave.
pub(crate) fn given(given: &InitialFactors, out: usize, init: &mut Init) -> Started {
    let device = init.device().clone().without_autodiff();
    let a = given.a.clone().to_device(&device);
    match &given.b {
        Some(b) => {
            let b = b.clone().to_device(&device);
            let (own_a, own_b) = (init.given(a.clone()), init.given(b.clone()));
            let origin = (!given.stays).then_some(Factors { a, b });
            Started { a: own_a, b: own_b, origin, quantised: None }
        }
        None => {
            let b = init.constant([out, a.dims()[0]], 0.0);
            Started { b, a: init.given(a), origin: None, quantised: None }
        }
    }
}

/// Starts a linear layer. `base` is `[out, in]` and must be there if [`InitWeights::reads_base`].
pub(crate) fn linear(
    start: &InitWeights,
    rank: usize,
    scale: f64,
    (d_in, d_out): (usize, usize),
    base: Option<&Tensor<2>>,
    param: &ParamSpec,
    init: &mut Init,
) -> Started {
    let (a, b) = match (start, base) {
        (InitWeights::Pissa(iterations), Some(base)) => {
            // The probe depends on the layer alone: a folder is loaded with the start that it was trained from.
            let mut probe = Init::new(0, "pissa", param, init.device());
            return kept(pissa(to_mat(base), rank, scale, *iterations, &mut probe), init);
        }
        (InitWeights::Loftq(loftq), Some(base)) => {
            let device = init.device().clone().without_autodiff();
            let (a, b, codes) = loftq.start(base, rank);
            let [a, b] = [a, b].map(|it| init.given(to_tensor(&it, &device)));
            let quantised = codes.map(|it| loftq::stored(&it, &device));
            return Started { a, b, origin: None, quantised };
        }
        (InitWeights::Olora, Some(base)) => return kept(olora(to_mat(base), rank), init),
        (InitWeights::Gaussian, _) => (init.normal([rank, d_in], 1.0 / rank as f64), init.constant([d_out, rank], 0.0)),
        (InitWeights::Random, _) => (init.kaiming([rank, d_in]), init.kaiming([d_out, rank])),
        (InitWeights::Orthogonal, _) => orthogonal(rank, d_in, d_out, init),
        _ => (init.kaiming([rank, d_in]), init.constant([d_out, rank], 0.0)),
    };
    Started { a, b, origin: None, quantised: None }
}

fn kept((a, b): (Mat<f32>, Mat<f32>), init: &mut Init) -> Started {
    let device = init.device().clone().without_autodiff();
    let origin = Factors { a: to_tensor(&a, &device), b: to_tensor(&b, &device) };
    let (a, b) = (init.given(origin.a.clone()), init.given(origin.b.clone()));
    Started { a, b, origin: Some(origin), quantised: None }
}

/// The principal singular directions: `A = √(S/s) Vᵀ`, `B = U √(S/s)` (arXiv 2404.02948).
fn pissa(
    weight: Mat<f32>,
    rank: usize,
    scale: f64,
    iterations: Option<usize>,
    init: &mut Init,
) -> (Mat<f32>, Mat<f32>) {
    let (u, s, v) = match iterations {
        None => svd::thin(&weight),
        Some(iterations) => randomised_svd(&weight, rank, iterations, init),
    };
    let root = |at: usize| (f64::from(s[at]) / scale).sqrt() as f32;
    let a = Mat::from_fn(rank, weight.ncols(), |row, col| root(row) * v[(col, row)]);
    let b = Mat::from_fn(weight.nrows(), rank, |row, col| u[(row, col)] * root(col));
    (a, b)
}

/// The first columns of Q and rows of R (arXiv 2406.01775).
///
/// The reference forgets to transpose the weight of a `Gpt2Linear`, which gives factors of the wrong shape there; here the
/// weight always comes as `[out, in]`.
fn olora(weight: Mat<f32>, rank: usize) -> (Mat<f32>, Mat<f32>) {
    let qr = weight.qr();
    let (q, r) = (qr.compute_thin_Q(), qr.thin_R());
    let a = Mat::from_fn(rank, weight.ncols(), |row, col| if row <= col { r[(row, col)] } else { 0.0 });
    let b = Mat::from_fn(weight.nrows(), rank, |row, col| q[(row, col)]);
    (a, b)
}

/// Factors in orthogonal halves of the rank, so that their product is zero although neither is.
fn orthogonal(rank: usize, d_in: usize, d_out: usize, init: &mut Init) -> (Param<Tensor<2>>, Param<Tensor<2>>) {
    let mut draw = |rows, cols| to_mat(&init.normal([rows, cols], 1.0).val());
    let q = draw(rank, rank).qr().compute_thin_Q();
    let (left, right) = (draw(d_in, rank / 2), draw(d_out, rank / 2));
    let odd = Mat::from_fn(rank / 2, rank, |row, col| q[(2 * row, col)]);
    let even = Mat::from_fn(rank / 2, rank, |row, col| q[(2 * row + 1, col)]);
    let a = (&left * &odd).transpose().to_owned();
    let b = &right * &even;
    let device = init.device().clone().without_autodiff();
    let tenth = |mat: &Mat<f32>| to_tensor(mat, &device).div_scalar(10.0);
    (init.given(tenth(&a)), init.given(tenth(&b)))
}

/// The leading part of an SVD by subspace iteration (arXiv 0909.4061, algorithms 4.4 and 5.1), as torch's
/// `svd_lowrank` does it.
fn randomised_svd(
    weight: &Mat<f32>,
    rank: usize,
    iterations: usize,
    init: &mut Init,
) -> (Mat<f32>, Vec<f32>, Mat<f32>) {
    let probe = to_mat(&init.normal([weight.ncols(), rank], 1.0).val());
    let mut basis = (weight * &probe).qr().compute_thin_Q();
    for _ in 0..iterations {
        let back = (weight.transpose() * &basis).qr().compute_thin_Q();
        basis = (weight * &back).qr().compute_thin_Q();
    }
    let (u, s, v) = svd::thin(&(basis.transpose() * weight));
    (&basis * &u, s, v)
}
