//! Values of frozen parameters, and whether two of them are the same but for rounding.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

use crate::ops;
use crate::spec::{ParamSpec, PathStack};

/// The frozen value of a parameter, as files hold it.
pub(crate) fn value_of<M: Module>(model: &M, param: &ParamSpec) -> TensorData {
    struct Find<'a>(PathStack, &'a ParamSpec, Option<TensorData>);
    impl ModuleVisitor for Find<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.0.in_adapters() && self.0.path() == self.1.path() {
                let value = ops::to_f32(param.base());
                let value = if self.1.is_transposed_on_disk() { value.transpose() } else { value };
                self.2 = Some(value.into_data());
            }
        }
    }
    let mut find = Find(PathStack::default(), param, None);
    model.visit(&mut find);
    find.2.expect("a site is a parameter of its model")
}

/// How far numbers may be apart, of the largest of them, and be the same in half precision.
pub(crate) const HALF_PRECISION: f32 = 1e-2;

/// Whether two tensors have one shape, and the same numbers but for rounding.
pub(crate) fn is_close(a: &TensorData, b: &TensorData, tolerance: f32) -> bool {
    let largest = b.iter::<f32>().fold(0.0f32, |max, it| max.max(it.abs()));
    let close = |(a, b): (f32, f32)| (a - b).abs() <= tolerance * largest;
    a.shape() == b.shape() && a.iter::<f32>().zip(b.iter::<f32>()).all(close)
}
