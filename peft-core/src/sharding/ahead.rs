//! Reading one matrix while another is used: a thread that reads what will be asked for next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use burn::tensor::Bytes;

use crate::error::{PeftError, Result};

/// A matrix, whole.
pub(super) type Whole = Result<Bytes>;

/// One thread, which holds one matrix at most.
pub(super) struct Ahead {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    asked: Option<usize>,
    reading: Option<usize>,
    ready: Option<(usize, Whole)>,
    is_over: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, read: impl Fn(usize) -> Whole) {
        let mut state = self.lock();
        while !state.is_over {
            let Some(matrix) = state.asked.take() else {
                state = self.wait(state);
                continue;
            };
            (state.reading, state.ready) = (Some(matrix), None);
            drop(state);
            let whole = catch_unwind(AssertUnwindSafe(|| read(matrix)));
            let failed = |_| Err(PeftError::Invalid("reading a part of the base ahead failed".to_owned()));
            state = self.lock();
            (state.reading, state.ready) = (None, Some((matrix, whole.unwrap_or_else(failed))));
            self.changed.notify_all();
        }
    }
}

impl Ahead {
    /// `read` gives a matrix by its number.
    pub(super) fn new(read: impl Fn(usize) -> Whole + Send + 'static) -> Self {
        let desk = Arc::new(Desk::default());
        let own = desk.clone();
        let thread = thread::Builder::new().name("base ahead".to_owned()).spawn(move || own.work(read));
        // Without a thread everything is read when it is needed.
        Self { desk, thread: thread.ok() }
    }

    /// Reads a matrix that will be asked for.
    pub(super) fn ask(&self, matrix: usize) {
        if self.thread.is_some() {
            self.desk.lock().asked = Some(matrix);
            self.desk.changed.notify_all();
        }
    }

    /// The matrix, if it was read or is being read. What was read in vain is let go.
    pub(super) fn take(&self, matrix: usize) -> Option<Whole> {
        let mut state = self.desk.lock();
        loop {
            if state.ready.as_ref().is_some_and(|it| it.0 == matrix) {
                return state.ready.take().map(|it| it.1);
            }
            if state.reading != Some(matrix) && state.asked != Some(matrix) {
                (state.asked, state.ready) = (None, None);
                return None;
            }
            state = self.desk.wait(state);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.desk.lock().is_over = true;
        self.desk.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
