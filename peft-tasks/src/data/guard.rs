//! The border to a library that may panic on files and texts of strangers.
//!
//! `tokenizers` indexes tables that it has read from `tokenizer.json` without checking them, so a damaged file can panic
//! while it is read, or at the first text. The library has no way to be asked beforehand. So this is the one place where a
//! panic is caught: it becomes an error that names the file, and nothing is printed about it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Runs something that may panic. `None` if it did.
///
/// Nothing that `run` has touched may be used after a panic, unless it cannot be left half-changed.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Option<T> {
    // A hook is one for the whole process: this one passes on whatever does not come from here.
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                before(info);
            }
        }));
    });
    let outer = IS_QUIET.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    IS_QUIET.set(outer);
    outcome.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_no_value() {
        assert_eq!(guarded(|| 3), Some(3));
        let empty: [i32; 0] = [];
        assert_eq!(guarded(|| empty[std::hint::black_box(1)]), None);
    }
}
