//! Factors that start from data: EVA and CorDA; and from the files of a base that is quantised: LoftQ.

pub mod calibration;
pub mod config;
pub mod corda;
pub mod eva;
pub mod loftq;
