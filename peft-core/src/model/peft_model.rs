//! A base model and its named adapters.

use std::collections::HashMap;
use std::ops::Deref;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Gradients};
use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::adapter::mixed_batch;
use crate::adapter::slots;
use crate::adapter::{AdapterSet, AnyAdapter};
use crate::config::peft_config::{MethodRegistry, PeftConfig};
use crate::context::Misuse;
use crate::error::{LoadReport, PeftError, Result};
use crate::files::checkpoint::{Stored, TensorFile};
use crate::files::folder::{AdapterFolder, ENCODER_FILE, Labels, WEIGHTS_FILE, write_folder_with_encoder};
use crate::model::state;
use crate::model::values::{HALF_PRECISION, is_close, value_of};
use crate::plan::plan::Plan;
use crate::plan::replacement::is_replacement;
use crate::spec::{Adaptable, ModelSpec, ParamKind, ParamSpec, frozen_path};

/// The name that an adapter gets when nobody gives one; the reference's.
pub const DEFAULT_ADAPTER: &str = "default";

/// Release of the reference whose files and numbers this workspace follows.
pub const REFERENCE_VERSION: &str = "0.21.2";

/// An adapter's configuration and what came of it.
#[derive(Debug)]
pub struct AdapterInfo {
    /// The configuration.
    pub config: Box<dyn PeftConfig>,
    /// What it did.
    pub plan: Plan,
    /// Whether its parameters are trained.
    pub trainable: bool,
    /// What the outputs of a head that it brings mean; written beside it.
    pub labels: Option<Labels>,
}

/// A base model with named adapters.
///
/// The base is never written: merging gives a new model, and going back is keeping the old one. The model inside is an
/// ordinary Burn module whose parameters carry the adapters, so it can be trained, cloned and recorded as such.
#[derive(Debug)]
pub struct PeftModel<M> {
    model: M,
    spec: ModelSpec,
    adapters: IndexMap<String, AdapterInfo>,
    active: Vec<String>,
    enabled: bool,
    head: Option<HeadOf<M>>,
    /// Whether a saved folder holds the embedding matrices, as one must whose vocabulary was resized. `None` decides by the
    /// `vocab_size` in the `config.json` of [`ModelSpec::base_name`], if that is a folder.
    pub save_embedding_layers: Option<bool>,
}

/// What [`Adaptable`] says of a model's head, for a [`PeftModel`] whose methods know its model as a [`Module`] only.
#[derive(Debug, Clone, Copy)]
struct HeadOf<M> {
    is_tied: fn(&M) -> bool,
    untie: fn(&mut M),
    spec: fn(&M) -> ModelSpec,
}

/// A base that takes in an adapter, and what the adapter will do to it.
struct Planned<M> {
    model: M,
    /// Another description of the base, if its head was untied.
    spec: Option<ModelSpec>,
    plan: Plan,
}

impl<M> Deref for PeftModel<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.model
    }
}

impl<M: Module> PeftModel<M> {
    /// Wraps a model. What it says of itself picks default targets, places prompts and names heads; adapters lie on the
    /// device of its parameters.
    ///
    /// A tied head is untied when an adapter names it. A module that is not [`Adaptable`] goes into
    /// [`PeftModel::of_module`], or with a description of yours into [`PeftModel::with_spec`].
    pub fn new(model: M) -> Self
    where
        M: Adaptable,
    {
        let spec = model.spec();
        let head = HeadOf { is_tied: M::is_tied, untie: M::untie_head, spec: M::spec };
        Self { head: Some(head), ..Self::with_spec(model, spec) }
    }

    /// Wraps any module, of which nothing is known but its parameters: configurations must name their targets.
    pub fn of_module(model: M) -> Self {
        let spec = ModelSpec::of(&model);
        Self::with_spec(model, spec)
    }

