//! Which row of a batch uses which adapter, by name.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// `None` is the row that uses the base alone.
pub(crate) type Name = Option<Arc<str>>;

/// What keeps rows from having adapters of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// A parameter that is read for all rows at once.
    Parameter(String),
    /// A parameter whose layer sees so many rows, which are no multiple of the names.
    Count(String, usize),
}

/// The names of all rows, and the first thing that was wrong with them.
pub(crate) struct Rows {
    names: RefCell<Vec<Name>>,
    misuse: Rc<RefCell<Option<Misuse>>>,
}

impl Rows {
    pub(crate) fn new(names: Vec<Name>) -> Self {
        Self { names: RefCell::new(names), misuse: Rc::default() }
    }

    /// Some of the rows, for a layer that is computed for them alone.
    pub(crate) fn group(&self, names: Vec<Name>) -> Self {
        Self { names: RefCell::new(names), misuse: self.misuse.clone() }
    }

    pub(crate) fn names(&self) -> Vec<Name> {
        self.names.borrow().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.names.borrow().len()
    }

    /// The names that rows have, each once.
    pub(crate) fn different(&self) -> Vec<Name> {
        let mut different: Vec<Name> = Vec::new();
        for name in &*self.names.borrow() {
            if !different.contains(name) {
                different.push(name.clone());
            }
        }
        different
    }

    /// Says that the rows of the batch are these of before from now on: what generation repeats, reorders and drops.
    pub(crate) fn reorder(&self, rows: &[usize]) {
        let mut names = self.names.borrow_mut();
        *names = rows.iter().map(|row| names.get(*row).cloned().flatten()).collect();
    }

    pub(crate) fn note(&self, misuse: Misuse) {
        self.misuse.borrow_mut().get_or_insert(misuse);
    }

    pub(crate) fn take_misuse(&self) -> Option<Misuse> {
        self.misuse.borrow_mut().take()
    }
}
