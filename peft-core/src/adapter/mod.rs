//! The weight seam: what an adapter is, and the set of named adapters that rides on a parameter.
//!
//! Burn's `Param` has one slot for a [`Reparameterization`]. An [`AdapterSet`] takes it. A layer that knows nothing of
//! adapters reads `weight.val()` and gets the composed dense weight; a layer of ours calls [`crate::forward`] and gets
//! the factored form, without a dense update and without a dense gradient.

pub(crate) mod mixed_batch;
pub(crate) mod pending_bias;
pub mod prompt;
pub mod slots;

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param,
    Reparameterization,
};
use burn::tensor::{Device, Int, Tensor};

use self::prompt::{GatedPrompt, Prompt};
use crate::erased::{Erase, ErasedMapper, ErasedVisitor, Ranked, Restore, with_rank};
use crate::forward::{EmbeddingBelow, LinearBelow};
use crate::ops;
use crate::spec::{KEY_PREFIX, ParamSpec, PathStack};

/// One adapter on one parameter: the trait that a method implements.
///
/// Field names are the keys of `adapter_model.safetensors` and tensors have the file's shapes, so a method gets its
/// files without writing any code for them: a field `lora_A: Factor` with a field `weight` is stored as
/// `<module>.lora_A.weight`. Fields that are bare tensors are constants: moved, but neither trained nor saved.
pub trait Adapter: Module + Sync + 'static {
    /// What the parameter becomes.
    ///
    /// `weight` is what earlier active adapters have made of it, `base` the frozen parameter itself, in single
    /// precision; both lie as [`ParamSpec::kind`] says. With one active adapter they are the same tensor.
    fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, param: &ParamSpec) -> Tensor<D>;

    /// What the bias of the layer becomes. Unchanged for most methods.
    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        bias
    }

    /// Whether [`bias`](Adapter::bias) changes anything, so that merging must fold it.
    fn touches_bias(&self) -> bool {
        false
    }

    /// Whether a layer without a bias cannot be merged, since the adapter would give it one. A mere scaling does not.
    fn needs_bias(&self) -> bool {
        self.touches_bias()
    }

    /// What the layer `y = x W + b` computes, `[rows, in]` to `[rows, out]`.
    ///
    /// The default goes through the dense [`weight`](Adapter::weight). A method with a cheaper form calls
    /// `below.forward(input)` and adds to it.
    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let weight = self.weight(below.weight(), below.base(), below.param());
        below.apply(input, weight, below.bias().map(|it| self.bias(it)))
    }

    /// What looking up rows gives, `[batch, seq]` to `[batch, seq, d_model]`.
    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        let weight = self.weight(below.weight(), below.base(), below.param());
        below.look_up(ids, weight)
    }

    /// A term that training adds to the loss, `[1]`. None for most methods.
    fn loss(&self) -> Option<Tensor<1>> {
        None
    }

    /// Whether a head that is tied to the table goes through the adapter too.
    fn moves_tied_head(&self) -> bool {
        false
    }

    /// Rows of the parameter in whose place this adapter puts values of its own: another that does it to the same rows
    /// would hide them, so that both cannot act at once. None for most methods, which add to what there is.
    fn replaced_rows(&self) -> Vec<usize> {
        Vec::new()
    }

    /// What becomes of a field: trained, as most are, or kept as it is.
    fn role(&self, field: &str) -> ParamRole {
        let _ = field;
        ParamRole::Trained
    }

    /// Whether values that came from a file make sense on this parameter, or what is wrong with them.
    fn check(&self, param: &ParamSpec) -> Result<(), String> {
        let _ = param;
        Ok(())
    }

    /// What stands before the input of a model whose table of words this adapter rides on. Nothing for most methods.
    ///
    /// `tasks` numbers the task of every row, `[batch]`, for prompts that differ between tasks.
    fn prompt(&self, tasks: Option<&Tensor<1, Int>>) -> Option<Prompt> {
        let _ = tasks;
        None
    }

    /// Number of virtual tokens before the input: what [`Prompt::tokens_len`] would be.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Between how many tasks [`prompt`](Adapter::prompt) tells: above 1 it must know the task of every row.
    fn tasks(&self) -> usize {
        1
    }

    /// What the attention whose output projection this adapter rides on looks at beside its own tokens.
    fn gated(&self) -> Option<GatedPrompt> {
        None
    }

    /// Why the adapter cannot be folded into weights, if it cannot.
    fn unmergeable(&self) -> Option<&'static str> {
        None
    }

    /// What the adapter file holds in place of this adapter, if it trains more than it computes with: the encoder of a
    /// prompt is saved as the prompt. Its own tensors go into [`ENCODER_FILE`](crate::ENCODER_FILE).
    fn export_form(&self) -> Option<AnyAdapter> {
        None
    }

    /// What comes before [`file_key`](Adapter::file_key) in the adapter file.
    fn key_prefix(&self) -> &'static str {
        KEY_PREFIX
    }

    /// Key of a parameter in the adapter file, without the [`key_prefix`](Adapter::key_prefix).
    fn file_key(&self, param: &ParamSpec, field: &str) -> String {
        crate::spec::join(&param.module, field)
    }
}