    /// Wraps any module with what a planner should know about it: [`ModelSpec::of`], and whatever else you can say.
    pub fn with_spec(model: M, spec: ModelSpec) -> Self {
        Self {
            model,
            spec,
            adapters: IndexMap::new(),
            active: Vec::new(),
            enabled: true,
            head: None,
            save_embedding_layers: None,
        }
    }

    /// Where adapters are made and trained: the device of the model's parameters, with autodiff.
    pub fn device(&self) -> Device {
        self.model.devices().into_iter().next().unwrap_or_default().autodiff()
    }

    /// Says where the base came from, a folder or a hub id: `base_model_name_or_path` of the folders that are saved.
    pub fn set_base_name(&mut self, base_name: impl Into<String>) {
        self.spec.base_name = Some(base_name.into());
    }

    /// Says what the model is for, as `adapter_config.json` spells it: `CAUSAL_LM`. Adapters that are added later, and
    /// folders that are saved, take it where their configuration has none.
    pub fn set_task_type(&mut self, task_type: impl Into<String>) {
        self.spec.task_type = Some(task_type.into());
    }

    /// Another base, while there are no adapters.
    pub(crate) fn replace_base(&mut self, model: M, spec: ModelSpec) {
        (self.model, self.spec) = (model, spec);
    }

    /// The model with its adapters.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Replaces the configuration of an adapter by one that has changed in training.
    pub fn set_config(&mut self, name: &str, config: Box<dyn PeftConfig>) -> Result<()> {
        self.check_known(name)?;
        self.adapters[name].config = config;
        Ok(())
    }

    /// Says what the outputs of the head mean that an adapter brings.
    pub fn set_labels(&mut self, name: &str, labels: Option<Labels>) -> Result<()> {
        self.check_known(name)?;
        self.adapters[name].labels = labels;
        Ok(())
    }

    /// Gives the model back with its adapters.
    pub fn into_model(self) -> M {
        self.model
    }

    /// Puts a model back that was trained in the meantime: the same model with other values.
    pub fn set_model(&mut self, model: M) {
        self.model = model;
    }

    /// What the base model consists of.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The adapters by name, in the order in which they were added.
    pub fn adapters(&self) -> &IndexMap<String, AdapterInfo> {
        &self.adapters
    }

