//! Parameters carried across a border that knows no types.
//!
//! [`ModuleVisitor`] and [`ModuleMapper`] have const-generic methods, so neither is object-safe. Here a parameter is a
//! pair of its rank and an `Any`: [`Erase`] turns typed calls into erased ones, [`Restore`] turns them back.

use std::any::Any;

use burn::module::{Flag, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Bool, Int, Tensor};

/// Runs `$body` with `$d` bound to the constant rank `$rank`.
macro_rules! with_rank {
    ($rank:expr, $d:ident => $body:expr) => {
        match $rank {
            1 => {
                const $d: usize = 1;
                $body
            }
            2 => {
                const $d: usize = 2;
                $body
            }
            3 => {
                const $d: usize = 3;
                $body
            }
            4 => {
                const $d: usize = 4;
                $body
            }
            5 => {
                const $d: usize = 5;
                $body
            }
            rank => unreachable!("parameters have 1 to 5 axes, not {rank}"),
        }
    };
}
pub(crate) use with_rank;

/// A value of a rank known only at run time: `Tensor<D>` or `Param<Tensor<D, K>>`.
pub(crate) struct Ranked {
    pub(crate) rank: usize,
    value: Box<dyn Any>,
}

impl Ranked {
    pub(crate) fn new<T: Any>(rank: usize, value: T) -> Self {
        Self { rank, value: Box::new(value) }
    }

    pub(crate) fn get<T: Any>(self) -> T {
        *self.value.downcast().expect("rank and kind travel with the value")
    }
}

/// What kind of tensor a parameter holds.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Float,
    Int,
    Bool,
}

/// An object-safe [`ModuleVisitor`].
pub(crate) trait ErasedVisitor {
    fn param(&mut self, kind: Kind, rank: usize, param: &dyn Any);
    fn flag(&mut self, flag: &Param<Flag>);
    fn enter(&mut self, name: &str, container: &str);
    fn exit(&mut self, name: &str, container: &str);
}

/// An object-safe [`ModuleMapper`].
pub(crate) trait ErasedMapper {
    fn param(&mut self, kind: Kind, param: Ranked) -> Ranked;
    fn flag(&mut self, flag: Param<Flag>) -> Param<Flag>;
    fn enter(&mut self, name: &str, container: &str);
    fn exit(&mut self, name: &str, container: &str);
}

/// Typed calls in, erased calls out.
pub(crate) struct Erase<'a, T: ?Sized>(pub(crate) &'a mut T);

impl ModuleVisitor for Erase<'_, dyn ErasedVisitor + '_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.param(Kind::Float, D, param);
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.0.param(Kind::Int, D, param);
    }
    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.0.param(Kind::Bool, D, param);
    }
    fn visit_flag(&mut self, flag: &Param<Flag>) {
        self.0.flag(flag);
    }
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }
    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
}

impl ModuleMapper for Erase<'_, dyn ErasedMapper + '_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.0.param(Kind::Float, Ranked::new(D, param)).get()
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        self.0.param(Kind::Int, Ranked::new(D, param)).get()
    }
    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        self.0.param(Kind::Bool, Ranked::new(D, param)).get()
    }
    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        self.0.flag(flag)
    }
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }
    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
}

/// Erased calls in, typed calls out.
pub(crate) struct Restore<'a, T>(pub(crate) &'a mut T);

impl<V: ModuleVisitor> ErasedVisitor for Restore<'_, V> {
    fn param(&mut self, kind: Kind, rank: usize, param: &dyn Any) {
        const TYPED: &str = "rank and kind travel with the value";
        with_rank!(rank, D => match kind {
            Kind::Float => self.0.visit_float::<D>(param.downcast_ref().expect(TYPED)),
            Kind::Int => self.0.visit_int::<D>(param.downcast_ref().expect(TYPED)),
            Kind::Bool => self.0.visit_bool::<D>(param.downcast_ref().expect(TYPED)),
        })
    }
    fn flag(&mut self, flag: &Param<Flag>) {
        self.0.visit_flag(flag);
    }
    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

impl<M: ModuleMapper> ErasedMapper for Restore<'_, M> {
    fn param(&mut self, kind: Kind, param: Ranked) -> Ranked {
        with_rank!(param.rank, D => match kind {
            Kind::Float => Ranked::new(D, self.0.map_float::<D>(param.get())),
            Kind::Int => Ranked::new(D, self.0.map_int::<D>(param.get())),
            Kind::Bool => Ranked::new(D, self.0.map_bool::<D>(param.get())),
        })
    }
    fn flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        self.0.map_flag(flag)
    }
    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}
