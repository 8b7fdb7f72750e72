//! Values of frozen parameters, and whether two of them are the same but for rounding.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use crate::ops;
use crate::spec::{ParamSpec, PathStack, VisitParams, visit_params};

/// The frozen value of a parameter, as files hold it.
pub(crate) fn value_of<M: Module>(model: &M, param: &ParamSpec) -> TensorData {
    struct Find<'a>(&'a ParamSpec, Option<TensorData>);
    impl VisitParams for Find<'_> {
        fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
            if !at.in_adapters() && at.path() == self.0.path() {
                let value = ops::to_f32(param.base());
                let value = if self.0.is_transposed_on_disk() { value.transpose() } else { value };
                self.1 = Some(value.into_data());
            }
        }
    }
    let mut find = Find(param, None);
    visit_params(model, &mut find);
    find.1.expect("a description names a parameter of its model")
}

/// The first parameter of a plain model that holds NaN or infinity. Adapters are left out.
pub fn first_not_finite<M: Module>(model: &M) -> Option<String> {
    struct Find(Option<String>);
    impl VisitParams for Find {
        fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
            if self.0.is_none()
                && !at.in_adapters()
                && !ops::to_f32(param.base()).into_data().iter::<f32>().all(f32::is_finite)
            {
                self.0 = Some(at.path());
            }
        }
    }
    let mut find = Find(None);
    visit_params(model, &mut find);
    find.0
}

/// How far numbers may be apart, of the largest of them, and be the same in half precision.
pub(crate) const HALF_PRECISION: f32 = 1e-2;

/// Whether two tensors have one shape, and the same numbers but for rounding.
pub(crate) fn is_close(a: &TensorData, b: &TensorData, tolerance: f32) -> bool {
    let largest = b.iter::<f32>().fold(0.0f32, |max, it| max.max(it.abs()));
    let close = |(a, b): (f32, f32)| (a - b).abs() <= tolerance * largest;
    a.shape() == b.shape() && a.iter::<f32>().zip(b.iter::<f32>()).all(close)
}
