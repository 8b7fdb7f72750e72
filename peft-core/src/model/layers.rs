//! Bases that an adapter makes deeper: `layer_replication`.

use burn::module::Module;

use crate::config::peft_config::PeftConfig;
use crate::error::{PeftError, Result};
use crate::model::peft_model::PeftModel;
use crate::spec::ModelSpec;

const FIELD: &str = "layer_replication";

/// More layers than any model has. Each costs its adapters and some bookkeeping, and the list may come from a stranger.
const MOST_LAYERS: usize = 10_000;

/// The layers that a configuration wants, in their order; `None` if it leaves the base as it is.
///
/// # Errors
/// If a range is empty, or there are more layers than any model has.
pub fn layer_order(config: &dyn PeftConfig) -> Result<Option<Vec<usize>>> {
    let Some(ranges) = config.layer_replication().filter(|it| !it.is_empty()) else { return Ok(None) };
    let mut order = Vec::new();
    for [start, end] in ranges {
        if start >= end {
            let reason =
                format!("has the range [{start}, {end}], which holds no layer: the end is not part of a range");
            return Err(PeftError::config(FIELD, reason));
        }
        if end - start > MOST_LAYERS - order.len() {
            return Err(PeftError::config(FIELD, format!("makes more than {MOST_LAYERS} layers")));
        }
        order.extend(*start..*end);
    }
    Ok(Some(order))
}

impl<M: Module> PeftModel<M> {
    /// The base as a configuration wants its layers, and its description if that has changed.
    ///
    /// The repeated layers share the numbers of the base and have adapters of their own. As in the reference, the base stays
    /// deep when the adapter is switched off or deleted. Unlike there, every adapter of a deep base must ask for the same
    /// layers, and adapters that are there before are refused: the reference repeats the layers once more for each
    /// adapter, with those that are on them.
    ///
    /// Source: `replicate_layers` in `peft/tuners/tuners_utils.py`.
    pub(super) fn with_layers_of(&self, config: &dyn PeftConfig) -> Result<(M, Option<ModelSpec>)> {
        let wanted = layer_order(config)?;
        if wanted == self.spec.layer_order {
            return Ok((self.model.clone(), None));
        }
        let Some(wanted) = wanted.filter(|_| self.adapters.is_empty() && self.spec.layer_order.is_none()) else {
            let reason = "asks for other layers than the adapters that the model has, or had: load it into a model of \
                          its own";
            return Err(PeftError::config(FIELD, reason));
        };
        let Some(calls) = &self.calls else {
            let reason = "nothing is known of this model but its parameters: wrap one that is `Adaptable`";
            return Err(PeftError::unsupported(FIELD, reason));
        };
        let mut model = self.model.clone();
        (calls.repeat_layers)(&mut model, &wanted)?;
        let mut spec = self.spec.describing_changed((calls.spec)(&model));
        spec.layer_order = Some(wanted);
        Ok((model, Some(spec)))
    }

    /// The base with the layers that a configuration asks for, as a model without adapters.
    ///
    /// # Errors
    /// If its layers cannot be repeated, or there are adapters that do not want them to be.
    pub fn with_replicated_layers(mut self, config: &dyn PeftConfig) -> Result<Self> {
        let (model, spec) = self.with_layers_of(config)?;
        self.model = model;
        self.spec = spec.unwrap_or_else(|| std::mem::take(&mut self.spec));
        Ok(self)
    }
}
