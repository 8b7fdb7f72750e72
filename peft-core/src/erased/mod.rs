//! Modules behind objects: what holds any adapter, or any model, without knowing its type.

mod module;
mod walk;

pub use module::AnyModule;
pub(crate) use walk::{Erase, ErasedMapper, ErasedVisitor, Ranked, Restore, with_rank};
