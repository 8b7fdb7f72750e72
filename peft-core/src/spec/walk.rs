//! Walking over the parameters of a module with their paths.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Bool, Int, Tensor};

use crate::spec::path::PathStack;

/// Looks at every parameter, and knows where it is. See [`visit_params`].
pub trait VisitParams {
    /// A parameter of floats.
    fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>);

    /// A parameter of integers.
    fn int<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D, Int>>) {
        let _ = (at, param);
    }

    /// A parameter of truth values.
    fn bool<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D, Bool>>) {
        let _ = (at, param);
    }
}

/// Exchanges parameters, and knows where they are. See [`map_params`].
pub trait MapParams {
    /// A parameter of floats.
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>>;

    /// A parameter of integers.
    fn int<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let _ = at;
        param
    }
}

struct Walk<'a, V> {
    at: PathStack,
    inner: &'a mut V,
}

impl<V: VisitParams> ModuleVisitor for Walk<'_, V> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.float(&self.at, param);
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.inner.int(&self.at, param);
    }
    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.inner.bool(&self.at, param);
    }
}

impl<V: MapParams> ModuleMapper for Walk<'_, V> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.at.exit(container);
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.float(&self.at, param)
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        self.inner.int(&self.at, param)
    }
}

/// Visits every parameter of a module, those of adapters too: [`PathStack::in_adapters`] tells them apart.
pub fn visit_params<M: Module>(module: &M, visitor: &mut impl VisitParams) {
    module.visit(&mut Walk { at: PathStack::default(), inner: visitor });
}

/// Maps every parameter of a module, those of adapters too: [`PathStack::in_adapters`] tells them apart.
pub fn map_params<M: Module>(module: M, mapper: &mut impl MapParams) -> M {
    module.map(&mut Walk { at: PathStack::default(), inner: mapper })
}
