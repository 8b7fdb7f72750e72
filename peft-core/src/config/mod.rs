//! Configurations: what a method's `adapter_config.json` can do, and the fields that all of them share.

pub mod fields;
pub mod limits;
pub mod peft_config;
pub mod projected;
