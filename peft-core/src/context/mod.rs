//! What concerns every layer of a forward, and travels beside the model: which adapter each row of the batch uses, the
//! tokens that it reads, the precision of products, what was drawn at random, and whether layers are to be computed again.

mod draws;
mod forward;
mod rows;
mod tape;
mod text;

pub(crate) use draws::{draw, record};
pub(crate) use forward::{Snapshot, enter, read};
pub(crate) use rows::{Misuse, Name, Rows};
pub(crate) use text::Text;
