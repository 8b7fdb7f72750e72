//! The tensors of an adapter under the keys of its file: reading them out, putting them back, their gradients.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Gradients, Int, Tensor, TensorData};

use crate::adapter::AnyAdapter;
use crate::checkpoint::Stored;
use crate::error::LoadReport;
use crate::site::{PathStack, Site};
use crate::slots;

/// Prefix of every key that the reference writes for a wrapped model.
pub const KEY_PREFIX: &str = "base_model.model.";

/// The tensors of the adapter `name`: all that it trains, keyed as in `adapter_model.safetensors`, or as in
/// [`ENCODER_FILE`](crate::ENCODER_FILE) what is not saved there.
pub fn tensors<M: Module>(model: &M, name: &str) -> Vec<Stored> {
    collect(model, name, |adapter| Some(Cow::Borrowed(adapter)), None)
}

/// What `adapter_model.safetensors` holds of the adapter `name`: its tensors, and prompts in place of their encoders.
pub fn saved<M: Module>(model: &M, name: &str) -> Vec<Stored> {
    collect(model, name, |it| Some(it.baked().map_or(Cow::Borrowed(it), Cow::Owned)), None)
}

/// Those of [`saved`] that are the outcome of an encoder, and the encoder's own tensors.
pub fn encoders<M: Module>(model: &M, name: &str) -> (Vec<Stored>, Vec<Stored>) {
    let outcome = collect(model, name, |it| it.baked().map(Cow::Owned), None);
    let own = collect(model, name, |it| it.baked().map(|_| Cow::Borrowed(it)), None);
    (outcome, own)
}

/// The gradients of the adapter `name`, keyed as its tensors. Tensors without a gradient are left out.
pub fn gradients<M: Module>(model: &M, name: &str, gradients: &Gradients) -> Vec<Stored> {
    collect(model, name, |adapter| Some(Cow::Borrowed(adapter)), Some(gradients))
}

/// What the active adapters of a model add to the loss while training, `[1]`.
pub fn loss<M: Module>(model: &M) -> Option<Tensor<1>> {
    let sets = slots::collect(model);
    let terms = sets.iter().flat_map(|set| set.active().filter_map(AnyAdapter::loss).collect::<Vec<_>>());
    terms.reduce(|a, b| a + b)
}

/// The gradients of the adapter `name` as an optimizer gets them, keyed as its tensors.
pub fn step_gradients<M: Module>(model: &M, name: &str, gradients: &GradientsParams) -> Vec<Stored> {
    let mut stored = Vec::new();
    for set in slots::collect(model) {
        if let Some(adapter) = set.get(name) {
            let mut reader =
                ReadStep { at: PathStack::default(), site: set.site(), adapter, gradients, stored: &mut stored };
            adapter.visit(&mut reader);
        }
    }
    stored
}

struct ReadStep<'a> {
    at: PathStack,
    site: &'a Site,
    adapter: &'a AnyAdapter,
    gradients: &'a GradientsParams,
    stored: &'a mut Vec<Stored>,
}

impl ModuleVisitor for ReadStep<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let key = self.adapter.file_key(self.site, &self.at.path());
            self.stored.push(Stored { key, data: gradient.into_data() });
        }
    }
}

/// Reads the adapters of a name in the form that is asked for.
fn collect<M: Module>(
    model: &M,
    name: &str,
    form: impl Fn(&AnyAdapter) -> Option<Cow<'_, AnyAdapter>>,
    gradients: Option<&Gradients>,
) -> Vec<Stored> {
    let mut stored = Vec::new();
    for set in slots::collect(model) {
        if let Some(adapter) = set.get(name).and_then(&form) {
            let adapter = adapter.as_ref();
            let mut reader =
                Read { at: PathStack::default(), site: set.site(), adapter, gradients, stored: &mut stored };
            adapter.visit(&mut reader);
        }
    }
    stored.sort_by(|a, b| a.key.cmp(&b.key));
    stored
}

struct Read<'a> {
    at: PathStack,
    site: &'a Site,
    adapter: &'a AnyAdapter,
    gradients: Option<&'a Gradients>,
    stored: &'a mut Vec<Stored>,
}

impl Read<'_> {
    fn push(&mut self, data: TensorData) {
        let key = self.adapter.file_key(self.site, &self.at.path());
        self.stored.push(Stored { key, data });
    }
}

impl ModuleVisitor for Read<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match self.gradients {
            None => self.push(param.base().into_data()),
            Some(gradients) => {
                if let Some(gradient) = param.base().grad(gradients) {
                    self.push(gradient.into_data());
                }
            }
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        if self.gradients.is_none() {
            self.push(param.base().into_data());
        }
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        if self.gradients.is_none() {
            self.push(param.base().into_data());
        }
    }
}

/// Compares the tensors of a file with those of the adapter `name`.
pub fn compare<'a, M: Module>(model: &M, name: &str, file: impl Iterator<Item = (&'a str, &'a [usize])>) -> LoadReport {
    let mut wanted: BTreeMap<String, Vec<usize>> =
        tensors(model, name).into_iter().map(|it| (it.key, it.data.shape().as_slice().to_vec())).collect();
    let mut report = LoadReport::default();
    for (key, shape) in file {
        match wanted.remove(key) {
            None => report.unexpected.push(key.to_owned()),
            Some(model_shape) if model_shape != shape => {
                report.misshapen.push((key.to_owned(), shape.to_vec(), model_shape));
            }
            Some(_) => {}
        }
    }
    report.missing = wanted.into_keys().collect();
    report
}

/// Puts values into the tensors of the adapter `name`. Keys that are not given keep their values; check with
/// [`compare`] first.
pub fn assign<M: Module>(model: M, name: &str, values: HashMap<String, TensorData>) -> M {
    slots::edit(model, |set| {
        let site = set.site().clone();
        set.map_adapters(|it, adapter| {
            if it != name {
                return adapter;
            }
            let keys = adapter.clone();
            adapter.map(&mut Write { at: PathStack::default(), site: &site, adapter: &keys, values: &values })
        })
    })
}

struct Write<'a> {
    at: PathStack,
    site: &'a Site,
    adapter: &'a AnyAdapter,
    values: &'a HashMap<String, TensorData>,
}

impl Write<'_> {
    fn value(&self) -> Option<TensorData> {
        let key = self.adapter.file_key(self.site, &self.at.path());
        self.values.get(&key).cloned()
    }
}

impl ModuleMapper for Write<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.value() {
            Some(data) => {
                let id = param.id;
                let tensor = Tensor::from_data(data, &param.lazy_device());
                param.transform_for_load(tensor, id)
            }
            None => param,
        }
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        match self.value() {
            Some(data) => {
                let id = param.id;
                let tensor = Tensor::from_data(data, &param.lazy_device());
                param.transform_for_load(tensor, id)
            }
            None => param,
        }
    }
}
