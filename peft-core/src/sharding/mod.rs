//! A base in pieces: every process keeps a part of each matrix, and reads the rest from the others when a product needs it.
//!
//! As ZeRO-3 and FSDP, but for a base that is frozen. What a process keeps never changes, so the others may read it whenever
//! they want, and nobody has to take part: processes need not compute the same layers, or as many batches, or at the same
//! time. There is no order to keep, and nothing to wait for that could wait in turn.
//!
//! [`ShardedBase`] knows the matrices of one base, and [`Peers`] is how it reads what other processes keep. Such a matrix is
//! a tensor like any other frozen one, which holds no numbers (`tensor`). A product, a loss and whatever reads a base in
//! single precision make it whole first and let it go at once; the backward pass does so again. Rows of a table are read
//! one by one. While a product is computed, the matrix that was used next the last time is read already (`ahead`, `crate::order`).

// Without the CPU backend nothing is in pieces.
#![cfg_attr(not(feature = "flex"), allow(dead_code))]

mod ahead;
mod base;
mod kept;
mod matrix;
mod peers;
#[cfg(feature = "flex")]
mod tensor;
#[cfg(all(test, feature = "flex"))]
mod tests;
#[cfg(not(feature = "flex"))]
mod without;

pub use base::ShardedBase;
pub use kept::Kept;
pub use peers::{Peers, Wanted};
#[cfg(feature = "flex")]
pub(crate) use tensor::{is_packed, look_up, whole};
#[cfg(not(feature = "flex"))]
pub(crate) use without::is_packed;
