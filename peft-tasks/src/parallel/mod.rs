//! Several processes that share the work of one run.

pub mod group;
