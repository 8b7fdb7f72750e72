//! The tensors of an adapter under the keys of its file: reading them out, putting them back, their gradients.

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Device, Gradients, Int, Tensor, TensorData};

use crate::adapter::slots;
use crate::adapter::{AnyAdapter, ParamRole};
use crate::error::LoadReport;
use crate::files::checkpoint::Stored;
pub use crate::spec::KEY_PREFIX;
use crate::spec::{MapParams, ParamSpec, PathStack, VisitParams, map_params, visit_params};

/// The tensors of the adapter `name`: all that it trains, keyed as in `adapter_model.safetensors`, or as in
/// [`ENCODER_FILE`](crate::ENCODER_FILE) what is not saved there.
pub fn tensors<M: Module>(model: &M, name: &str) -> Vec<Stored> {
    collect(model, name, |adapter| Some(Cow::Borrowed(adapter)), What::Saved)
}

/// Those of [`tensors`] that are trained, not constants of the method.
pub fn trained<M: Module>(model: &M, name: &str) -> Vec<Stored> {
    collect(model, name, |adapter| Some(Cow::Borrowed(adapter)), What::Trained)
}

/// What `adapter_model.safetensors` holds of the adapter `name`: its tensors, and prompts in place of their encoders.
pub fn saved<M: Module>(model: &M, name: &str) -> Vec<Stored> {
    collect(model, name, |it| Some(it.export_form().map_or(Cow::Borrowed(it), Cow::Owned)), What::Saved)
}

/// Those of [`saved`] that are the outcome of an encoder, and the encoder's own tensors.
pub fn encoders<M: Module>(model: &M, name: &str) -> (Vec<Stored>, Vec<Stored>) {
    let outcome = collect(model, name, |it| it.export_form().map(Cow::Owned), What::Saved);
    let own = collect(model, name, |it| it.export_form().map(|_| Cow::Borrowed(it)), What::Saved);
    (outcome, own)
}

/// The gradients of the adapter `name`, keyed as its tensors. Tensors without a gradient are left out.
pub fn gradients<M: Module>(model: &M, name: &str, gradients: &Gradients) -> Vec<Stored> {
    collect(model, name, |adapter| Some(Cow::Borrowed(adapter)), What::Gradients(gradients))
}

/// As [`gradients`], in the form in which an optimizer gets them.
pub fn step_gradients<M: Module>(model: &M, name: &str, gradients: &GradientsParams) -> Vec<Stored> {
    collect(model, name, |adapter| Some(Cow::Borrowed(adapter)), What::StepGradients(gradients))
}

/// A trained tensor of an adapter, for an optimizer that tells them apart.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its identity, the same in every run.
    pub id: ParamId,
    /// Its whole key in the adapter file.
    pub key: String,
    /// Number of its axes.
    pub rank: usize,
    /// The parameter that the adapter is attached to.
    pub param: Arc<ParamSpec>,
}

/// The trained tensors of the adapter `name`.
pub fn parameters<M: Module>(model: &M, name: &str) -> Vec<Parameter> {
    struct List<'a> {
        param: &'a Arc<ParamSpec>,
        adapter: &'a AnyAdapter,
        found: &'a mut Vec<Parameter>,
    }
    impl VisitParams for List<'_> {
        fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
            let field = at.path();
            if self.adapter.role(&field) == ParamRole::Trained {
                let key = self.adapter.file_key(self.param, &field);
                self.found.push(Parameter { id: param.id, key, rank: D, param: self.param.clone() });
            }
        }
    }
    let mut found = Vec::new();
    for set in slots::collect(model) {
        if let Some(adapter) = set.get(name) {
            visit_params(adapter, &mut List { param: set.param(), adapter, found: &mut found });
        }
    }
    found
}

#[derive(Clone, Copy)]
enum What<'a> {
    Saved,
    Trained,
    Gradients(&'a Gradients),
    StepGradients(&'a GradientsParams),
}

/// What the active adapters of a model add to the loss while training, `[1]`.
pub fn loss<M: Module>(model: &M) -> Option<Tensor<1>> {
    let sets = slots::collect(model);
    let terms = sets.iter().flat_map(|set| set.active().filter_map(AnyAdapter::loss).collect::<Vec<_>>());
    terms.reduce(|a, b| a + b)
}

/// Reads the adapters of a name in the form that is asked for.
fn collect<M: Module>(
    model: &M,
    name: &str,
    form: impl Fn(&AnyAdapter) -> Option<Cow<'_, AnyAdapter>>,
    what: What<'_>,
) -> Vec<Stored> {
    let mut stored = Vec::new();
    for set in slots::collect(model) {
        if let Some(adapter) = set.get(name).and_then(&form) {
            let adapter = adapter.as_ref();
            let mut reader = Read { param: set.param(), adapter, what, stored: &mut stored };
            visit_params(adapter, &mut reader);
        }
    }
    stored.sort_by(|a, b| a.key.cmp(&b.key));
    stored
}

/// The key of a field in the file, if it is read at all.
fn key(adapter: &AnyAdapter, param: &ParamSpec, field: &str) -> Option<String> {
    match adapter.role(field) {
        ParamRole::Trained | ParamRole::Constant => Some(adapter.file_key(param, field)),
        ParamRole::Shared { key, .. } => Some(key),
        ParamRole::Derived => None,
    }
}

/// Whether the adapter `name` has a tensor of this key.
pub(crate) fn has_key<M: Module>(model: &M, name: &str, key: &str) -> bool {
    parameters(model, name).iter().any(|it| it.key == key)
}

/// Keys of copies that a file may leave out.
fn copies<M: Module>(model: &M, name: &str) -> HashSet<String> {
    struct Copies<'a>(&'a AnyAdapter, &'a ParamSpec, HashSet<String>);
    impl VisitParams for Copies<'_> {
        fn float<const D: usize>(&mut self, at: &PathStack, _param: &Param<Tensor<D>>) {
            let field = at.path();
            if matches!(self.0.role(&field), ParamRole::Shared { copies: true, .. }) {
                self.2.insert(self.0.file_key(self.1, &field));
            }
        }
    }
    let mut found = HashSet::new();
    for set in slots::collect(model) {
        if let Some(adapter) = set.get(name) {
            let mut visitor = Copies(adapter, set.param(), HashSet::new());
            visit_params(adapter, &mut visitor);
            found.extend(visitor.2);
        }
    }
    found
}