    /// Names of the active adapters, in order of application.
    pub fn active(&self) -> &[String] {
        &self.active
    }

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
    fn planned(&self, name: &str, config: &dyn PeftConfig) -> Result<Planned<M>> {
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

    fn check_free(&self, name: &str) -> Result<()> {
        if name.is_empty() || name.contains('.') {
            return Err(PeftError::AdapterName(format!("`{name}` cannot name an adapter: use letters, no dots")));
        }
        if self.adapters.contains_key(name) {
            return Err(PeftError::AdapterName(format!(
                "there is an adapter `{name}` already; delete it or take another name"
            )));
        }
        Ok(())
    }

    fn check_known(&self, name: &str) -> Result<()> {
        if self.adapters.contains_key(name) {
            return Ok(());
        }
        let known: Vec<&str> = self.adapters.keys().map(String::as_str).collect();
        let hint =
            if known.is_empty() { "none is loaded".to_owned() } else { format!("there are {}", known.join(", ")) };
        Err(PeftError::AdapterName(format!("there is no adapter `{name}`; {hint}")))
    }

    /// Loads an adapter folder and adds the adapter, active beside those that are active already.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshapen, or anything else does not fit; then nothing has changed.
    pub fn load_adapter(&mut self, folder: impl AsRef<Path>, name: &str, methods: &MethodRegistry) -> Result<()> {
        let folder = AdapterFolder::open(folder)?;
        self.check_free(name)?;
        let config = methods.parse(folder.config.clone())?;
        let Planned { model, spec, mut plan } = self.planned(name, config.as_ref())?;
        let spec = spec.unwrap_or_else(|| self.spec.clone());
        if folder.encoder.is_none() {
            plan = plan.without_encoders();
        }
        let model = plan.apply(model, name, 0, &self.device());
        let model = filled(model, &spec, name, &folder, config.as_ref())?;
        let wrong = slots::collect(&model).iter().find_map(|set| set.get(name)?.check(set.param()).err());
        if let Some(reason) = wrong {
            return Err(PeftError::bad_file(&folder.path, reason));
        }
        let mut active = self.active.clone();
        active.push(name.to_owned());
        check_together(&model, &active)?;
        self.model = slots::edit(model, |set| {
            set.map_adapters(|it, adapter| if it == name { adapter.set_trainable(true) } else { adapter })
        });
        self.spec = spec;
        let info = AdapterInfo { config, plan, trainable: true, labels: folder.labels };
        self.adapters.insert(name.to_owned(), info);
        self.set_active(&active)
    }

    /// Overwrites the tensors of an adapter with those of a folder that [`PeftModel::save_adapter`] wrote for it.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshapen; then nothing has changed.
    pub fn restore_adapter(&mut self, name: &str, folder: &AdapterFolder) -> Result<()> {
        self.check_known(name)?;
        let config = self.adapters[name].config.as_ref();
        if let Some(tensors) = config.read_back(&folder.tensors)? {
            return self.assign_adapter(name, tensors);
        }
        self.model = filled(self.model.clone(), &self.spec, name, folder, config)?;
        Ok(())
    }

    /// Chooses the adapters that act, in order of application.
    ///
    /// # Errors
    /// If there is no such adapter, or two of them train the same module or bias whole, so that one would hide the other.
    pub fn set_active<S: AsRef<str>>(&mut self, names: &[S]) -> Result<()> {
        for name in names {
            self.check_known(name.as_ref())?;
        }
        let names: Vec<String> = names.iter().map(|it| it.as_ref().to_owned()).collect();
        check_together(&self.model, &names)?;
        self.active = names;
        self.apply_activation();
        Ok(())
    }

    /// Lets the adapters act, or not: without them the base computes, bit for bit.
    pub fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.apply_activation();
    }

    fn apply_activation(&mut self) {
        let active: &[String] = if self.enabled { &self.active } else { &[] };
        self.model = slots::edit(self.model.clone(), |set| set.activated(active));
    }

    /// Chooses the adapters whose parameters are trained; the others are frozen.
    pub fn set_trainable<S: AsRef<str>>(&mut self, names: &[S]) -> Result<()> {
        for name in names {
            self.check_known(name.as_ref())?;
        }
        let wanted = |it: &str| names.iter().any(|name| name.as_ref() == it);
        for (name, info) in &mut self.adapters {
            info.trainable = wanted(name);
        }
        self.model = slots::edit(self.model.clone(), |set| {
            set.map_adapters(|name, adapter| adapter.set_trainable(wanted(name)))
        });
        Ok(())
    }

    /// Scales what an adapter does: 1 is as trained, 0 nothing. Live and merged.
    ///
    /// Whatever the method, the layer's output is taken between those without and with the adapter, or beyond. For LoRA
    /// that is a change of its scale. Modules that are saved whole stay as they are.
    ///
    /// # Errors
    /// If there is no such adapter, the number is not finite, or the adapter is a prompt, which is there or is not.
    pub fn set_strength(&mut self, name: &str, strength: f64) -> Result<()> {
        self.check_known(name)?;
        if !strength.is_finite() {
            return Err(PeftError::config("strength", format!("is {strength}, expected a finite number")));
        }
        let is_prompt = |set: &AdapterSet| set.get(name).is_some_and(|it| it.unmergeable().is_some());
        if strength != 1.0 && slots::collect(&self.model).iter().any(is_prompt) {
            let reason = "it is a prompt, which is there or is not: deactivate it instead";
            return Err(PeftError::unsupported(format!("a strength of {strength} for `{name}`"), reason));
        }
        self.model = slots::edit(self.model.clone(), |set| {
            let rank = set.param().shape.len();
            set.map_adapters(|it, adapter| {
                if it == name && !is_replacement(&adapter, rank) { adapter.with_strength(strength) } else { adapter }
            })
        });
        Ok(())
    }

