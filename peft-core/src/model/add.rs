//! Adapters that are added to a model.

use burn::module::Module;

use crate::adapter::{AnyAdapter, slots};
use crate::config::peft_config::PeftConfig;
use crate::error::{PeftError, Result};
use crate::files::safetensors::Stored;
use crate::model::peft_model::{AdapterInfo, DEFAULT_ADAPTER, PeftModel};
use crate::plan::plan::Plan;
use crate::spec::ModelSpec;

/// A base that takes in an adapter, and what the adapter will do to it.
pub(super) struct Planned<M> {
    pub(super) model: M,
    /// Another description of the base, if its head was untied.
    pub(super) spec: Option<ModelSpec>,
    pub(super) plan: Plan,
}

impl<M: Module> PeftModel<M> {
    /// Adds an adapter with the name [`DEFAULT_ADAPTER`] and fresh values, and makes it the active, trainable one.
    ///
    /// # Errors
    /// As [`PeftModel::add_adapter_as`].
    pub fn add_adapter(&mut self, config: impl PeftConfig + 'static) -> Result<&Plan> {
        self.add_adapter_as(DEFAULT_ADAPTER, config, 0)
    }

    /// Adds an adapter with fresh values and makes it the active, trainable one. `seed` decides what is drawn at random.
    ///
    /// A configuration without a `task_type` takes that of the model.
    ///
    /// # Errors
    /// If the name is taken, or the configuration does not go with the model; then nothing has changed.
    pub fn add_adapter_as(&mut self, name: &str, mut config: impl PeftConfig + 'static, seed: u64) -> Result<&Plan> {
        if let Some(task_type) = config.task_type_mut() {
            *task_type = task_type.take().or_else(|| self.spec.task_type.clone());
        }
        self.add(name, Box::new(config), seed)?;
        Ok(&self.adapters[name].plan)
    }

    /// Adds an adapter with given tensors, keyed as in its file, and leaves alone what is active and what is trained.
    ///
    /// # Errors
    /// As [`PeftModel::add_adapter_as`], or if a tensor is missing, unexpected or misshapen; then nothing has changed.
    pub fn add_adapter_with(
        &mut self,
        name: &str,
        config: impl PeftConfig + 'static,
        tensors: Vec<Stored>,
    ) -> Result<()> {
        let before = (self.model.clone(), self.spec.clone());
        let active = self.active.clone();
        let trained = self.adapters.iter().filter(|(_, it)| it.trainable).map(|(name, _)| name.clone());
        let trained: Vec<String> = trained.collect();
        self.add(name, Box::new(config), 0)?;
        let assigned = self.assign_adapter(name, tensors);
        if assigned.is_err() {
            self.adapters.shift_remove(name);
            (self.model, self.spec) = before;
        }
        self.set_active(&active)?;
        self.set_trainable(&trained)?;
        assigned
    }

    fn add(&mut self, name: &str, config: Box<dyn PeftConfig>, seed: u64) -> Result<()> {
        let Planned { model, spec: untied, plan } = self.planned(name, config.as_ref())?;
        let spec = untied.as_ref().unwrap_or(&self.spec);
        if !plan.unmatched.is_empty() {
            let leaves: Vec<&str> =
                spec.layers().map(|it| it.module.rsplit('.').next().unwrap_or(&it.module)).collect();
            let near = plan.unmatched.iter().flat_map(|it| crate::nearest(it, leaves.iter().copied())).collect();
            let mut available: Vec<String> = leaves.iter().map(|it| (*it).to_owned()).collect();
            available.sort();
            available.dedup();
            let targets = format!("{:?}", plan.unmatched);
            return Err(PeftError::NothingMatched { field: "target_modules", targets, nearest: near, available });
        }
        if !plan.unmatched_parameters.is_empty() {
            return Err(crate::no_parameter_matched(&plan.unmatched_parameters, spec));
        }
        if let Some(reason) = plan.missing_data {
            return Err(PeftError::Invalid(format!("the adapter `{name}` cannot start: {reason}")));
        }
        self.check_free(name)?;
        if plan.trainable() == 0 {
            return Err(PeftError::config("target_modules", "leaves the adapter without a single parameter"));
        }
        self.model = plan.apply(model, name, seed, &self.device());
        self.spec = untied.unwrap_or_else(|| std::mem::take(&mut self.spec));
        self.adapters.insert(name.to_owned(), AdapterInfo { config, plan, trainable: true, labels: None });
        self.set_active(&[name])?;
        self.set_trainable(&[name])
    }

    /// Plans an adapter, on a base whose tied head is untied if the adapter names it.
    pub(super) fn planned(&self, name: &str, config: &dyn PeftConfig) -> Result<Planned<M>> {
        if let Some(head) = self.head.as_ref().filter(|it| (it.is_tied)(&self.model))
            && !config.keeps_head_tied(&self.spec)
        {
            let mut model = self.model.clone();
            (head.untie)(&mut model);
            let mut spec = (head.spec)(&model);
            (spec.base_name, spec.task_type) = (self.spec.base_name.clone(), self.spec.task_type.clone());
            let on_head = |plan: &Plan| {
                plan.rows.iter().any(|it| spec.is_head(&it.param.module) && self.spec.get(&it.param.path()).is_none())
            };
            if let Some(plan) = config.plan(&spec).ok().filter(on_head) {
                self.check_head_is_free(name)?;
                return Ok(Planned { model, spec: Some(spec), plan });
            }
        }
        Ok(Planned { model: self.model.clone(), spec: None, plan: config.plan(&self.spec)? })
    }

    /// Refuses to untie a head that an adapter on the embedding matrix moves along.
    fn check_head_is_free(&self, name: &str) -> Result<()> {
        for set in slots::collect(&self.model) {
            let moves = |it: &&String| set.get(it).is_some_and(AnyAdapter::moves_tied_head);
            if let Some(other) = self.adapters.keys().find(moves) {
                let reason = format!(
                    "`{name}` names the head, but `{other}` trains it together with the embedding matrix it is tied to: \
                     delete `{other}` first, or load the two into models of their own"
                );
                return Err(PeftError::Invalid(reason));
            }
        }
        Ok(())
    }
}
