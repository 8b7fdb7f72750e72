//! Panics, which are errors to a user: drivers of cards end work with them.

use std::backtrace::BacktraceStatus;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use peft_core::{PeftError, Result};

/// Does some work, and makes an error of a panic in it. With `RUST_BACKTRACE=1` the panic is shown as usual, too.
///
/// A thread that speaks to a card may have gone first: its message is the reason for all others.
pub(super) fn as_error<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let first = Arc::new(Mutex::new(None));
    let (usual, kept) = (Arc::new(panic::take_hook()), first.clone());
    let shown = usual.clone();
    panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(|it| format!(" ({}:{})", it.file(), it.line())).unwrap_or_default();
        kept.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(format!("{message}{place}"));
        if std::backtrace::Backtrace::capture().status() == BacktraceStatus::Captured {
            shown(info);
        }
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(Box::new(move |info| usual(info)));
    outcome.unwrap_or_else(|_| {
        let message = first.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        Err(PeftError::Invalid(format!(
            "the work broke off: {message}. On a card its driver or its memory may be the reason, and `--device flex` is the \
             processor; elsewhere it is a mistake of this program, which RUST_BACKTRACE=1 shows the place of"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_why() {
        let lost = || -> Result<()> {
            let other = std::thread::spawn(|| panic!("the device was lost"));
            other.join().map_err(|_| panic!("the thread has gone"))
        };
        let error = as_error(lost).expect_err("a panic").to_string();
        assert!(error.contains("the device was lost") && error.contains("faults.rs"), "{error}");
        assert!(!error.contains("has gone"), "{error}");
        assert_eq!(as_error(|| Ok(7)).expect("no panic"), 7);
    }
}