/// What becomes of a parameter of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParamRole {
    /// Trained and saved.
    Trained,
    /// Saved, not trained.
    Constant,
    /// Not trained, and one tensor for all layers.
    Shared {
        /// The whole key under which the file has it.
        key: String,
        /// Whether the file has it for every layer too. Such copies need not be there when it is read.
        copies: bool,
    },
    /// Neither trained nor saved, for it follows from the configuration.
    Derived,
}

/// An adapter of any method, and how strongly it acts.
#[derive(Debug)]
pub struct AnyAdapter {
    inner: Box<dyn DynAdapter>,
    strength: f64,
}

impl AnyAdapter {
    /// Forgets the type.
    pub fn new<A: Adapter>(adapter: A) -> Self {
        Self { inner: Box::new(Typed(adapter)), strength: 1.0 }
    }

    /// Remembers the type.
    pub fn downcast_ref<A: Adapter>(&self) -> Option<&A> {
        self.inner.as_any().downcast_ref::<Typed<A>>().map(|it| &it.0)
    }

    pub(crate) fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let before = weight.clone();
        self.tempered(before, || self.inner.weight(Ranked::new(D, weight), base, param).get())
    }

    pub(crate) fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        self.tempered(bias.clone(), || self.inner.bias(bias))
    }

    /// How strongly the adapter acts: 1 as trained, 0 not at all.
    pub fn strength(&self) -> f64 {
        self.strength
    }

    pub(crate) fn with_strength(self, strength: f64) -> Self {
        Self { strength, ..self }
    }

    /// Between what there was and what the adapter makes of it, or beyond.
    fn tempered<const D: usize>(&self, before: Tensor<D>, after: impl FnOnce() -> Tensor<D>) -> Tensor<D> {
        if self.strength == 1.0 { after() } else { before.clone() + (after() - before).mul_scalar(self.strength) }
    }

    pub(crate) fn touches_bias(&self) -> bool {
        self.inner.touches_bias()
    }

    pub(crate) fn needs_bias(&self) -> bool {
        self.inner.needs_bias()
    }

    pub(crate) fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        if self.strength == 1.0 {
            return self.inner.linear(input, below);
        }
        self.tempered(below.forward(input.clone()), || self.inner.linear(input, below))
    }

    pub(crate) fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        if self.strength == 1.0 {
            return self.inner.embedding(ids, below);
        }
        self.tempered(below.forward(ids.clone()), || self.inner.embedding(ids, below))
    }

    pub(crate) fn loss(&self) -> Option<Tensor<1>> {
        self.inner.loss()
    }

    pub(crate) fn moves_tied_head(&self) -> bool {
        self.inner.moves_tied_head()
    }

    pub(crate) fn replaced_rows(&self) -> Vec<usize> {
        self.inner.replaced_rows()
    }

    pub(crate) fn prompt(&self, tasks: Option<&Tensor<1, Int>>) -> Option<Prompt> {
        self.inner.prompt(tasks)
    }

    pub(crate) fn virtual_tokens(&self) -> usize {
        self.inner.virtual_tokens()
    }

    pub(crate) fn tasks(&self) -> usize {
        self.inner.tasks()
    }

    pub(crate) fn gated(&self) -> Option<GatedPrompt> {
        self.inner.gated()
    }

    pub(crate) fn unmergeable(&self) -> Option<&'static str> {
        self.inner.unmergeable()
    }

    pub(crate) fn export_form(&self) -> Option<AnyAdapter> {
        self.inner.export_form()
    }

    /// The whole key of a parameter in the adapter file.
    pub(crate) fn file_key(&self, param: &ParamSpec, field: &str) -> String {
        format!("{}{}", self.inner.key_prefix(), self.inner.file_key(param, field))
    }

    pub(crate) fn role(&self, field: &str) -> ParamRole {
        self.inner.role(field)
    }

    pub(crate) fn check(&self, param: &ParamSpec) -> Result<(), String> {
        self.inner.check(param)
    }

    /// Trained or frozen; constants are never trained.
    pub(crate) fn set_trainable(self, trainable: bool) -> Self {
        let fields = self.clone();
        self.map(&mut SetTrainable { at: PathStack::default(), fields, trainable })
    }
}

