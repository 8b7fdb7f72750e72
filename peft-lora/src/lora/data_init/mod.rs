//! Factors that start from data: EVA and CorDA.

pub mod calibration;
pub mod config;
pub mod corda;
pub mod eva;
