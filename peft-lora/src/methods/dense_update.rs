//! What LoHa and LoKr share: a dense update of linear layers and kernels, and their dropout. Source:
//! `peft/tuners/lycoris_utils.py`.

use burn::module::Module;
use burn::tensor::{Distribution, Tensor};
use peft_core::nn::Dropout;
use peft_core::{ParamKind, ParamSpec, PeftError, Result, ops};

/// Adds an update `[out, in · kernel]` to a weight, however that lies.
pub(crate) fn add<const D: usize>(weight: Tensor<D>, update: Tensor<2>, param: &ParamSpec) -> Tensor<D> {
    let dims = weight.dims();
    weight + param.out_in(update).reshape(dims)
}

/// FedPara's form of a kernel (proposition 3): `Σ_ij t[i, j, k] · a[i, out] · b[j, in]`.
///
/// # Shapes
/// - core: `[rank, rank, kernel…]`
/// - a: `[rank, out]`, b: `[rank, in]`
/// - output: `[out, in · kernel]`
pub(crate) fn from_core(core: Tensor<4>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [rank, _, height, width] = core.dims();
    let [out, inner, taps] = [a.dims()[1], b.dims()[1], height * width];
    let core = a.transpose().matmul(core.reshape([rank, rank * taps]));
    let core = core.reshape([out, rank, taps]).swap_dims(1, 2).reshape([out * taps, rank]);
    core.matmul(b).reshape([out, taps, inner]).swap_dims(1, 2).reshape([out, inner * taps])
}

/// `[out, in / groups, kernel…]` of a layer; a linear layer has no kernel.
pub(crate) fn shape(param: &ParamSpec, method: &str) -> Result<(usize, usize, Vec<usize>)> {
    let refuse = |what: &str| {
        let reason =
            format!("names `{}`, {what}; {method} adapts linear layers and kernels of 1 or 2 axes", param.module);
        Err(PeftError::config("target_modules", reason))
    };
    match param.kind {
        ParamKind::Linear(_) => {
            let (inner, out) = param.features();
            Ok((out, inner, Vec::new()))
        }
        ParamKind::Conv if param.shape.len() <= 4 => Ok((param.shape[0], param.shape[1], param.shape[2..].to_vec())),
        ParamKind::Conv => refuse("a kernel of three axes"),
        kind => refuse(&kind.to_string()),
    }
}

/// Whether the effective form is used: not for kernels of one element, which are linear layers.
pub(crate) fn is_effective(asked: bool, kernel: &[usize]) -> bool {
    asked && kernel.iter().any(|it| *it != 1)
}

/// Dropout of whole outputs of the update, and of the update as a whole.
#[derive(Module, Debug)]
pub(crate) struct UpdateDropout {
    rows: Dropout,
    whole: Dropout,
    rescale: bool,
}

impl UpdateDropout {
    /// `rescale` divides by the share of rows that are kept.
    pub(crate) fn new(rank_dropout: f64, module_dropout: f64, rescale: bool) -> Self {
        Self { rows: Dropout::new(rank_dropout), whole: Dropout::new(module_dropout), rescale }
    }

    /// An update `[out, ..]` with rows dropped while training.
    pub(crate) fn forward(&self, update: Tensor<2>) -> Tensor<2> {
        let mask = |size: usize, dropout: &Dropout| {
            ops::random([size, 1], Distribution::Bernoulli(1.0 - dropout.probability()), &update.device())
        };
        let mut dropped = update.clone();
        if self.rows.is_active() {
            let rows = mask(update.dims()[0], &self.rows);
            // If by chance no row is kept, nothing is left to divide.
            let kept = rows.clone().mean().clamp_min(1e-6).reshape([1, 1]);
            dropped = dropped * if self.rescale { rows / kept } else { rows };
        }
        if self.whole.is_active() {
            dropped = dropped * mask(1, &self.whole);
        }
        dropped
    }
}