    /// Gives an adapter another name.
    ///
    /// # Errors
    /// If there is no such adapter, or the new name is taken.
    pub fn rename_adapter(&mut self, old: &str, new: &str) -> Result<()> {
        self.check_known(old)?;
        self.check_free(new)?;
        let renamed = |it: String| if it == old { new.to_owned() } else { it };
        self.adapters = std::mem::take(&mut self.adapters).into_iter().map(|(name, it)| (renamed(name), it)).collect();
        self.active = std::mem::take(&mut self.active).into_iter().map(renamed).collect();
        self.model = slots::edit(self.model.clone(), |set| set.renamed(old, new));
        Ok(())
    }

    /// Whether adapters act at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// A forward in which every row of the batch uses its own adapter, or none: the reference's `adapter_names`.
    ///
    /// Rows are grouped, so that each costs its own adapter only, however many are loaded; what is active does not matter.
    /// The leading axis of every layer's input must count the rows, or a multiple of them. A program that repeats, reorders
    /// or drops rows within `run`, as beam search does, says so by [`reorder_batch`](crate::forward::reorder_batch).
    ///
    /// # Errors
    /// If a name is unknown, adapters are disabled, the batch has another number of rows, rows have different prompts, or an
    /// adapter changes a parameter that a layer reads for the whole batch. Layers of ours do not; one of `burn::nn` does
    /// unless it is computed through [`by_rows`](crate::forward::by_rows).
    pub fn with_adapter_names<R>(&self, rows: &[Option<&str>], run: impl FnOnce(&M) -> R) -> Result<R> {
        for name in rows.iter().flatten() {
            self.check_known(name)?;
        }
        if rows.is_empty() || !self.enabled {
            let reason = "rows with adapters of their own need at least one row, and adapters that are not disabled";
            return Err(PeftError::Invalid(reason.into()));
        }
        mixed_batch::with(rows, || run(&self.model)).map_err(|misuse| match misuse {
            Misuse::Parameter(path) => {
                let reason = "it is read for the whole batch: compute its layer through `forward::by_rows`, or activate one \
                              adapter for all rows";
                PeftError::unsupported(format!("rows with different adapters on `{path}`"), reason)
            }
            Misuse::Count(path, count) => {
                let given = rows.len();
                let reason = format!("adapters were named for {given} rows, but the layer of `{path}` sees {count}");
                PeftError::Invalid(format!("{reason}: name one, or none, for each row of the batch"))
            }
        })
    }

    /// Removes an adapter.
    pub fn delete_adapter(&mut self, name: &str) -> Result<()> {
        self.check_known(name)?;
        self.adapters.shift_remove(name);
        self.active.retain(|it| it != name);
        self.model = slots::edit(self.model.clone(), |set| set.without(name));
        Ok(())
    }

    /// A plain model in which the active adapters are folded into the weights. `self` stays as it is.
    ///
    /// # Errors
    /// If an adapter adds a bias to a layer that has none, or one of its values is no finite number.
    pub fn merge(&self) -> Result<M> {
        for name in self.active.iter().filter(|_| self.enabled) {
            let is_bad = |it: &Stored| it.data.dtype().is_float() && !it.data.iter::<f32>().all(f32::is_finite);
            if let Some(bad) = state::tensors(&self.model, name).iter().find(|it| is_bad(it)) {
                let reason = format!("refusing to merge: `{}` of the adapter `{name}` holds NaN or infinity", bad.key);
                return Err(PeftError::NotFinite(reason));
            }
        }
        slots::merge(self.model.valid())
    }

    /// The base model, bit for bit, without any adapter.
    pub fn unload(self) -> M {
        slots::strip(self.model)
    }

    /// Trainable elements and all elements, as `print_trainable_parameters` counts them.
    pub fn trainable(&self) -> (usize, usize) {
        let count = |wanted: fn(&AdapterInfo) -> bool| {
            self.adapters.values().filter(|it| wanted(it)).map(|it| it.plan.trainable()).sum::<usize>()
        };
        (count(|it| it.trainable), self.spec.parameters() + count(|_| true))
    }

