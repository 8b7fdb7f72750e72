//! Adapters folded into the weights of their base.

use std::collections::HashMap;
use std::fmt;

use burn::module::{Module, Param, Reparameterization};
use burn::tensor::{Tensor, TensorData};

use crate::adapter::{AdapterSet, AnyAdapter, pending_bias, slots};
use crate::error::{PeftError, Result};
use crate::files::safetensors::Stored;
use crate::model::peft_model::PeftModel;
use crate::model::state;
use crate::ops;
use crate::spec::{MapParams, ModelSpec, ParamSpec, PathStack, VisitParams, map_params, visit_params};

impl<M: Module> PeftModel<M> {
    /// A plain model in which the active adapters are folded into the weights. `self` stays as it is.
    ///
    /// It computes what the model computes with its adapters. Where an adapter changes an embedding matrix but not the
    /// head that is tied to it, the head gets the old matrix as a weight of its own.
    ///
    /// # Errors
    /// If an adapter cannot be folded in, adds a bias to a layer that has none, or one of its values is no finite number.
    pub fn merge(&self) -> Result<M> {
        slots::merge(self.ready_to_merge()?.0)
    }

    /// The same model as [`merge`](PeftModel::merge) gives, one tensor after another: what is merged is never held
    /// beside the base.
    ///
    /// # Errors
    /// As [`merge`](PeftModel::merge).
    pub fn merged(&self) -> Result<Merged<M>> {
        let (model, spec) = self.ready_to_merge()?;
        let sets = slots::collect(&model);
        let biases = slots::pending_biases(&sets)?;
        slots::check_biases(biases.iter().filter(|(path, _)| spec.get(path).is_none()))?;
        let is_tied = self.calls.as_ref().is_some_and(|it| (it.is_tied)(&model));
        let sets = sets.into_iter().map(|set| (set.param().path(), set)).collect();
        Ok(Merged { model, spec, is_tied, sets, biases })
    }

    /// The model whose parameters, each through its own adapters, are those of the merged one.
    fn ready_to_merge(&self) -> Result<(M, ModelSpec)> {
        for name in self.active.iter().filter(|_| self.enabled) {
            let is_bad = |it: &Stored| it.data.dtype().is_float() && !it.data.iter::<f32>().all(f32::is_finite);
            if let Some(bad) = state::tensors(&self.model, name).iter().find(|it| is_bad(it)) {
                let reason = format!("refusing to merge: `{}` of the adapter `{name}` holds NaN or infinity", bad.key);
                return Err(PeftError::NotFinite(reason));
            }
        }
        let model = self.model.valid();
        let sets = slots::collect(&model);
        slots::pending_biases(&sets)?;
        let tied = self.calls.as_ref().filter(|it| (it.is_tied)(&model)).zip(table_of(&self.spec));
        let Some((head, set)) =
            tied.and_then(|(head, table)| Some((head, sets.iter().find(|it| it.param().path() == table.path())?)))
        else {
            return Ok((model, self.spec.clone()));
        };
        let (moving, staying): (Vec<&AnyAdapter>, Vec<_>) = set.active().partition(|it| it.moves_tied_head());
        if staying.is_empty() {
            return Ok((model, self.spec.clone()));
        }
        let mut untied = model.clone();
        (head.untie)(&mut untied);
        if (head.is_tied)(&untied) {
            // A head that always reads the table, which its live form does through replacements only.
            if staying.iter().all(|it| it.replaces_table()) {
                return Ok((model, self.spec.clone()));
            }
            let reason = "the head reads the same table without the adapter, and a checkpoint of this architecture has no \
                          place for a head of its own: keep the adapter unmerged";
            return Err(PeftError::unsupported(format!("merging into `{}`", set.param().path()), reason));
        }
        let spec = self.spec.describing_changed((head.spec)(&untied));
        // What the head has of its own now goes through the adapters that moved it along, and its bias through all of
        // the bias that it was.
        for own in spec.iter().filter(|it| self.spec.get(&it.path()).is_none()) {
            let beside = own.module.rsplit_once('.').map(|(module, _)| format!("{module}.bias"));
            let bias = beside.and_then(|it| sets.iter().find(|set| set.param().path() == it));
            let (param, adapters) = match (own.name.as_str(), bias) {
                ("bias", Some(bias)) => (bias.param(), bias.active().collect()),
                ("bias", None) => continue,
                _ => (set.param(), moving.clone()),
            };
            untied = map_params(untied, &mut Through { path: &own.path(), param, adapters: &adapters });
        }
        Ok((untied, spec))
    }
}

