//! What the configurations of this crate share beyond [`peft_core::config::fields`]: how they are read, planned and written.

use std::sync::Arc;

use peft_core::config::fields::{self, Bias, SavedModules};
use peft_core::{
    Indices, Layout, ModelSpec, Names, ParamKind, ParamSpec, PeftError, Plan, PlanRow, Result, Selection,
    refuse_unknown,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::default_targets;

/// The common fields of one configuration.
pub(crate) struct Common<'a> {
    /// The method's name, for people.
    pub(crate) method: &'static str,
    pub(crate) target_modules: &'a Option<Names>,
    pub(crate) exclude_modules: &'a Option<Names>,
    pub(crate) layers_to_transform: &'a Option<Indices>,
    pub(crate) layers_pattern: &'a Option<Names>,
    pub(crate) modules_to_save: &'a Option<Vec<String>>,
    pub(crate) task_type: &'a Option<String>,
    pub(crate) bias: Bias,
    /// How this method spells [`Bias::AdaptedOnly`].
    pub(crate) bias_only: &'static str,
    pub(crate) other: &'a Map<String, Value>,
}

impl Common<'_> {
    fn saved(&self) -> SavedModules {
        SavedModules::new(self.modules_to_save.as_ref(), self.task_type.as_deref())
    }

    /// The layers that are meant. `defaults` says what a model type has where it differs from LoRA's table.
    pub(crate) fn spec(
        &self,
        spec: &ModelSpec,
        defaults: impl Fn(&str) -> Option<&'static [&'static str]>,
    ) -> Result<(Vec<Arc<ParamSpec>>, Vec<String>)> {
        refuse_unknown(self.other, &[])?;
        let selection = Selection {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
            modules_to_save: self.saved().names(),
        };
        let model_type = spec.model_type.as_deref();
        let defaults = model_type.and_then(|it| defaults(it).or_else(|| default_targets::target_modules(it)));
        let selected = selection.resolve(spec, defaults)?;
        Ok((selected.params, selected.unmatched))
    }

    /// The plan: a row for every layer that is meant, then the biases and the modules that are saved whole.
    pub(crate) fn plan(
        &self,
        spec: &ModelSpec,
        defaults: impl Fn(&str) -> Option<&'static [&'static str]>,
        row: impl Fn(&Arc<ParamSpec>) -> Result<PlanRow>,
    ) -> Result<Plan> {
        self.plan_of(spec, self.spec(spec, defaults)?, row)
    }

    /// The plan for layers that [`Common::spec`] gave.
    pub(crate) fn plan_of(
        &self,
        spec: &ModelSpec,
        (selected, unmatched): (Vec<Arc<ParamSpec>>, Vec<String>),
        row: impl Fn(&Arc<ParamSpec>) -> Result<PlanRow>,
    ) -> Result<Plan> {
        let mut plan = Plan::new(self.method, spec);
        plan.rows = selected.iter().map(row).collect::<Result<_>>()?;
        let saved = self.saved();
        self.bias.add_to(&mut plan, spec, &saved);
        saved.add_to(&mut plan, spec)?;
        plan.unmatched = unmatched;
        Ok(plan)
    }

    /// The configuration as `adapter_config.json` holds it.
    pub(crate) fn to_json(&self, config: &impl Serialize) -> Result<Map<String, Value>> {
        let mut json = fields::config_json(config, &self.saved())?;
        if self.bias == Bias::AdaptedOnly {
            json.insert("bias".into(), self.bias_only.into());
        }
        Ok(json)
    }

    /// Refuses layers that are not linear.
    pub(crate) fn only_linear(&self, param: &ParamSpec) -> Result<()> {
        if matches!(param.kind, ParamKind::Linear(_)) {
            return Ok(());
        }
        let reason = format!("names `{}`, {}; {} adapts linear layers only", param.module, param.kind, self.method);
        Err(PeftError::config("target_modules", reason))
    }

    /// Says so where the reference would refuse what is done here: it has this method for `nn.Linear`, not for `Gpt2Linear`.
    pub(crate) fn note_conv1d(&self, plan: &mut Plan) {
        if plan
            .rows
            .iter()
            .any(|it| it.param.owner == "Gpt2Linear" && it.param.kind == ParamKind::Linear(Layout::InOut))
        {
            plan.not_in_reference.push(format!("PEFT has no {} for Conv1D layers", self.method));
        }
    }
}
