//! Optimizers whose states come from a checkpoint to where their parameters are.
//!
//! Burn (0.22.1) loads states to its default device, the first of the backends that were compiled in. A machine may have no such
//! device, and a program asked for another one.

use std::cell::RefCell;

use burn::optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState, StateSink, StateSource};
use burn::store::RecordError;
use burn::tensor::{Bytes, Device, Tensor};

thread_local! {
    /// Where states are being loaded to.
    static PLACE: RefCell<Option<Device>> = const { RefCell::new(None) };
}

/// An optimizer with the states of a file, on a device.
pub(crate) fn load(optimizer: ModuleOptimizer, file: Bytes, device: &Device) -> Result<ModuleOptimizer, RecordError> {
    PLACE.set(Some(device.clone()));
    let loaded = optimizer.from_bytes(file);
    PLACE.set(None);
    loaded
}

/// An optimizer that [`load`] knows.
#[derive(Clone)]
pub(crate) struct Placed<O>(pub(crate) O);

/// The state of one parameter.
#[derive(Clone)]
pub(crate) struct PlacedState<S>(S);

impl<S: RecordState> RecordState for PlacedState<S> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        self.0.state_flatten(prefix, out);
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        let place = PLACE.with_borrow(Clone::clone);
        S::state_unflatten(prefix, src, place.as_ref().unwrap_or(device)).map(Self)
    }
}

impl<O: Optimizer> Optimizer for Placed<O> {
    type State<const D: usize> = PlacedState<O::State<D>>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (tensor, state) = self.0.step(lr, tensor, grad, state.map(|it| it.0));
        (tensor, state.map(PlacedState))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        PlacedState(O::to_device(state.0, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state is asked for its device, whatever the default is.
    #[test]
    fn a_state_is_loaded_to_the_device_that_is_named() {
        struct Asked;
        impl RecordState for Asked {
            fn state_flatten(&self, _: &str, _: &mut StateSink) {}

            fn state_unflatten(_: &str, _: &mut StateSource, device: &Device) -> Option<Self> {
                device.is_autodiff().then_some(Self)
            }
        }
        let named = Device::default().autodiff();
        let ask =
            || PlacedState::<Asked>::state_unflatten("", &mut StateSource::new(Default::default()), &Device::default());
        assert!(ask().is_none());
        PLACE.set(Some(named));
        assert!(ask().is_some());
        PLACE.set(None);
    }
}
