//! Tests of the whole: methods on models, against numbers recorded from the reference.

mod layers;
mod parity;
mod support;
