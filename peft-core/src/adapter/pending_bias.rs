//! What an adapter on a weight does to the bias of the same layer.
//!
//! Some adapters change the bias too: IA3 scales all that a layer puts out. Layers that call [`crate::forward`] hand both
//! over together. A `burn::nn` layer reads `weight.val()` and then `bias.val()`, and all that a bias sees there is
//! itself. So composing a weight notes which adapters change the bias, and the next bias that is composed
//! goes through them if it belongs to the same layer. The note lives for no longer than from one read to the next.

use std::cell::RefCell;

use burn::tensor::Tensor;

use crate::adapter::AnyAdapter;
use crate::spec::ParamSpec;

struct Note {
    module: String,
    adapters: Vec<AnyAdapter>,
}

thread_local! {
    static PENDING: RefCell<Option<Note>> = const { RefCell::new(None) };
    static SUSPENDED: RefCell<bool> = const { RefCell::new(false) };
}

/// Called with each parameter composed by these adapters: notes what is pending for the bias of a weight, and applies it to the bias.
pub(crate) fn settle<const D: usize>(param: &ParamSpec, adapters: &[&AnyAdapter], composed: Tensor<D>) -> Tensor<D> {
    let note = PENDING.take();
    if param.name == "bias" {
        let pending = note.filter(|it| it.module == param.module);
        return pending.map_or(composed.clone(), |note| fold(&note.adapters, composed));
    }
    let adapters: Vec<AnyAdapter> = adapters.iter().filter(|it| it.touches_bias()).map(|it| (*it).clone()).collect();
    if !adapters.is_empty() && !SUSPENDED.with_borrow(|it| *it) {
        PENDING.set(Some(Note { module: param.module.clone(), adapters }));
    }
    composed
}

/// What some adapters make of a bias, whatever its shape.
pub(crate) fn fold<const D: usize>(adapters: &[AnyAdapter], bias: Tensor<D>) -> Tensor<D> {
    let shape = bias.dims();
    let flat = bias.reshape([shape.iter().product::<usize>()]);
    adapters.iter().fold(flat, |bias, adapter| adapter.bias(bias)).reshape(shape)
}

/// Forgets what a weight noted: whoever calls this takes care of the bias.
pub(crate) fn forget() {
    PENDING.set(None);
}

/// Runs something that composes weights without noting anything.
pub(crate) fn suspended<T>(run: impl FnOnce() -> T) -> T {
    struct Resume;
    impl Drop for Resume {
        fn drop(&mut self) {
            SUSPENDED.set(false);
        }
    }
    SUSPENDED.set(true);
    let _resume = Resume;
    run()
}

/// Runs something as if no weight had noted anything yet, and leaves the notes that there are.
pub(crate) fn apart<T>(run: impl FnOnce() -> T) -> T {
    struct PutBack(Option<Note>);
    impl Drop for PutBack {
        fn drop(&mut self) {
            PENDING.set(self.0.take());
        }
    }
    let _noted = PutBack(PENDING.take());
    run()
}
