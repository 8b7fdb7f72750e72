//! What holds for every method, whatever the numbers: for the tests of any crate that adds one.
//!
//! [`all`] checks every law at once. Each law panics where it is broken and says by how much. `output` computes something from a model in evaluation
//! mode, as its logits. Laws about trained adapters want the adapter [`disturb`]ed first: an update that changes
//! nothing proves nothing.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::config::peft_config::{MethodRegistry, PeftConfig};
use crate::error::Result;
use crate::model::peft_model::{DEFAULT_ADAPTER, PeftModel};
use crate::model::state;
use crate::plan::init::Init;
use crate::spec::{ParamKind, ParamSpec};

/// What a method promises beyond the laws that hold for every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// A fresh adapter computes what the base computes.
    pub starts_as_base: bool,
    /// The adapter can be folded into the weights, and the merged model computes what the live one does.
    pub merges: bool,
}

impl Default for Promises {
    /// All of them.
    fn default() -> Self {
        Self { starts_as_base: true, merges: true }
    }
}

/// Every law, for a method of yours: call this in a test.
///
/// - `base` makes a model without adapters, in evaluation mode; `output` computes from it what adapters should change,
///   as its logits;
/// - `config` makes a configuration that goes with the model, and `methods` knows how to read it back;
/// - `promises` says what else holds; [`Promises::default`] for most methods.
///
/// # Panics
/// Where a law is broken: the message names it and says by how much. Also if the adapter cannot be added to the model.
#[track_caller]
pub fn all<M: Module, C: PeftConfig + 'static, const D: usize>(
    base: impl Fn() -> PeftModel<M>,
    config: impl Fn() -> C,
    methods: &MethodRegistry,
    promises: Promises,
    output: impl Fn(&M) -> Tensor<D>,
) {
    let numbers = |model: &M| output(model).into_data();
    let mut peft = base();
    let untouched = numbers(&peft.model().valid());
    let device = output(peft.model()).device().without_autodiff();
    let config = config();
    let what = config.peft_type().to_owned();
    if let Err(error) = peft.add_adapter(config) {
        panic!("{what}: {error}");
    }
    if promises.starts_as_base {
        fresh_changes_nothing(&what, &peft, &untouched, numbers);
    }
    if let Err(error) = disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device) {
        panic!("{what}: {error}");
    }
    let result = output(peft.model());
    let gradients = (result.clone() * result).sum().backward();
    all_of_it_is_trained(&what, &peft, DEFAULT_ADAPTER, &gradients);
    if promises.merges {
        merged_is_live(&what, &peft, &untouched, numbers);
    }
    match tempfile::tempdir() {
        Ok(folder) => saved_is_loaded(&what, &peft, DEFAULT_ADAPTER, base(), methods, folder.path(), numbers),
        Err(error) => panic!("{what}: no folder to save to: {error}"),
    }
    disabled_is_base(&what, peft, &untouched, numbers);
}

/// Numbers of a tensor.
pub fn numbers(data: &TensorData) -> Vec<f64> {
    data.iter::<f64>().collect()
}

/// Largest difference between two tensors, relative to the largest number of the second.
pub fn distance(actual: &TensorData, wanted: &TensorData) -> f64 {
    let (actual, wanted) = (numbers(actual), numbers(wanted));
    assert_eq!(actual.len(), wanted.len(), "the tensors have unlike sizes");
    let scale = wanted.iter().fold(f64::MIN_POSITIVE, |max, it| max.max(it.abs()));
    let errors = actual.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
    errors.fold(0.0f64, |max, it| if it.is_nan() { f64::INFINITY } else { max.max(it) }) / scale
}

