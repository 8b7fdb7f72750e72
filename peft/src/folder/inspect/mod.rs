//! What an adapter folder holds, whether it fits a base model, and which other programs can read it.

mod facts;
mod fit;
mod inspection;
mod look;
mod programs;

#[cfg(feature = "lora")]
pub(crate) use fit::spec_of;
pub use inspection::{Fit, Flags, Inspection, Outcome, Reason, Verdict};
pub use look::inspect;
