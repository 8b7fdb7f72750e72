//! The named adapters of one parameter, in Burn's slot for a [`Reparameterization`].

use std::sync::Arc;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Reparameterization,
};
use burn::tensor::{Device, Tensor};

use crate::adapter::any::AnyAdapter;
use crate::adapter::mixed_batch;
use crate::adapter::pending_bias;
use crate::adapter::slots;
use crate::ops;
use crate::spec::ParamSpec;

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

    /// The parameter that the set is attached to.
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