impl Clone for AnyAdapter {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone_dyn(), strength: self.strength }
    }
}

impl ModuleDisplayDefault for AnyAdapter {
    fn content(&self, content: Content) -> Option<Content> {
        content.optional()
    }
}

impl ModuleDisplay for AnyAdapter {}

impl Module for AnyAdapter {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.inner.collect_devices(devices)
    }
    fn fork(self, device: &Device) -> Self {
        Self { inner: self.inner.fork(device), ..self }
    }
    fn to_device(self, device: &Device) -> Self {
        Self { inner: self.inner.to_device(device), ..self }
    }
    fn train(self) -> Self {
        Self { inner: self.inner.train(), ..self }
    }
    fn valid(&self) -> Self {
        Self { inner: self.inner.valid(), strength: self.strength }
    }
    fn materialize(self) -> Self {
        self
    }
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.inner.visit(&mut Restore(visitor));
    }
    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self { inner: self.inner.map(&mut Restore(mapper)), ..self }
    }
}

struct SetTrainable {
    at: PathStack,
    fields: AnyAdapter,
    trainable: bool,
}

impl ModuleMapper for SetTrainable {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_trained = self.fields.role(&self.at.path()) == ParamRole::Trained;
        param.set_require_grad(self.trainable && is_trained)
    }
}

/// The object-safe side of [`Adapter`].
trait DynAdapter: Debug + Send + Sync {
    fn weight(&self, weight: Ranked, base: &dyn Any, param: &ParamSpec) -> Ranked;
    fn bias(&self, bias: Tensor<1>) -> Tensor<1>;
    fn touches_bias(&self) -> bool;
    fn needs_bias(&self) -> bool;
    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2>;
    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3>;
    fn prompt(&self, tasks: Option<&Tensor<1, Int>>) -> Option<Prompt>;
    fn virtual_tokens(&self) -> usize;
    fn tasks(&self) -> usize;
    fn gated(&self) -> Option<GatedPrompt>;
    fn unmergeable(&self) -> Option<&'static str>;
    fn export_form(&self) -> Option<AnyAdapter>;
    fn key_prefix(&self) -> &'static str;
    fn loss(&self) -> Option<Tensor<1>>;
    fn moves_tied_head(&self) -> bool;
    fn replaced_rows(&self) -> Vec<usize>;
    fn file_key(&self, param: &ParamSpec, field: &str) -> String;
    fn role(&self, field: &str) -> ParamRole;
    fn check(&self, param: &ParamSpec) -> Result<(), String>;
    fn visit(&self, visitor: &mut dyn ErasedVisitor);
    fn map(self: Box<Self>, mapper: &mut dyn ErasedMapper) -> Box<dyn DynAdapter>;
    fn collect_devices(&self, devices: Devices) -> Devices;
    fn fork(self: Box<Self>, device: &Device) -> Box<dyn DynAdapter>;
    fn to_device(self: Box<Self>, device: &Device) -> Box<dyn DynAdapter>;
    fn train(self: Box<Self>) -> Box<dyn DynAdapter>;
    fn valid(&self) -> Box<dyn DynAdapter>;
    fn clone_dyn(&self) -> Box<dyn DynAdapter>;
    fn as_any(&self) -> &dyn Any;
}

