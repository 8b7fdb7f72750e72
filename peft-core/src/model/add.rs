//! Adapters that are added to a model.

use std::collections::HashSet;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::adapter::{AnyAdapter, slots};
use crate::config::limits::check_numbers;
use crate::config::peft_config::PeftConfig;
use crate::error::{PeftError, Result};
use crate::files::safetensors::Stored;
use crate::model::peft_model::{AdapterInfo, DEFAULT_ADAPTER, PeftModel};
use crate::plan::plan::Plan;
use crate::sharding::is_packed;
use crate::spec::{ModelSpec, ParamSpec, PathStack, VisitParams, visit_params};

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
        let Planned { model, spec: untied, mut plan } = self.planned(name, config.as_ref())?;
        let spec = untied.as_ref().unwrap_or(&self.spec);
        check_unmatched(&mut plan, spec)?;
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
        // Labels belong to a head: an adapter that leaves it alone has none.
        let trains_head = plan.rows.iter().any(|it| self.spec.is_head(&it.param.module));
        let labels = self.spec.labels.clone().filter(|_| trains_head);
        self.adapters.insert(name.to_owned(), AdapterInfo { config, plan, trainable: true, labels, made_here: true });
        self.set_active(&[name])?;
        self.set_trainable(&[name])
    }

    /// Plans an adapter, on a base whose tied head is untied if the adapter names it.
    pub(super) fn planned(&self, name: &str, config: &dyn PeftConfig) -> Result<Planned<M>> {
        // A configuration that a program wrote has not been through the registry.
        check_numbers(&config.to_json()?)?;
        let planned = self.planned_on_head(name, config)?;
        planned.plan.check_memory(&self.device())?;
        check_precision(&planned)?;
        Ok(planned)
    }

    fn planned_on_head(&self, name: &str, config: &dyn PeftConfig) -> Result<Planned<M>> {
        let (model, changed) = self.with_layers_of(config)?;
        let base = changed.as_ref().unwrap_or(&self.spec);
        if let Some(calls) = self.calls.as_ref().filter(|it| (it.is_tied)(&model))
            && !config.keeps_head_tied(base)
        {
            let mut untied = model.clone();
            (calls.untie)(&mut untied);
            let spec = base.describing_changed((calls.spec)(&untied));
            let on_head = |plan: &Plan| {
                // The bias of a masked language model's head is trained where it is.
                let is_new = |it: &ParamSpec| it.name == "weight" && base.get(&it.path()).is_none();
                plan.rows.iter().any(|it| spec.is_head(&it.param.module) && is_new(&it.param))
            };
            if let Some(plan) = config.plan(&spec).ok().filter(on_head) {
                self.check_head_is_free(name)?;
                return Ok(Planned { model: untied, spec: Some(spec), plan });
            }
        }
        let plan = config.plan(base)?;
        Ok(Planned { model, spec: changed, plan })
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

/// Refuses an adapter that wants weights in full precision, where one of those that it is for is quantised.
fn check_precision<M: Module>(planned: &Planned<M>) -> Result<()> {
    struct FindPacked<'a> {
        among: HashSet<&'a str>,
        found: Option<String>,
    }
    impl VisitParams for FindPacked<'_> {
        fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
            // One that is not there yet comes from no file.
            if self.found.is_none() && !at.in_adapters() && param.is_initialized() && is_packed(param.base()) {
                self.found = Some(at.path()).filter(|it| self.among.contains(it.as_str()));
            }
        }
    }
    let Some(reason) = &planned.plan.wants_full_precision else { return Ok(()) };
    let paths: Vec<String> = planned.plan.rows.iter().map(|it| it.param.path()).collect();
    let mut find = FindPacked { among: paths.iter().map(String::as_str).collect(), found: None };
    visit_params(&planned.model, &mut find);
    match find.found {
        Some(path) => Err(PeftError::Invalid(format!("`{path}` is quantised: {reason}"))),
        None => Ok(()),
    }
}

/// Names of a list of targets that match nothing. The reference goes on without a word as long as one of the list matches,
/// for a list may be meant for several architectures. That is noted here; what is a slip of the pen is refused.
fn check_unmatched(plan: &mut Plan, spec: &ModelSpec) -> Result<()> {
    let mut leaves: Vec<&str> = spec.layers().map(|it| it.module.rsplit('.').next().unwrap_or(&it.module)).collect();
    leaves.sort_unstable();
    leaves.dedup();
    let meant = |name: &str| leaves.iter().copied().find(|leaf| is_slip(name, leaf));
    let slips: Vec<(&String, &str)> = plan.unmatched.iter().filter_map(|it| Some((it, meant(it)?))).collect();
    if plan.rows.is_empty() || !slips.is_empty() {
        let near = match slips.is_empty() {
            true => plan.unmatched.iter().flat_map(|it| crate::nearest(it, leaves.iter().copied())).collect(),
            false => slips.iter().map(|it| it.1.to_owned()).collect(),
        };
        let names: Vec<&String> =
            if slips.is_empty() { plan.unmatched.iter().collect() } else { slips.iter().map(|it| it.0).collect() };
        if names.is_empty() {
            return Ok(());
        }
        let available = leaves.iter().map(|it| (*it).to_owned()).collect();
        let targets = format!("{names:?}");
        return Err(PeftError::NothingMatched { field: "target_modules", targets, nearest: near, available });
    }
    if !plan.unmatched.is_empty() {
        let names = plan.unmatched.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ");
        let has = leaves.join(", ");
        plan.notes.push(format!(
            "target_modules {names} is in no layer of this model and is left out, as PEFT does; its layers are {has}"
        ));
    }
    Ok(())
}

/// Whether `name` is `leaf`, written with other dashes, with two letters swapped, or in a name of four or more with one too few or
/// too many. `k_proj` is none of `q_proj`: names that differ in a letter are often both meant.
fn is_slip(name: &str, leaf: &str) -> bool {
    let plain =
        |text: &str| text.chars().filter(|it| it.is_alphanumeric()).flat_map(char::to_lowercase).collect::<Vec<_>>();
    let (a, b) = (plain(name), plain(leaf));
    if a == b {
        return true;
    }
    let (short, long) = if a.len() < b.len() { (&a, &b) } else { (&b, &a) };
    let same = short.iter().zip(long).take_while(|(left, right)| left == right).count();
    match long.len() - short.len() {
        0 => same + 1 < a.len() && a[same] == b[same + 1] && a[same + 1] == b[same] && a[same + 2..] == b[same + 2..],
        1 => short.len() >= 4 && short[same..] == long[same + 1..] && long[same].is_alphabetic(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_slip;

    #[test]
    fn a_slip_is_told_from_a_name_of_another_architecture() {
        for (name, leaf) in [("qproj", "q_proj"), ("Q-Proj", "q_proj"), ("q_porj", "q_proj"), ("gate_prj", "gate_proj")]
        {
            assert!(is_slip(name, leaf), "{name} {leaf}");
        }
        for (name, leaf) in [
            ("k_proj", "q_proj"),
            ("w3", "w2"),
            ("fc", "fc1"),
            ("query_key_value", "query"),
            ("dense", "dense_h_to_4h"),
        ] {
            assert!(!is_slip(name, leaf), "{name} {leaf}");
        }
    }
}
