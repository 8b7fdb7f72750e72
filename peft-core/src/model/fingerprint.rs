//! A short name for the values of a base, wherever it lies and however its files are cut.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::ops;
use crate::spec::{PathStack, VisitParams, visit_params};
use crate::stable_hash;

/// Values that are looked at, at either end of a parameter: all of them would have to be fetched from the device.
const LOOKED_AT: usize = 32;

/// What tells one base from another: the number of its parameters, and a hash of their paths, shapes and a few values of
/// each. Adapters do not count. It is the same for numbers that are kept in half precision and in single.
pub fn fingerprint<M: Module>(model: &M) -> String {
    struct Look {
        elements: usize,
        seen: String,
    }
    impl VisitParams for Look {
        fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
            if at.in_adapters() {
                return;
            }
            let value = ops::to_f32(param.base());
            let (shape, count) = (value.dims(), value.shape().num_elements());
            self.elements += count;
            self.seen += &format!("{} {shape:?}", at.path());
            let flat: Tensor<1> = value.reshape([count]);
            for range in [0..count.min(LOOKED_AT), count.saturating_sub(LOOKED_AT)..count] {
                if range.is_empty() {
                    continue;
                }
                let values = flat.clone().slice(range).into_data().convert::<f32>();
                for value in values.iter::<f32>() {
                    self.seen += &format!(" {:x}", value.to_bits());
                }
            }
        }
    }
    let mut look = Look { elements: 0, seen: String::new() };
    visit_params(model, &mut look);
    format!("{} parameters, {:016x}", look.elements, stable_hash(&look.seen))
}
