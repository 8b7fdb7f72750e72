//! What a layer drew at random, so that it draws the same when it is computed again.
//!
//! Everything in this workspace that draws in a forward does it through [`draw`]. [`record`] keeps what a function drew and
//! [`replay`] gives it back, without asking the generator of the device. So what is drawn afterwards is what it would have
//! been.

use std::any::Any;
use std::cell::RefCell;

/// What was drawn, in order.
pub(crate) type Drawn = Vec<Box<dyn Any + Send>>;

#[derive(Default)]
enum Tape {
    #[default]
    Off,
    Recording(Drawn),
    Replaying(std::vec::IntoIter<Box<dyn Any + Send>>),
}

thread_local! {
    static TAPE: RefCell<Tape> = const { RefCell::new(Tape::Off) };
}

/// What `draw` draws now, or what it drew when this was recorded.
pub(crate) fn draw<T: Any + Clone + Send>(draw: impl FnOnce() -> T) -> T {
    let again = TAPE.with_borrow_mut(|tape| match tape {
        Tape::Replaying(drawn) => drawn.next(),
        _ => None,
    });
    if let Some(drawn) = again {
        return *drawn.downcast().expect("a layer that is computed again draws what it drew before");
    }
    let drawn = draw();
    TAPE.with_borrow_mut(|tape| {
        if let Tape::Recording(all) = tape {
            all.push(Box::new(drawn.clone()));
        }
    });
    drawn
}

/// Whether nothing is recorded or replayed now.
pub(crate) fn is_off() -> bool {
    TAPE.with_borrow(|tape| matches!(tape, Tape::Off))
}

/// Runs a function and keeps what it draws.
pub(crate) fn record<R>(run: impl FnOnce() -> R) -> (R, Drawn) {
    let (result, tape) = with(Tape::Recording(Drawn::new()), run);
    match tape {
        Tape::Recording(drawn) => (result, drawn),
        _ => (result, Drawn::new()),
    }
}

/// Runs a function that draws what it drew when it was recorded.
pub(crate) fn replay<R>(drawn: Drawn, run: impl FnOnce() -> R) -> R {
    with(Tape::Replaying(drawn.into_iter()), run).0
}

/// Runs a function with a tape, whatever tape there was before.
fn with<R>(tape: Tape, run: impl FnOnce() -> R) -> (R, Tape) {
    struct Restore(Option<Tape>);
    impl Drop for Restore {
        fn drop(&mut self) {
            if let Some(before) = self.0.take() {
                TAPE.replace(before);
            }
        }
    }
    let mut restore = Restore(Some(TAPE.replace(tape)));
    let result = run();
    let tape = TAPE.replace(restore.0.take().unwrap_or_default());
    (result, tape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_drawn_is_drawn_again_and_nothing_else_is_touched() {
        let mut next = 0;
        let mut count = || {
            next += 1;
            next
        };
        let (first, drawn) = record(|| [draw(&mut count), draw(&mut count)]);
        assert_eq!((first, drawn.len()), ([1, 2], 2));
        assert_eq!(replay(drawn, || [draw(&mut count), draw(&mut count)]), [1, 2]);
        assert_eq!(draw(&mut count), 3);
        assert!(is_off());
    }
}
