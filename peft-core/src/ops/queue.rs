//! Kernels of a thread that wait for one another, to be launched together.

use std::cell::RefCell;
use std::thread::LocalKey;

/// What waits; nothing outside of [`within`].
pub(super) type Queue<T> = RefCell<Option<Vec<T>>>;

/// What is given to the queue within `run` is launched when it ends.
pub(super) fn within<T: 'static, R>(
    queue: &'static LocalKey<Queue<T>>,
    run: impl FnOnce() -> R,
    launch: impl FnOnce(Vec<T>),
) -> R {
    /// Nothing is launched if `run` panics: nobody reads what it was for.
    struct Ended<T: 'static>(&'static LocalKey<Queue<T>>);
    impl<T> Drop for Ended<T> {
        fn drop(&mut self) {
            self.0.set(None);
        }
    }
    if queue.with_borrow(Option::is_some) {
        return run();
    }
    queue.set(Some(Vec::new()));
    let _ended = Ended(queue);
    let result = run();
    launch(queue.take().unwrap_or_default());
    result
}

/// Gives it to the queue, or launches it alone.
pub(super) fn give<T: 'static>(queue: &'static LocalKey<Queue<T>>, one: T, launch: impl FnOnce(Vec<T>)) {
    let alone = queue.with_borrow_mut(|all| match all {
        Some(all) => {
            all.push(one);
            None
        }
        None => Some(one),
    });
    if let Some(one) = alone {
        launch(vec![one]);
    }
}
