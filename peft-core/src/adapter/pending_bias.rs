//! What an adapter on a weight owes to the bias of the same layer.
//!
//! Some adapters change the bias too: IA3 scales all that a layer puts out. Layers that call [`crate::forward`] hand both
//! over together. A `burn::nn` layer reads `weight.val()` and then `bias.val()`, and all that a bias sees there is
//! itself. So composing a weight notes which adapters owe something to the bias, and the next bias that is composed
//! settles it if it belongs to the same layer. The note lives for no longer than from one read to the next.

use std::cell::RefCell;

use burn::tensor::Tensor;

use crate::adapter::AnyAdapter;
use crate::spec::ParamSpec;

struct Note {
    module: String,
    adapters: Vec<AnyAdapter>,
}

thread_local! {
    static OWED: RefCell<Option<Note>> = const { RefCell::new(None) };
    static SUSPENDED: RefCell<bool> = const { RefCell::new(false) };
}

/// Called with each parameter composed by these adapters: notes what a weight owes, settles what a bias is owed.
pub(crate) fn settle<const D: usize>(param: &ParamSpec, adapters: &[&AnyAdapter], composed: Tensor<D>) -> Tensor<D> {
    let note = OWED.take();
    if param.name == "bias" {
        let owed = note.filter(|it| it.module == param.module);
        return owed.map_or(composed.clone(), |note| fold(&note.adapters, composed));
    }
    let adapters: Vec<AnyAdapter> = adapters.iter().filter(|it| it.touches_bias()).map(|it| (*it).clone()).collect();
    if !adapters.is_empty() && !SUSPENDED.with_borrow(|it| *it) {
        OWED.set(Some(Note { module: param.module.clone(), adapters }));
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
    OWED.set(None);
}

/// Runs something that composes weights without noting anything.
pub(crate) fn suspended<T>(run: impl FnOnce() -> T) -> T {
    SUSPENDED.set(true);
    let result = run();
    SUSPENDED.set(false);
    result
}

/// Runs something as if no weight had noted anything yet, and leaves the notes that there are.
pub(crate) fn apart<T>(run: impl FnOnce() -> T) -> T {
    let noted = OWED.take();
    let result = run();
    OWED.set(noted);
    result
}