    /// The tensors of an adapter, keyed as in its file.
    pub fn adapter_tensors(&self, name: &str) -> Result<Vec<Stored>> {
        self.check_known(name)?;
        Ok(state::tensors(&self.model, name))
    }

    /// Overwrites tensors of an adapter; every key of the adapter must be there.
    pub fn assign_adapter(&mut self, name: &str, tensors: Vec<Stored>) -> Result<()> {
        self.check_known(name)?;
        let shapes = tensors.iter().map(|it| (it.key.as_str(), it.data.shape().as_slice()));
        let report: LoadReport = state::compare(&self.model, name, shapes);
        if !report.is_clean() {
            return Err(PeftError::DoesNotFit { what: format!("state of adapter `{name}`"), report });
        }
        let values = tensors.into_iter().map(|it| (it.key, it.data)).collect();
        self.model = state::assign(self.model.clone(), name, values);
        Ok(())
    }

    /// The gradients of an adapter, keyed as its tensors.
    pub fn adapter_gradients(&self, name: &str, gradients: &Gradients) -> Result<Vec<Stored>> {
        self.check_known(name)?;
        Ok(state::gradients(&self.model, name, gradients))
    }

    /// The adapter's configuration as `adapter_config.json` holds it.
    pub fn adapter_config(&self, name: &str) -> Result<Map<String, Value>> {
        self.check_known(name)?;
        self.described(name, self.adapters[name].config.to_json()?)
    }

    fn described(&self, name: &str, mut json: Map<String, Value>) -> Result<Map<String, Value>> {
        let AdapterInfo { config, plan, .. } = &self.adapters[name];
        for (field, value) in &plan.derived {
            if json.get(field).is_none_or(Value::is_null) {
                json.insert(field.clone(), value.clone());
            }
        }
        json.insert("peft_type".into(), config.peft_type().into());
        json.insert("inference_mode".into(), true.into());
        json.insert("peft_version".into(), REFERENCE_VERSION.into());
        for (field, value) in [("base_model_name_or_path", &self.spec.base_name), ("task_type", &self.spec.task_type)] {
            if json.get(field).is_none_or(Value::is_null) {
                json.insert(field.into(), value.clone().into());
            }
        }
        for field in ["auto_mapping", "revision"] {
            json.entry(field).or_insert(Value::Null);
        }
        Ok(json)
    }

    /// Writes the folder of the adapter [`DEFAULT_ADAPTER`], or of the only one there is. PEFT reads it.
    ///
    /// # Errors
    /// If there are several adapters with other names, or none, or as [`PeftModel::save_adapter`].
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let names: Vec<&str> = self.adapters.keys().map(String::as_str).collect();
        let name = match names[..] {
            [only] => only,
            _ if names.contains(&DEFAULT_ADAPTER) => DEFAULT_ADAPTER,
            [] => return Err(PeftError::AdapterName("there is no adapter to save: add or load one first".into())),
            _ => {
                let reason = format!(
                    "there are several adapters, {}: save one of them by its name with `save_adapter`",
                    names.join(", ")
                );
                return Err(PeftError::AdapterName(reason));
            }
        };
        self.save_adapter(folder, name)
    }

    /// Writes the folder of an adapter. PEFT reads it.
    ///
    /// # Errors
    /// If a value is not finite or the disk says no; a folder that was there stays whole.
    pub fn save_adapter(&self, folder: impl AsRef<Path>, name: &str) -> Result<()> {
        self.check_known(name)?;
        let config = self.described(name, self.adapters[name].config.to_file_json()?)?;
        let mut saved = self.adapters[name].config.to_file(state::saved(&self.model, name));
        saved.extend(self.tables_to_save(name));
        let encoder = state::encoders(&self.model, name).1;
        write_folder_with_encoder(&folder, &config, saved, encoder)?;
        Labels::write(self.adapters[name].labels.as_ref(), folder.as_ref())
    }
}

