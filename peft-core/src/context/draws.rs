//! What a layer drew at random, so that it draws the same when it is computed again.
//!
//! Everything in this workspace that draws in a forward does it through [`draw`]. [`record`] keeps what a function drew,
//! and a [`Snapshot`](super::Snapshot) gives it back, without asking the generator of the device. So what is drawn
//! afterwards is what it would have been.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use super::forward::{enter, read};
use super::tape::{Drawn, Tape};

/// What `draw` draws now, or what it drew when this was recorded.
pub(crate) fn draw<T: Any + Clone + Send>(draw: impl FnOnce() -> T) -> T {
    let Some(tape) = read(|it| it.tape.clone()) else { return draw() };
    let again = match &mut *tape.borrow_mut() {
        Tape::Replaying(drawn) => drawn.next(),
        Tape::Recording(_) => None,
    };
    if let Some(drawn) = again {
        return *drawn.downcast().expect("a layer that is computed again draws what it drew before");
    }
    let drawn = draw();
    if let Tape::Recording(all) = &mut *tape.borrow_mut() {
        all.push(Box::new(drawn.clone()));
    }
    drawn
}

/// Runs a function and keeps what it draws.
pub(crate) fn record<R>(run: impl FnOnce() -> R) -> (R, Drawn) {
    let tape = Rc::new(RefCell::new(Tape::Recording(Drawn::new())));
    let guard = enter(|it| it.tape = Some(tape.clone()));
    let result = run();
    drop(guard);
    let drawn = match &mut *tape.borrow_mut() {
        Tape::Recording(drawn) => std::mem::take(drawn),
        Tape::Replaying(_) => Drawn::new(),
    };
    (result, drawn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Snapshot;

    #[test]
    fn what_was_drawn_is_drawn_again_and_nothing_else_is_touched() {
        let mut next = 0;
        let mut count = || {
            next += 1;
            next
        };
        let (first, drawn) = record(|| [draw(&mut count), draw(&mut count)]);
        assert_eq!((first, drawn.len()), ([1, 2], 2));
        let again = Snapshot::take().enter(drawn);
        assert_eq!([draw(&mut count), draw(&mut count)], [1, 2]);
        drop(again);
        assert_eq!(draw(&mut count), 3);
        assert!(read(|it| it.draws_anew()));
    }
}
