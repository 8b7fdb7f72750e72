//! Plans: which parameters a configuration adapts, and with what.

pub mod init;
pub mod memory;
#[allow(clippy::module_inception)]
pub mod plan;
pub mod replacement;
pub mod targets;
pub mod torch_random;