/// The embedding matrix that a head may be tied to.
fn table_of(spec: &ModelSpec) -> Option<&std::sync::Arc<ParamSpec>> {
    let named = spec.prompts.as_ref().and_then(|it| spec.get(&format!("{}.weight", it.table)));
    named.or_else(|| spec.token_table())
}

/// Sends one parameter through adapters of another that has the same numbers.
struct Through<'a> {
    path: &'a str,
    param: &'a ParamSpec,
    adapters: &'a [&'a AnyAdapter],
}

impl MapParams for Through<'_> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if at.in_adapters() || at.path() != self.path {
            return param;
        }
        param.map(|bare| {
            let bare = ops::to_f32(bare);
            self.adapters.iter().fold(bare.clone(), |weight, adapter| adapter.weight(weight, &bare, self.param))
        })
    }
}

/// A model whose adapters are folded in as its tensors are asked for.
pub struct Merged<M> {
    model: M,
    spec: ModelSpec,
    is_tied: bool,
    sets: HashMap<String, AdapterSet>,
    biases: HashMap<String, Vec<AnyAdapter>>,
}

impl<M> fmt::Debug for Merged<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merged").field("is_tied", &self.is_tied).finish_non_exhaustive()
    }
}

impl<M: Module> Merged<M> {
    /// Its parameters, in the order in which [`each`](Merged::each) gives them.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Whether the head is the embedding matrix read the other way.
    pub fn is_tied(&self) -> bool {
        self.is_tied
    }

    /// Hands over every tensor as a checkpoint holds it, one after another.
    ///
    /// # Errors
    /// That of `sink`; or if a tensor holds a number that is not finite, which names it and says whether the base or the
    /// adapters brought it.
    pub fn each(&self, sink: &mut dyn FnMut(Stored) -> Result<()>) -> Result<()> {
        let mut visitor = Each { merged: self, sink, error: None };
        visit_params(&self.model, &mut visitor);
        visitor.error.map_or(Ok(()), Err)
    }
}

fn is_finite(data: &TensorData) -> bool {
    match data.as_slice::<f32>() {
        Ok(values) => values.iter().all(|it| it.is_finite()),
        Err(_) => data.iter::<f32>().all(f32::is_finite),
    }
}

struct Each<'a, M> {
    merged: &'a Merged<M>,
    sink: &'a mut dyn FnMut(Stored) -> Result<()>,
    error: Option<PeftError>,
}

impl<M: Module> Each<'_, M> {
    fn give<const D: usize>(&mut self, path: String, base: Tensor<D>) -> Result<()> {
        let merged = self.merged;
        let (set, biases) = (merged.sets.get(&path), merged.biases.get(&path));
        let value = match set {
            Some(set) => pending_bias::suspended(|| set.apply(base.clone())),
            None => ops::to_f32(base.clone()),
        };
        let value = biases.map_or(value.clone(), |adapters| pending_bias::fold(adapters, value));
        let data = match merged.spec.get(&path) {
            Some(param) if param.is_transposed_on_disk() => value.transpose().into_data(),
            Some(param) => param.stored(value.into_data()),
            None => value.into_data(),
        };
        if !is_finite(&data) {
            let of_base = !is_finite(&ops::to_f32(base).into_data());
            let whose = match of_base {
                true => "of the base holds NaN or infinity: its file is damaged, fetch it again",
                false => "holds NaN or infinity once the adapters are folded in: let them act with less strength",
            };
            return Err(PeftError::NotFinite(format!("refusing to merge: `{path}` {whose}")));
        }
        (self.sink)(Stored { key: path, data })
    }
}

impl<M: Module> VisitParams for Each<'_, M> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
        if at.in_adapters() || self.error.is_some() {
            return;
        }
        self.error = self.give(at.path(), param.base()).err();
    }
}
