//! What an adapter makes of each parameter, as a difference of matrices.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::adapter::AdapterSet;
use crate::adapter::slots;
use crate::erased::Ranked;
use crate::error::Result;
use crate::model::peft_model::PeftModel;
use crate::ops;
use crate::plan::plan::BaseTensor;
use crate::plan::replacement::is_replacement;
use crate::spec::{ModelSpec, ParamKind, ParamSpec, PathStack, VisitParams, visit_params};

/// What one adapter does to one parameter.
#[derive(Debug, Clone)]
pub struct Update {
    /// The parameter.
    pub param: Arc<ParamSpec>,
    /// What is added to the frozen value: `[out, in]` of a linear layer, `[d_model, rows]` of a table,
    /// `[out, in · kernel]` of a convolution, `[1, n]` of anything else.
    pub delta: Tensor<2>,
    /// Whether the bias of the layer changes too, which it has or would have to get.
    pub touches_bias: bool,
    /// The key in the file of a copy that is trained whole, as `modules_to_save` and trained biases are.
    pub replacement: Option<String>,
    /// Why this is not all that the adapter does, if it is not: a prompt changes no weight.
    pub unmergeable: Option<&'static str>,
}

impl<M: Module> PeftModel<M> {
    /// What an adapter alone, with its strength, adds to the frozen parameters.
    ///
    /// # Errors
    /// If there is no adapter of this name.
    pub fn updates(&self, name: &str) -> Result<Vec<Update>> {
        self.adapter_tensors(name)?;
        let model = self.model().valid();
        let sets = slots::collect(&model).into_iter().filter(|it| it.get(name).is_some());
        let sets = sets.map(|it| (it.param().path(), it)).collect();
        let mut visitor = Updates { name, spec: self.spec(), sets, found: Vec::new() };
        visit_params(&model, &mut visitor);
        Ok(visitor.found)
    }
}

struct Updates<'a> {
    name: &'a str,
    spec: &'a ModelSpec,
    sets: HashMap<String, AdapterSet>,
    found: Vec<Update>,
}

impl VisitParams for Updates<'_> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
        if at.in_adapters() {
            return;
        }
        let Some(set) = self.sets.remove(&at.path()) else { return };
        let Some(adapter) = set.get(self.name) else { return };
        let (param, base) = (set.param().clone(), ops::to_f32(param.base()));
        let after = adapter.weight(base.clone(), &base, &param);
        let delta = BaseTensor::new(param.clone(), Ranked::new(D, after - base)).matrix();
        let delta = if param.kind == ParamKind::Embedding { delta.transpose() } else { delta };
        let replacement = is_replacement(adapter, D).then(|| adapter.file_key(&param, "value"));
        // What would act on a bias has nothing to act on where there is none.
        let has_bias = || self.spec.get(&format!("{}.bias", param.module)).is_some();
        let touches_bias = adapter.touches_bias() && (adapter.needs_bias() || has_bias());
        let unmergeable = adapter.unmergeable();
        self.found.push(Update { param, delta, touches_bias, replacement, unmergeable });
    }
}
