//! Pairs of factors of which one is frozen while training: what a method says of them (LoRA-FA).

use burn::module::ParamId;
use burn::tensor::Tensor;

/// Two factors of an update `B A`, of which `A` is frozen and the gradient of `B` projected.
#[derive(Debug, Clone)]
pub struct ProjectedPair {
    /// `A`, `[rank, in]`: frozen.
    pub frozen: ParamId,
    /// `B`, `[out, rank]`: trained.
    pub trained: ParamId,
    /// What the gradient of `B` is multiplied with from the right, `[rank, rank]`.
    pub projection: Tensor<2>,
}
