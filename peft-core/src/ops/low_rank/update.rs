//! What a low-rank update is.

use burn::tensor::Tensor;

/// A low-rank update `scale · (drop(x) Aᵀ) Bᵀ` and how it is applied.
#[derive(Debug)]
pub struct LowRank {
    /// `[rank, in]`
    pub a: Tensor<2>,
    /// `[out, rank]`
    pub b: Tensor<2>,
    /// What the product is multiplied by.
    pub scale: f64,
    /// Share of the input of `a` that is dropped; 0 is none.
    pub dropout: f64,
}
