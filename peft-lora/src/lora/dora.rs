//! DoRA's norms. Source: arXiv 2402.09353 and `peft/tuners/lora/dora.py`.
//!
//! The reference forms `W + s·BA` in every forward to take the norm of its rows. The norm needs no such matrix:
//! `‖w + δ‖² = ‖w‖² + 2⟨w, δ⟩ + ‖δ‖²`, and both other terms come from products as thin as the rank.

use burn::tensor::Tensor;
use peft_core::{Layout, ops};

/// `coefficient · B A`
#[derive(Debug, Clone)]
pub(crate) struct Term {
    /// `[rank, in]`
    pub(crate) a: Tensor<2>,
    /// `[out, rank]`
    pub(crate) b: Tensor<2>,
    pub(crate) coefficient: f64,
}

/// Norm of every row of `base + Σ terms`, `[out, in]` to `[out]`, outside the graph: section 4.3 of the paper treats
/// the norm as a constant.
pub(crate) fn row_norms(base: Tensor<2>, terms: &[Term]) -> Tensor<1> {
    // Not `detach`: what that makes of a parameter still asks for a gradient, and a graph with the base in it is kept.
    let base = base.without_autodiff();
    // Σ c·BA is itself one product of stacked factors.
    let a = Tensor::cat(terms.iter().map(|it| it.a.clone().without_autodiff()).collect(), 0);
    let b = Tensor::cat(terms.iter().map(|it| it.b.clone().without_autodiff().mul_scalar(it.coefficient)).collect(), 1);
    let own = (base.clone() * base.clone()).sum_dim(1);
    let cross = (ops::linear(base, a.clone(), None, Layout::OutIn) * b.clone()).sum_dim(1).mul_scalar(2.0);
    let update = (b.clone().matmul(a.clone().matmul(a.transpose())) * b).sum_dim(1);
    (own + cross + update).clamp_min(0.0).sqrt().squeeze_dim::<1>(1)
}