/// Moves every tensor of an adapter by normal noise of this size.
pub fn disturb<M: Module>(peft: &mut PeftModel<M>, name: &str, size: f64, device: &Device) -> Result<()> {
    let mut tensors = peft.adapter_tensors(name)?;
    let trained: Vec<String> = state::trained(peft.model(), name).into_iter().map(|it| it.key).collect();
    for stored in tensors.iter_mut().filter(|it| trained.contains(&it.key)) {
        let shape = stored.data.shape().clone();
        let param = ParamSpec {
            module: stored.key.clone(),
            name: String::new(),
            owner: String::new(),
            kind: ParamKind::Other,
            shape: shape.as_slice().to_vec(),
        };
        let noise = Init::new(0, name, &param, device).normal([shape.num_elements()], size).val().into_data();
        let moved = numbers(&stored.data).iter().zip(numbers(&noise)).map(|(a, b)| (a + b) as f32).collect();
        stored.data = TensorData::new::<f32, _>(moved, shape);
    }
    peft.assign_adapter(name, tensors)
}

/// A fresh adapter computes what the base computes. `base` is the output without it.
#[track_caller]
pub fn fresh_changes_nothing<M: Module>(
    what: &str,
    peft: &PeftModel<M>,
    base: &TensorData,
    output: impl Fn(&M) -> TensorData,
) {
    let error = distance(&output(&peft.model().valid()), base);
    assert!(error < 1e-5, "{what}: a fresh adapter moves the output by {error:.1e}");
}

/// The update is visible, and the merged model computes what the live one does. This is the dense path against the
/// low-rank one too, since merging composes the dense weight.
#[track_caller]
pub fn merged_is_live<M: Module>(
    what: &str,
    peft: &PeftModel<M>,
    base: &TensorData,
    output: impl Fn(&M) -> TensorData,
) {
    let live = output(&peft.model().valid());
    let moved = distance(&live, base);
    assert!(moved > 1e-2, "{what}: the update must be visible, it moves the output by {moved:.1e}");
    let merged = match peft.merge() {
        Ok(merged) => merged,
        Err(error) => panic!("{what}: {error}"),
    };
    let error = distance(&output(&merged), &live);
    assert!(error < 2e-5, "{what}: merged is off by {error:.1e}");
}

/// Disabled and unloaded, the base is there again, bit for bit.
#[track_caller]
pub fn disabled_is_base<M: Module>(
    what: &str,
    mut peft: PeftModel<M>,
    base: &TensorData,
    output: impl Fn(&M) -> TensorData,
) {
    peft.set_enabled(false);
    assert_eq!(numbers(&output(&peft.model().valid())), numbers(base), "{what}: disabled");
    peft.set_enabled(true);
    assert_eq!(numbers(&output(&peft.unload())), numbers(base), "{what}: unloaded");
}

/// Saved to `folder` and loaded into `fresh`, a base without adapters, the adapter computes the same.
#[track_caller]
pub fn saved_is_loaded<M: Module>(
    what: &str,
    peft: &PeftModel<M>,
    name: &str,
    mut fresh: PeftModel<M>,
    methods: &MethodRegistry,
    folder: &Path,
    output: impl Fn(&M) -> TensorData,
) {
    let loaded = peft.save_adapter(folder, name).and_then(|()| fresh.load_adapter(folder, name, methods));
    if let Err(error) = loaded {
        panic!("{what}: {error}");
    }
    let error = distance(&output(&fresh.model().valid()), &output(&peft.model().valid()));
    assert!(error < 1e-6, "{what}: the reloaded adapter is off by {error:.1e}");
}

/// Every tensor of the adapter gets a gradient, and the plan counted them right.
#[track_caller]
pub fn all_of_it_is_trained<M: Module>(what: &str, peft: &PeftModel<M>, name: &str, gradients: &Gradients) {
    let trained = state::gradients(peft.model(), name, gradients);
    let tensors = state::trained(peft.model(), name);
    let keys = |stored: &[crate::files::checkpoint::Stored]| stored.iter().map(|it| it.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&trained), keys(&tensors), "{what}: tensors with a gradient");
    let elements: usize = tensors.iter().map(|it| it.data.num_elements()).sum();
    assert_eq!(elements, peft.adapters()[name].plan.trainable(), "{what}: the plan's count");
}