#[derive(Debug)]
struct Typed<A>(A);

impl<A: Adapter> DynAdapter for Typed<A> {
    fn weight(&self, weight: Ranked, base: &dyn Any, param: &ParamSpec) -> Ranked {
        with_rank!(weight.rank, D => {
            let base = base.downcast_ref::<Tensor<D>>().expect("base and weight have one rank");
            Ranked::new(D, self.0.weight::<D>(weight.get(), base, param))
        })
    }
    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        self.0.bias(bias)
    }
    fn touches_bias(&self) -> bool {
        self.0.touches_bias()
    }
    fn needs_bias(&self) -> bool {
        self.0.needs_bias()
    }
    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        self.0.linear(input, below)
    }
    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        self.0.embedding(ids, below)
    }
    fn prompt(&self, tasks: Option<&Tensor<1, Int>>) -> Option<Prompt> {
        self.0.prompt(tasks)
    }
    fn virtual_tokens(&self) -> usize {
        self.0.virtual_tokens()
    }
    fn tasks(&self) -> usize {
        self.0.tasks()
    }
    fn gated(&self) -> Option<GatedPrompt> {
        self.0.gated()
    }
    fn unmergeable(&self) -> Option<&'static str> {
        self.0.unmergeable()
    }
    fn export_form(&self) -> Option<AnyAdapter> {
        self.0.export_form()
    }
    fn key_prefix(&self) -> &'static str {
        self.0.key_prefix()
    }
    fn loss(&self) -> Option<Tensor<1>> {
        self.0.loss()
    }
    fn moves_tied_head(&self) -> bool {
        self.0.moves_tied_head()
    }
    fn replaced_rows(&self) -> Vec<usize> {
        self.0.replaced_rows()
    }
    fn file_key(&self, param: &ParamSpec, field: &str) -> String {
        self.0.file_key(param, field)
    }
    fn role(&self, field: &str) -> ParamRole {
        self.0.role(field)
    }
    fn check(&self, param: &ParamSpec) -> Result<(), String> {
        self.0.check(param)
    }
    fn visit(&self, visitor: &mut dyn ErasedVisitor) {
        self.0.visit(&mut Erase(visitor));
    }
    fn map(self: Box<Self>, mapper: &mut dyn ErasedMapper) -> Box<dyn DynAdapter> {
        Box::new(Self(self.0.map(&mut Erase(mapper))))
    }
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.0.collect_devices(devices)
    }
    fn fork(self: Box<Self>, device: &Device) -> Box<dyn DynAdapter> {
        Box::new(Self(self.0.fork(device)))
    }
    fn to_device(self: Box<Self>, device: &Device) -> Box<dyn DynAdapter> {
        Box::new(Self(self.0.to_device(device)))
    }
    fn train(self: Box<Self>) -> Box<dyn DynAdapter> {
        Box::new(Self(self.0.train()))
    }
    fn valid(&self) -> Box<dyn DynAdapter> {
        Box::new(Self(self.0.valid()))
    }
    fn clone_dyn(&self) -> Box<dyn DynAdapter> {
        Box::new(Self(self.0.clone()))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An adapter and its name.
#[derive(Debug, Clone)]
pub struct NamedAdapter {
    /// The name that the user gave: `default`, `poems`.
    pub name: String,
    /// The adapter.
    pub adapter: AnyAdapter,
}

/// The adapters of one parameter, whole, and which of them are active.
#[derive(Debug, Clone)]
pub struct AdapterSet {
    param: Arc<ParamSpec>,
    adapters: Vec<NamedAdapter>,
    active: Vec<String>,
}

impl AdapterSet {
    /// A set without adapters: it changes nothing.
    pub fn new(param: Arc<ParamSpec>) -> Self {
        Self { param, adapters: Vec::new(), active: Vec::new() }
    }

    /// The parameter that the set rides on.
    pub fn param(&self) -> &Arc<ParamSpec> {
        &self.param
    }

    /// All adapters, in the order in which they were added.
    pub fn adapters(&self) -> &[NamedAdapter] {
        &self.adapters
    }

    /// The adapter of a name, if this parameter has it.
    pub fn get(&self, name: &str) -> Option<&AnyAdapter> {
        self.adapters.iter().find(|it| it.name == name).map(|it| &it.adapter)
    }

    /// The set with one adapter more; one of the same name is replaced.
    pub fn with(mut self, name: &str, adapter: AnyAdapter) -> Self {
        let named = NamedAdapter { name: name.to_owned(), adapter };
        match self.adapters.iter_mut().find(|it| it.name == name) {
            Some(slot) => *slot = named,
            None => self.adapters.push(named),
        }
        self
    }

    /// The set without an adapter.
    pub fn without(mut self, name: &str) -> Self {
        self.adapters.retain(|it| it.name != name);
        self.active.retain(|it| it != name);
        self
    }

    /// The set with another choice of active adapters, applied in this order.
    pub fn activated(mut self, names: &[String]) -> Self {
        self.active = names.to_vec();
        self
    }

    /// The set with an adapter under another name.
    pub fn renamed(mut self, old: &str, new: &str) -> Self {
        for name in self.adapters.iter_mut().map(|it| &mut it.name).chain(&mut self.active) {
            if name == old {
                new.clone_into(name);
            }
        }
        self
    }

    /// Every adapter changed by a function of its name.
    pub fn map_adapters(mut self, mut change: impl FnMut(&str, AnyAdapter) -> AnyAdapter) -> Self {
        self.adapters = self
            .adapters
            .into_iter()
            .map(|it| NamedAdapter { adapter: change(&it.name, it.adapter), name: it.name })
            .collect();
        self
    }

    /// The active adapters that this parameter has, in order of application.
    pub fn active(&self) -> impl DoubleEndedIterator<Item = &AnyAdapter> {
        self.active.iter().filter_map(|name| self.get(name))
    }

    /// Their names.
    pub fn active_names(&self) -> impl Iterator<Item = &str> {
        self.active.iter().map(String::as_str).filter(|name| self.get(name).is_some())
    }

    fn map_all(mut self, change: impl Fn(AnyAdapter) -> AnyAdapter) -> Self {
        self = self.map_adapters(|_, it| change(it));
        self
    }
}

impl Reparameterization for AdapterSet {
    const NAME: &'static str = "adapters";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let adapters = mixed_batch::acting(self);
        let base = ops::to_f32(base);
        let compose = |weight, adapter: &&AnyAdapter| adapter.weight(weight, &base, &self.param);
        let composed = adapters.iter().fold(base.clone(), compose);
        pending_bias::settle(&self.param, &adapters, composed)
    }
}

