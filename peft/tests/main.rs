//! Tests of the whole: methods on models, against numbers recorded from the reference.

mod hub;
mod inspect;
mod layers;
mod parity;
mod support;
