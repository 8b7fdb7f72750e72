//! Models that read pictures and text.

pub mod blip2;