struct Read<'a> {
    param: &'a ParamSpec,
    adapter: &'a AnyAdapter,
    what: What<'a>,
    stored: &'a mut Vec<Stored>,
}

impl Read<'_> {
    fn push(&mut self, at: &PathStack, data: impl FnOnce(What<'_>) -> Option<TensorData>) {
        let field = at.path();
        let role = self.adapter.role(&field);
        if role != ParamRole::Trained && !matches!(self.what, What::Saved) {
            return;
        }
        let Some(key) = key(self.adapter, self.param, &field) else { return };
        let Some(data) = data(self.what).map(|it| self.param.stored(it)) else { return };
        if let ParamRole::Shared { copies, .. } = role {
            if copies {
                self.stored.push(Stored { key: self.adapter.file_key(self.param, &field), data: data.clone() });
            }
            if self.stored.iter().any(|it| it.key == key) {
                return;
            }
        }
        self.stored.push(Stored { key, data });
    }
}

impl VisitParams for Read<'_> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
        self.push(at, |what| match what {
            What::Gradients(gradients) => param.base().grad(gradients).map(Tensor::into_data),
            What::StepGradients(gradients) => gradients.get::<D>(param.id).map(Tensor::into_data),
            What::Saved | What::Trained => Some(param.base().into_data()),
        });
    }

    fn int<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D, Int>>) {
        self.push(at, |what| matches!(what, What::Saved | What::Trained).then(|| param.base().into_data()));
    }

    fn bool<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D, Bool>>) {
        self.push(at, |what| matches!(what, What::Saved | What::Trained).then(|| param.base().into_data()));
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
    let copies = copies(model, name);
    report.missing = wanted.into_keys().filter(|key| !copies.contains(key)).collect();
    report
}

/// Puts values into the tensors of the adapter `name`. Keys that are not given keep their values; check with
/// [`compare`] first.
pub fn assign<M: Module>(model: M, name: &str, values: HashMap<String, TensorData>) -> M {
    // One tensor for all layers stays one.
    let shared = RefCell::new(HashMap::new());
    slots::edit(model, |set| {
        let param = set.param().clone();
        set.map_adapters(|it, adapter| {
            if it != name {
                return adapter;
            }
            let keys = adapter.clone();
            map_params(adapter, &mut Write { param: &param, adapter: &keys, values: &values, shared: &shared })
        })
    })
}

struct Write<'a> {
    param: &'a ParamSpec,
    adapter: &'a AnyAdapter,
    values: &'a HashMap<String, TensorData>,
    shared: &'a RefCell<HashMap<String, Box<dyn Any>>>,
}

impl Write<'_> {
    fn value(&self, at: &PathStack) -> Option<&TensorData> {
        self.values.get(&key(self.adapter, self.param, &at.path())?)
    }

    fn tensor<const D: usize>(&self, at: &PathStack, data: &TensorData, device: &Device) -> Tensor<D> {
        let ParamRole::Shared { key, .. } = self.adapter.role(&at.path()) else {
            return Tensor::from_data(data.clone(), device);
        };
        let mut shared = self.shared.borrow_mut();
        let tensor = shared.entry(key).or_insert_with(|| Box::new(Tensor::<D>::from_data(data.clone(), device)));
        tensor.downcast_ref::<Tensor<D>>().cloned().unwrap_or_else(|| Tensor::from_data(data.clone(), device))
    }
}

impl MapParams for Write<'_> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.value(at) {
            Some(data) => {
                let id = param.id;
                // A count has no axes.
                let data = match data.shape().num_dims() {
                    0 => TensorData::new(data.iter::<f32>().collect(), [1; D]),
                    _ => data.clone(),
                };
                let tensor = self.tensor(at, &data, &param.lazy_device());
                param.transform_for_load(tensor, id)
            }
            None => param,
        }
    }

    fn int<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        match self.value(at) {
            Some(data) => {
                let id = param.id;
                let tensor = Tensor::from_data(data.clone().convert::<i64>(), &param.lazy_device());
                param.transform_for_load(tensor, id)
            }
            None => param,
        }
    }
}
