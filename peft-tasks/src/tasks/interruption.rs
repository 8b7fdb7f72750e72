//! Evaluations that end early, because the run that they belong to is to end.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use peft_core::{PeftError, Result};

/// Says whether a run is to end.
pub type StopAsked = Arc<dyn Fn() -> bool + Send + Sync>;

thread_local! {
    static ASKED: RefCell<Option<StopAsked>> = const { RefCell::new(None) };
    /// Whether the evaluation was ended, by whomever.
    static ENDED: Cell<bool> = const { Cell::new(false) };
}

/// What [`go_on`] asks, until it is dropped.
struct Watch(Option<StopAsked>);

impl Drop for Watch {
    fn drop(&mut self) {
        ASKED.set(self.0.take());
    }
}

/// Runs an evaluation that ends early if `asked` says so. Nothing if it did.
///
/// # Errors
/// Those of the evaluation.
pub(crate) fn stoppable<T>(asked: Option<StopAsked>, run: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    let outcome = {
        let _watch = Watch(ASKED.replace(asked));
        ENDED.set(false);
        run()
    };
    match outcome {
        Err(_) if ended() => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Asked before each batch of an evaluation.
///
/// # Errors
/// If the run is to end; nobody sees the error.
pub fn go_on() -> Result<()> {
    match ASKED.with_borrow(|it| it.as_ref().is_some_and(|it| it())) {
        true => Err(end()),
        false => Ok(()),
    }
}

/// Ends the evaluation: what it is to fail with.
pub(crate) fn end() -> PeftError {
    ENDED.set(true);
    PeftError::Invalid("the evaluation was interrupted".into())
}

/// Whether the evaluation was ended.
pub(crate) fn ended() -> bool {
    ENDED.get()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn an_evaluation_ends_before_its_next_batch() {
        let batches = |asked: Option<StopAsked>| {
            let mut done = 0;
            let outcome = stoppable(asked, || {
                for _ in 0..5 {
                    go_on()?;
                    done += 1;
                }
                Ok(())
            });
            (done, outcome.unwrap().is_some())
        };
        let calls = Arc::new(AtomicUsize::new(0));
        let third: StopAsked = Arc::new(move || calls.fetch_add(1, Ordering::Relaxed) >= 2);
        assert_eq!(batches(Some(third)), (2, false));
        assert_eq!(batches(None), (5, true));
        // Nobody is asked outside, and an error that has another reason stays one.
        go_on().unwrap();
        let failed = stoppable(Some(Arc::new(|| false)), || Err::<(), _>(PeftError::Invalid("a fault".into())));
        assert_eq!(failed.unwrap_err().to_string(), "a fault");
    }
}
