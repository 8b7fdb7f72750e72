//! Encoders: models that see the whole text.

pub mod bert;
pub mod deberta;
pub mod deberta_v2;
pub(crate) mod disentangled;
pub mod modernbert;
pub mod roberta;
