//! The context of the forward that runs on this thread.
//!
//! A layer reads it where it needs to, a caller changes it for a while by [`enter`], and a layer that is computed again
//! later does so in a [`Snapshot`] of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::rows::{Name, Rows};
use super::tape::{Drawn, Tape};
use super::text::Text;

thread_local! {
    static CONTEXT: RefCell<Context> = const { RefCell::new(Context::NONE) };
}

/// What concerns every layer of a forward. A clone shares what layers note in it.
#[derive(Clone)]
pub(crate) struct Context {
    /// Which row uses which adapter; `None` if rows are not told apart.
    pub(crate) rows: Option<Rc<Rows>>,
    /// What is read; `None` if nobody says.
    pub(crate) text: Option<Text>,
    /// Whether products with weights are in bf16.
    pub(crate) bf16: bool,
    /// Whether operations are composed of Burn's own, kernels of ours or not.
    pub(crate) composed: bool,
    /// What is drawn at random is recorded, or was.
    pub(super) tape: Option<Rc<RefCell<Tape>>>,
    /// How many layers keep their inputs only and are computed again in the backward pass; `None` if none is to.
    pub(crate) checkpointed: Option<Rc<Cell<usize>>>,
}

impl Context {
    const NONE: Self = Self { rows: None, text: None, bf16: false, composed: false, tape: None, checkpointed: None };

    /// Whether draws are neither recorded nor replayed.
    pub(crate) fn draws_anew(&self) -> bool {
        self.tape.is_none()
    }
}

/// Looks at the context.
pub(crate) fn read<R>(look: impl FnOnce(&Context) -> R) -> R {
    CONTEXT.with_borrow(look)
}

/// Puts the context back that there was before. Also when something panics.
#[must_use = "the context lasts as long as the guard"]
pub(crate) struct Guard(Context);

impl Drop for Guard {
    fn drop(&mut self) {
        CONTEXT.set(std::mem::replace(&mut self.0, Context::NONE));
    }
}

/// Changes the context until the guard is dropped.
pub(crate) fn enter(change: impl FnOnce(&mut Context)) -> Guard {
    let before = read(Context::clone);
    let mut after = before.clone();
    change(&mut after);
    CONTEXT.set(after);
    Guard(before)
}

/// A context that may go to another thread, for a layer that is computed again in the backward pass.
pub(crate) struct Snapshot {
    names: Option<Vec<Name>>,
    text: Option<Text>,
    bf16: bool,
    composed: bool,
}

impl Snapshot {
    /// Of now.
    pub(crate) fn take() -> Self {
        read(|it| Self {
            names: it.rows.as_ref().map(|it| it.names()),
            text: it.text.clone(),
            bf16: it.bf16,
            composed: it.composed,
        })
    }

    /// Enters it again, where draws give what was drawn then. What was wrong with rows was noted then, and layers inside a
    /// layer are computed once.
    pub(crate) fn enter(self, drawn: Drawn) -> Guard {
        enter(|now| {
            *now = Context {
                rows: self.names.map(|names| Rc::new(Rows::new(names))),
                text: self.text,
                bf16: self.bf16,
                composed: self.composed,
                tape: Some(Rc::new(RefCell::new(Tape::Replaying(drawn.into_iter())))),
                checkpointed: now.checkpointed.take(),
            };
        })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::context::{draw, record};

    fn is_clean() -> bool {
        read(|it| it.rows.is_none() && it.text.is_none() && !it.bf16 && it.draws_anew() && it.checkpointed.is_none())
    }

    #[test]
    fn a_panic_leaves_the_next_forward_clean() {
        let panics = || {
            let _outer = enter(|it| it.bf16 = true);
            let _rows = enter(|it| it.rows = Some(Rc::new(Rows::new(vec![None]))));
            let _layers = enter(|it| it.checkpointed = Some(Rc::default()));
            record(|| -> () { panic!("in a layer") });
        };
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert!(is_clean());
    }

    #[test]
    fn a_snapshot_is_entered_as_it_was() {
        let (snapshot, drawn) = {
            let _bf16 = enter(|it| it.bf16 = true);
            record(|| {
                draw(|| 7);
                Snapshot::take()
            })
        };
        assert!(is_clean());
        let again = snapshot.enter(drawn);
        assert!(read(|it| it.bf16 && !it.draws_anew()));
        assert_eq!(draw(|| 8), 7);
        drop(again);
        assert!(is_clean());
    }
}
