//! Pairs of factors of which one is frozen while training: what a method says of them (LoRA-FA).

use burn::module::ParamId;
use burn::tensor::Tensor;

use crate::adapter::AdapterSet;
use crate::error::Result;

/// What a configuration says to an optimizer that freezes one factor and projects the gradient of the other.
pub trait GradientProjection {
    /// The pairs of factors of the adapter `name`; `sets` are those of its model.
    ///
    /// # Errors
    /// If a layer of the adapter has no such pair.
    fn pairs(&self, sets: &[AdapterSet], name: &str) -> Result<Vec<ProjectedPair>>;
}

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