impl ModuleDisplayDefault for AdapterSet {
    fn content(&self, content: Content) -> Option<Content> {
        content.optional()
    }
}

impl ModuleDisplay for AdapterSet {}

impl Module for AdapterSet {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.adapters.iter().fold(devices, |devices, it| it.adapter.collect_devices(devices))
    }
    fn fork(self, device: &Device) -> Self {
        self.map_all(|it| it.fork(device))
    }
    fn to_device(self, device: &Device) -> Self {
        self.map_all(|it| it.to_device(device))
    }
    fn train(self) -> Self {
        self.map_all(Module::train)
    }
    fn valid(&self) -> Self {
        self.clone().map_all(|it| it.valid())
    }
    fn materialize(self) -> Self {
        self
    }
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        if slots::offer(self) {
            return;
        }
        for it in &self.adapters {
            visitor.enter_module(&it.name, "AdapterSet");
            it.adapter.visit(visitor);
            visitor.exit_module(&it.name, "AdapterSet");
        }
    }
    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        match slots::exchange(self) {
            Ok(replacement) => replacement,
            Err(set) => set.map_adapters(|name, adapter| {
                mapper.enter_module(name, "AdapterSet");
                let adapter = adapter.map(mapper);
                mapper.exit_module(name, "AdapterSet");
                adapter
            }),
        }
    }
}
