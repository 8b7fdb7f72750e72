//! What was drawn at random in a forward.

use std::any::Any;

/// What was drawn, in order.
pub(crate) type Drawn = Vec<Box<dyn Any + Send>>;

pub(super) enum Tape {
    Recording(Drawn),
    Replaying(std::vec::IntoIter<Box<dyn Any + Send>>),
}
