//! A base model and its named adapters.

use std::ops::Deref;

use burn::module::Module;
use burn::tensor::Device;
use indexmap::IndexMap;

use crate::adapter::{AdapterSet, mixed_batch, slots};
use crate::config::peft_config::PeftConfig;
use crate::context::Misuse;
use crate::error::{PeftError, Result};
use crate::plan::plan::Plan;
use crate::plan::replacement::is_replacement;
use crate::spec::{Adaptable, Labels, ModelSpec};

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
    /// Whether it was made on this base, so that its folder names this base whatever its configuration said before.
    pub made_here: bool,
}

/// A base model with named adapters.
///
/// The base is never written: merging gives a new model, and going back is keeping the old one. The model inside is an
/// ordinary Burn module whose parameters carry the adapters, so it can be trained, cloned and recorded as such.
#[derive(Debug)]
pub struct PeftModel<M> {
    pub(super) model: M,
    pub(super) spec: ModelSpec,
    pub(super) adapters: IndexMap<String, AdapterInfo>,
    pub(super) active: Vec<String>,
    pub(super) enabled: bool,
    pub(super) calls: Option<AdaptableCalls<M>>,
    /// Whether a saved folder holds the embedding matrices, as one must whose vocabulary was resized. `None` decides by the
    /// `vocab_size` in the `config.json` of [`ModelSpec::base_name`], if that is a folder.
    pub save_embedding_layers: Option<bool>,
}

/// What [`Adaptable`] says of a model and does to it, for a [`PeftModel`] whose methods know its model as a [`Module`] only.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdaptableCalls<M> {
    pub(super) is_tied: fn(&M) -> bool,
    pub(super) untie: fn(&mut M),
    pub(super) spec: fn(&M) -> ModelSpec,
    pub(super) repeat_layers: fn(&mut M, &[usize]) -> Result<()>,
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
        let calls = AdaptableCalls {
            is_tied: M::is_tied,
            untie: M::untie_head,
            spec: M::spec,
            repeat_layers: M::repeat_layers,
        };
        Self { calls: Some(calls), ..Self::with_spec(model, spec) }
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
            calls: None,
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

    pub(super) fn check_free(&self, name: &str) -> Result<()> {
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

    pub(super) fn check_known(&self, name: &str) -> Result<()> {
        if self.adapters.contains_key(name) {
            return Ok(());
        }
        let known: Vec<&str> = self.adapters.keys().map(String::as_str).collect();
        let hint =
            if known.is_empty() { "none is loaded".to_owned() } else { format!("there are {}", known.join(", ")) };
        Err(PeftError::AdapterName(format!("there is no adapter `{name}`; {hint}")))
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
        let is_prompt = |set: &AdapterSet| set.get(name).is_some_and(|it| it.is_prompt());
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

    /// The base model, bit for bit, without any adapter.
    pub fn unload(self) -> M {
        slots::strip(self.model)
    }

    /// Paths of the base's parameters that its files do not hold and that no active adapter brings: they are random.
    pub fn drawn(&self) -> Vec<String> {
        let sets = slots::collect(&self.model);
        let is_brought = |path: &String| {
            let set = sets.iter().find(|it| it.param().path() == *path);
            set.is_some_and(|set| set.active().any(|it| is_replacement(it, set.param().shape.len())))
        };
        self.spec.drawn.iter().filter(|it| self.spec.get(it).is_some() && !is_brought(it)).cloned().collect()
    }

    /// Trainable elements and all elements, as `print_trainable_parameters` counts them.
    pub fn trainable(&self) -> (usize, usize) {
        let count = |wanted: fn(&AdapterInfo) -> bool| {
            self.adapters.values().filter(|it| wanted(it)).map(|it| it.plan.trainable()).sum::<usize>()
        };
        (count(|it| it.trainable), self.spec.parameters() + count(|_| true))
    }
}

/// Refuses adapters of which one would hide the other.
pub(super) fn check_together<M: Module>(model: &M, names: &[String]) -> Result<()> {
    for set in slots::collect(model) {
        let rank = set.param().shape.len();
        let mut wholes: Vec<&String> = Vec::new();
        let mut rows: Vec<(&String, usize)> = Vec::new();
        for (name, adapter) in names.iter().filter_map(|name| Some((name, set.get(name)?))) {
            wholes.extend(is_replacement(adapter, rank).then_some(name));
            rows.extend(adapter.replaced_rows().into_iter().map(|row| (name, row)));
        }
        let here: Vec<&String> = names.iter().filter(|it| set.get(it).is_some()).collect();
        let waits = |name: &&&String| set.get(name).is_some_and(|it| it.invocation().is_some());
        if let (Some(waiting), [_, _, ..]) = (here.iter().find(waits), here.as_slice()) {
            let other = here.iter().find(|it| *it != waiting).unwrap_or(waiting);
            let path = set.param().path();
            let reason = format!(
                "`{waiting}` acts on some tokens of a row only, and `{other}` changes `{path}` too: activate one of them \
                 at a time, or give rows adapters of their own"
            );
            return Err(PeftError::Invalid(reason));
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
