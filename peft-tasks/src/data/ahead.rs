//! Items that are computed before they are needed, beside the one who needs them: decoded files.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use peft_core::{PeftError, Result};

use crate::data::guard::guarded;

/// Computes items on threads of its own as soon as they are announced.
///
/// What is not announced is computed by whoever takes it. So an announcement changes nothing but the time that is waited.
pub struct Ahead<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    compute: Box<dyn Fn(usize) -> Result<T> + Send + Sync>,
    threads: usize,
    /// Items that are kept for somebody to take: what waits in memory.
    most: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    slots: HashMap<usize, Slot<T>>,
    queue: VecDeque<usize>,
    /// The number of the last announcement.
    round: usize,
    running: usize,
    closed: bool,
}

struct Slot<T> {
    value: Progress<T>,
    /// The last announcement that named the item.
    round: usize,
}

enum Progress<T> {
    Waiting,
    Running,
    Done(Result<T>),
}

impl<T: Send + 'static> Ahead<T> {
    /// Computes items by `compute`, up to `threads` of them at once. No more than `most` wait to be taken: two batches, if all
    /// that is announced shall be computed.
    pub fn new(threads: usize, most: usize, compute: impl Fn(usize) -> Result<T> + Send + Sync + 'static) -> Self {
        let state = State { slots: HashMap::new(), queue: VecDeque::new(), round: 0, running: 0, closed: false };
        let shared =
            Shared { compute: Box::new(compute), threads, most, state: Mutex::new(state), changed: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Says which items are needed soon. What was announced before the last time and not taken is forgotten.
    pub fn announce(&self, items: &[usize]) {
        let mut state = self.shared.lock();
        state.round += 1;
        let round = state.round;
        state.slots.retain(|_, it| it.round + 1 >= round || matches!(it.value, Progress::Running));
        self.start(items, &mut state);
    }

    /// Puts items that nobody has announced behind the others, and sees to it that somebody computes them.
    fn start(&self, items: &[usize], state: &mut State<T>) {
        let round = state.round;
        for item in items {
            if let Some(slot) = state.slots.get_mut(item) {
                slot.round = round;
            } else if state.slots.len() < self.shared.most {
                state.slots.insert(*item, Slot { value: Progress::Waiting, round });
                state.queue.push_back(*item);
            }
        }
        while state.running < self.shared.threads && state.running < state.queue.len() {
            state.running += 1;
            let shared = self.shared.clone();
            // Where the system gives no thread, whoever takes an item computes it.
            if thread::Builder::new().name("ahead".to_owned()).spawn(move || shared.work()).is_err() {
                state.running -= 1;
                break;
            }
        }
    }

    /// Several items, in their order. Those that were not announced are computed here and on the threads together.
    ///
    /// # Errors
    /// Those of the computation, of the first that fails.
    pub fn take_all(&self, items: &[usize]) -> Result<Vec<T>> {
        self.start(items, &mut self.shared.lock());
        items.iter().map(|item| self.take(*item)).collect()
    }

    /// An item: as it was computed beforehand, or computed now.
    ///
    /// # Errors
    /// Those of the computation.
    pub fn take(&self, item: usize) -> Result<T> {
        let mut state = self.shared.lock();
        while matches!(state.slots.get(&item), Some(Slot { value: Progress::Running, .. })) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.slots.remove(&item) {
            Some(Slot { value: Progress::Done(value), .. }) => value,
            _ => {
                drop(state);
                (self.shared.compute)(item)
            }
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes what is announced until nothing is left.
    fn work(&self) {
        loop {
            let mut state = self.lock();
            let Some(item) = state.queue.pop_front().filter(|_| !state.closed) else {
                state.running -= 1;
                return;
            };
            // Somebody may have taken it meanwhile.
            match state.slots.get_mut(&item) {
                Some(slot) if matches!(slot.value, Progress::Waiting) => slot.value = Progress::Running,
                _ => continue,
            }
            drop(state);
            let value = guarded(|| (self.compute)(item))
                .unwrap_or_else(|| Err(PeftError::Invalid(format!("item {item} could not be prepared"))));
            if let Some(slot) = self.lock().slots.get_mut(&item) {
                slot.value = Progress::Done(value);
            }
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
impl<T> Ahead<T> {
    /// Waits until all that was announced is computed.
    pub(crate) fn finish(&self) {
        let mut state = self.shared.lock();
        let is_open = |it: &Slot<T>| !matches!(it.value, Progress::Done(_));
        while state.slots.values().any(is_open) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
    }
}

impl<T> fmt::Debug for Ahead<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").field("threads", &self.shared.threads).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn items_are_the_same_announced_or_not() {
        let ahead =
            Ahead::new(
                3,
                64,
                |item| if item == 7 { Err(PeftError::Invalid("seven".to_owned())) } else { Ok(item * item) },
            );
        ahead.announce(&(0..20).collect::<Vec<_>>());
        for item in (0..30).rev() {
            match ahead.take(item) {
                Ok(value) => assert_eq!(value, item * item),
                Err(error) => assert_eq!((item, error.to_string()), (7, "seven".to_owned())),
            }
        }
    }

    #[test]
    fn what_is_announced_is_computed_once_and_elsewhere() {
        let (done, finished) = channel();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let here = thread::current().id();
        let ahead = Ahead::new(1, 64, move |item| {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = done.send(());
            Ok((item, thread::current().id()))
        });
        ahead.announce(&[3]);
        finished.recv().unwrap();
        let (item, id) = ahead.take(3).unwrap();
        assert!(item == 3 && id != here);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        // What is taken is gone.
        assert_eq!(ahead.take(3).unwrap().1, here);
    }

    #[test]
    fn two_announcements_are_kept_and_no_more() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let ahead = Ahead::new(2, 64, move |item| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(item)
        });
        for items in [[1, 2], [3, 4], [5, 6]] {
            ahead.announce(&items);
            ahead.finish();
        }
        assert_eq!(ahead.take_all(&[3, 4, 5, 6]).unwrap(), [3, 4, 5, 6]);
        assert_eq!(calls.load(Ordering::SeqCst), 6, "none of them a second time");
        assert_eq!(ahead.take_all(&[1, 9, 9]).unwrap(), [1, 9, 9]);
        assert_eq!(calls.load(Ordering::SeqCst), 9, "the first was forgotten, and what is taken is gone");
    }

    #[test]
    fn memory_has_an_end_and_so_has_a_panic() {
        let ahead = Ahead::new(2, 64, |item| if item == 1 { panic!("one") } else { Ok(item) });
        for round in 0..200 {
            ahead.announce(&[round, round + 1, 1_000 + round]);
        }
        assert!(ahead.shared.lock().slots.len() <= 64);
        let quiet = Ahead::new(1, 64, |_: usize| -> Result<usize> { panic!("never mind") });
        quiet.announce(&[5]);
        // Either the thread has met it, or it is met here.
        assert!(guarded(|| quiet.take(5)).is_none_or(|it| it.is_err()));
    }
}
