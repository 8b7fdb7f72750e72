//! LoRA-FA: `A` stays as it is, and the gradient of `B` becomes the one whose step comes closest to that of full
//! fine-tuning, `g (A Aᵀ)⁻¹ / s²`. Source: arXiv 2308.03303, `peft/optimizers/lorafa.py`.
//!
//! Since `A` is frozen, the inverse is computed once for a run. It is in double precision; the reference, which computes
//! it in every step, multiplies in bfloat16 wherever the machine can, on a CPU too.

use burn::module::Param;
use burn::tensor::Tensor;
use faer::{Mat, Side};
use peft_core::{AdapterSet, GradientProjection, PeftError, ProjectedPair, Result};

use crate::lora::config::LoraConfig;
use crate::lora::conv::LoraConv;
use crate::lora::embedding::LoraEmbedding;
use crate::lora::linear::LoraLinear;
use crate::lora::parameter::LoraParameter;
use crate::svd;

/// The reference adds this to the diagonal of `A Aᵀ`.
const RIDGE: f64 = 1e-8;

impl GradientProjection for LoraConfig {
    fn pairs(&self, sets: &[AdapterSet], name: &str) -> Result<Vec<ProjectedPair>> {
        pairs(sets, name)
    }
}

/// The factors of an adapter, with what the gradients of `B` are multiplied with.
fn pairs(sets: &[AdapterSet], name: &str) -> Result<Vec<ProjectedPair>> {
    let mut pairs = Vec::new();
    for set in sets {
        let Some(adapter) = set.get(name) else { continue };
        let refused = |reason: &str| {
            Err(PeftError::unsupported("LoRA-FA", format!("`{}` {reason}; train without it", set.param().module)))
        };
        if let Some(it) = adapter.downcast_ref::<LoraLinear>() {
            if it.lora_magnitude_vector.is_some() || it.lora_B.bias.is_some() {
                return refused("has DoRA or a `lora_bias`, which it does not know");
            }
            pairs.push((&it.lora_A.weight, &it.lora_B.weight, it.scale(), set));
        } else if let Some(it) = adapter.downcast_ref::<LoraEmbedding>() {
            if it.lora_magnitude_vector.is_some() {
                return refused("has DoRA, which it does not know");
            }
            pairs.push((&it.lora_embedding_A, &it.lora_embedding_B, it.scale(), set));
        } else if adapter.downcast_ref::<LoraConv<3>>().is_some()
            || adapter.downcast_ref::<LoraConv<4>>().is_some()
            || adapter.downcast_ref::<LoraConv<5>>().is_some()
        {
            return refused("is a convolution, which it does not know");
        } else if adapter.downcast_ref::<LoraParameter>().is_some() {
            return refused("has a bare parameter as target, which it does not know");
        }
    }
    pairs
        .into_iter()
        .map(|(a, b, scale, set)| {
            let projection = projection(a, scale).ok_or_else(|| {
                let reason = format!(
                    "`{}` starts with an A of zeros, which would stay so, and B would learn nothing; leave it out or \
                     start with init_lora_weights = false",
                    set.param().module
                );
                PeftError::unsupported("LoRA-FA", reason)
            })?;
            Ok(ProjectedPair { frozen: a.id, trained: b.id, projection })
        })
        .collect()
}

/// `(A Aᵀ + δ)⁻¹ / s²`, `[rank, rank]`, for an `A` that is not zero. Directions that `A` lacks are left out, as torch's
/// `pinv` does.
fn projection(a: &Param<Tensor<2>>, scale: f64) -> Option<Tensor<2>> {
    let device = a.lazy_device().without_autodiff();
    let a = svd::to_mat(&a.base());
    let rank = a.nrows();
    let a = Mat::from_fn(rank, a.ncols(), |row, column| f64::from(a[(row, column)]));
    if a.norm_max() == 0.0 {
        return None;
    }
    let gram = Mat::from_fn(rank, rank, |row, column| if row == column { RIDGE } else { 0.0 }) + &a * a.transpose();
    let eigen = gram.self_adjoint_eigen(Side::Lower).expect("the eigenvalues of a finite matrix converge");
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let largest = values.iter().fold(0.0f64, |max, it| max.max(*it));
    let cut = largest * rank as f64 * f64::from(f32::EPSILON);
    let inverse = |at: usize| if values[at] > cut { 1.0 / (values[at] * scale * scale) } else { 0.0 };
    let entry =
        |row, column| (0..rank).map(|at| vectors[(row, at)] * inverse(at) * vectors[(column, at)]).sum::<f64>() as f32;
    Some(svd::to_tensor(&Mat::from_fn(rank, rank, entry), &device))
}
