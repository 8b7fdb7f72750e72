//! Settings of starts from data.

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `eva_config`, field for field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaConfig {
    /// How many times its share of ranks a layer may get at most; 1 leaves the ranks as they are.
    pub rho: f64,
    /// Cosine between a direction and the one a batch before from which it counts as found.
    pub tau: f64,
    /// Whether the caller should leave out positions without a label.
    pub use_label_mask: bool,
    /// The label of such positions.
    pub label_mask_value: i64,
    /// Divide directions by the root of their singular value. Once: the reference does so again for every layer that
    /// shares its input with others.
    pub whiten: bool,
    /// Change alphas along with ranks, so that scales stay.
    pub adjust_scaling_factors: bool,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for EvaConfig {
    fn default() -> Self {
        Self {
            rho: 2.0,
            tau: 0.99,
            use_label_mask: true,
            label_mask_value: -100,
            whiten: false,
            adjust_scaling_factors: true,
            other: Map::new(),
        }
    }
}

impl EvaConfig {
    pub(crate) fn check(&self) -> Result<()> {
        if self.rho.is_nan() || self.rho < 1.0 {
            return Err(PeftError::config("eva_config", format!("has rho = {}, expected at least 1", self.rho)));
        }
        if !(0.0..=1.0).contains(&self.tau) {
            return Err(PeftError::config("eva_config", format!("has tau = {}, expected 0 ≤ tau ≤ 1", self.tau)));
        }
        Ok(())
    }
}

/// `corda_config`, field for field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CordaConfig {
    /// Where the reference caches the outcome. Not read.
    pub cache_file: Option<String>,
    /// Where the reference caches the covariances. Not read.
    pub covariance_file: Option<String>,
    /// Which directions are trained.
    pub corda_method: CordaMethod,
    /// Whether the reference shows progress. Not read.
    pub verbose: bool,
    /// Whether covariances are in half precision. Not known here.
    pub use_float16_for_covariance: bool,
    /// Whether the reference clears up. Not read.
    pub prune_temporary_fields: bool,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `corda_method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CordaMethod {
    /// Instruction-previewed: the directions that matter most for the data are trained.
    Ipm,
    /// Knowledge-preserved: those that matter least.
    Kpm,
}

impl Default for CordaConfig {
    fn default() -> Self {
        Self {
            cache_file: None,
            covariance_file: None,
            corda_method: CordaMethod::Ipm,
            verbose: false,
            use_float16_for_covariance: false,
            prune_temporary_fields: true,
            other: Map::new(),
        }
    }
}
