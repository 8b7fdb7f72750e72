//! An adapter of any method: [`Adapter`] without its type.

use std::any::Any;
use std::fmt::Debug;

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Int, Tensor};

use crate::adapter::below::{EmbeddingBelow, LinearBelow};
use crate::adapter::method::{Adapter, BiasAdapter, GatedAdapter, ParamRole, PromptAdapter, TableAdapter};
use crate::adapter::prompt::{GatedPrompt, Prompt};
use crate::erased::{Erase, ErasedMapper, ErasedVisitor, Ranked, Restore, with_rank};
use crate::spec::{MapParams, ParamSpec, PathStack, map_params};

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
        match self.inner.as_bias() {
            Some(own) => self.tempered(bias.clone(), || own.bias(bias)),
            None => bias,
        }
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
        self.inner.as_bias().is_some()
    }

    pub(crate) fn needs_bias(&self) -> bool {
        self.inner.as_bias().is_some_and(BiasAdapter::needs_bias)
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

    pub(crate) fn replaces_table(&self) -> bool {
        self.inner.as_table().is_some_and(TableAdapter::replaces_table)
    }

    pub(crate) fn moves_tied_head(&self) -> bool {
        self.inner.as_table().is_some_and(TableAdapter::moves_tied_head)
    }

    pub(crate) fn replaced_rows(&self) -> Vec<usize> {
        self.inner.as_table().map(TableAdapter::replaced_rows).unwrap_or_default()
    }

    pub(crate) fn prompt(&self, tasks: Option<&Tensor<1, Int>>) -> Option<Prompt> {
        self.inner.as_prompt().map(|it| it.prompt(tasks))
    }

    pub(crate) fn virtual_tokens(&self) -> usize {
        self.inner.as_prompt().map_or(0, PromptAdapter::virtual_tokens)
    }

    pub(crate) fn tasks(&self) -> usize {
        self.inner.as_prompt().map_or(1, PromptAdapter::tasks)
    }

    pub(crate) fn gated(&self) -> Option<GatedPrompt> {
        self.inner.as_gated().map(GatedAdapter::gated)
    }

    pub(crate) fn unmergeable(&self) -> Option<&'static str> {
        self.inner.unmergeable()
    }

    /// Whether it is there or is not, so that nothing lies between.
    pub(crate) fn is_prompt(&self) -> bool {
        self.inner.as_prompt().is_some() || self.inner.as_gated().is_some()
    }

    pub(crate) fn invocation(&self) -> Option<&[i64]> {
        self.inner.invocation()
    }

    pub(crate) fn export_form(&self) -> Option<AnyAdapter> {
        self.inner.as_prompt()?.export_form()
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
        map_params(self, &mut SetTrainable { fields, trainable })
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
    fields: AnyAdapter,
    trainable: bool,
}

impl MapParams for SetTrainable {
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_trained = self.fields.role(&at.path()) == ParamRole::Trained;
        param.set_require_grad(self.trainable && is_trained)
    }
}

/// The object-safe side of [`Adapter`].
trait DynAdapter: Debug + Send + Sync {
    fn weight(&self, weight: Ranked, base: &dyn Any, param: &ParamSpec) -> Ranked;
    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2>;
    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3>;
    fn unmergeable(&self) -> Option<&'static str>;
    fn invocation(&self) -> Option<&[i64]>;
    fn key_prefix(&self) -> &'static str;
    fn loss(&self) -> Option<Tensor<1>>;
    fn file_key(&self, param: &ParamSpec, field: &str) -> String;
    fn role(&self, field: &str) -> ParamRole;
    fn check(&self, param: &ParamSpec) -> Result<(), String>;
    fn as_bias(&self) -> Option<&dyn BiasAdapter>;
    fn as_table(&self) -> Option<&dyn TableAdapter>;
    fn as_prompt(&self) -> Option<&dyn PromptAdapter>;
    fn as_gated(&self) -> Option<&dyn GatedAdapter>;
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
    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        self.0.linear(input, below)
    }
    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        self.0.embedding(ids, below)
    }
    fn unmergeable(&self) -> Option<&'static str> {
        self.0.unmergeable()
    }
    fn invocation(&self) -> Option<&[i64]> {
        self.0.invocation()
    }
    fn key_prefix(&self) -> &'static str {
        self.0.key_prefix()
    }
    fn loss(&self) -> Option<Tensor<1>> {
        self.0.loss()
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
    fn as_bias(&self) -> Option<&dyn BiasAdapter> {
        self.0.as_bias()
    }
    fn as_table(&self) -> Option<&dyn TableAdapter> {
        self.0.as_table()
    }
    fn as_prompt(&self) -> Option<&dyn PromptAdapter> {
        self.0.as_prompt()
    }
    fn as_gated(&self) -> Option<&dyn GatedAdapter> {
        self.0.as_gated()
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
