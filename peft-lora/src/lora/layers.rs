//! The layers that LoRA adapts, with their ranks.

use std::sync::Arc;

use peft_core::{ModelSpec, ParamSpec, Patterns, PeftError, Result};

use crate::default_targets;
use crate::lora::config::LoraConfig;

/// Ranks and alphas by name.
pub(crate) type Scales<'a> = (Patterns<'a, usize>, Patterns<'a, f64>);

/// A layer to adapt.
pub(crate) struct Layer {
    pub(crate) param: Arc<ParamSpec>,
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) scale: f64,
}

impl LoraConfig {
    /// The layers that are meant, with their ranks, and the names that mean none.
    pub(crate) fn layers(&self, spec: &ModelSpec) -> Result<(Vec<Layer>, Vec<String>)> {
        let defaults = spec.model_type.as_deref().and_then(default_targets::target_modules);
        let selected = self.selection().resolve(spec, defaults)?;
        let scales = self.scales()?;
        let layers = selected.params.iter().map(|it| self.layer(&scales, it, &it.module)).collect::<Result<_>>()?;
        Ok((layers, selected.unmatched))
    }

    pub(crate) fn scales(&self) -> Result<Scales<'_>> {
        let ranks = Patterns::new("rank_pattern", &self.rank_pattern)?;
        Ok((ranks, Patterns::new("alpha_pattern", &self.alpha_pattern)?))
    }

    /// A parameter with its rank and alpha, which go by `name`.
    pub(crate) fn layer(&self, (ranks, alphas): &Scales, param: &Arc<ParamSpec>, name: &str) -> Result<Layer> {
        let rank = ranks.get(name)?.copied().unwrap_or(self.r);
        let alpha = alphas.get(name)?.copied().unwrap_or(self.lora_alpha);
        if rank == 0 {
            return Err(PeftError::config("rank_pattern", format!("gives `{name}` the rank 0")));
        }
        let scale = alpha / if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Layer { param: param.clone(), rank, alpha, scale })
    }
}