/// Refuses adapters of which one would hide the other.
fn check_together<M: Module>(model: &M, names: &[String]) -> Result<()> {
    for set in slots::collect(model) {
        let rank = set.param().shape.len();
        let mut wholes: Vec<&String> = Vec::new();
        let mut rows: Vec<(&String, usize)> = Vec::new();
        for (name, adapter) in names.iter().filter_map(|name| Some((name, set.get(name)?))) {
            wholes.extend(is_replacement(adapter, rank).then_some(name));
            rows.extend(adapter.replaced_rows().into_iter().map(|row| (name, row)));
        }
        rows.sort_by_key(|it| it.1);
        let same_row = rows.windows(2).find(|it| it[0].1 == it[1].1).map(|it| [it[0].0, it[1].0]);
        let both = if let [first, second, ..] = wholes[..] { Some([first, second]) } else { same_row };
        if let Some([first, second]) = both {
            let path = set.param().path();
            let what = if wholes.len() > 1 { format!("`{path}` whole") } else { format!("the same rows of `{path}`") };
            let reason = format!("`{first}` and `{second}` both train {what}: activate one of them at a time");
            return Err(PeftError::Invalid(reason));
        }
    }
    Ok(())
}

/// A model with the values of a folder in the adapter `name`.
fn filled<M: Module>(
    model: M,
    spec: &ModelSpec,
    name: &str,
    folder: &AdapterFolder,
    config: &dyn PeftConfig,
) -> Result<M> {
    let made: Vec<String> = state::encoders(&model, name).0.into_iter().map(|it| it.key).collect();
    let mut rows: Vec<(String, &TensorFile)> = Vec::new();
    for file in [Some(&folder.tensors), folder.encoder.as_ref()].into_iter().flatten() {
        rows.extend(file.keys().into_iter().filter(|key| !made.contains(key)).map(|key| (key, file)));
    }
    let shapes = rows.iter().map(|(key, file)| (key.as_str(), file.shape(key).unwrap_or(&[])));
    let mut report = state::compare(&model, name, shapes);
    report.missing.extend(made.into_iter().filter(|key| folder.tensors.shape(key).is_none()));
    // The reference adds the frozen table when an embedding is a target, or when the vocabulary was resized.
    report.unexpected.retain(|key| !folder.is_copy(key, spec) && !config.passes_over(key));
    for (key, file) in &rows {
        let Some(path) = frozen_path(key) else { continue };
        let holds_words = |it: &ParamSpec| it.kind == ParamKind::Embedding || spec.heads.contains(&it.module);
        let Some(param) = spec.get(&path).filter(|it| holds_words(it)) else { continue };
        if state::has_key(&model, name, key) {
            continue;
        }
        let wanted = param.shape_on_disk();
        if file.shape(key) != Some(&wanted[..])
            || !is_close(&file.floats(key)?, &value_of(&model, param), HALF_PRECISION)
        {
            let reason = format!(
                "holds another `{path}` than the base has, as for a vocabulary that was resized: take it with \
                 `adopt_tables` before adapters are added"
            );
            return Err(PeftError::bad_file(&folder.path, reason));
        }
    }
    if !report.is_clean() {
        return Err(PeftError::DoesNotFit { what: format!("adapter {}", folder.path.display()), report });
    }
    let values = rows.into_iter().map(|(key, file)| Ok((key.clone(), file.floats(&key)?)));
    let model = state::assign(model, name, values.collect::<Result<HashMap<_, _>>>()?);
    for Stored { key, data } in state::encoders(&model, name).0 {
        if !is_close(&data, &folder.tensors.floats(&key)?, 1e-3) {
            let reason = format!(
                "{ENCODER_FILE} does not give the `{key}` of {WEIGHTS_FILE}: they are of two adapters; without the \
                 first the prompt loads as it is"
            );
            return Err(PeftError::bad_file(&folder.path, reason));
        }
    }
    Ok(model)
}
