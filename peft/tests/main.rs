//! Tests of the whole: methods on models, against numbers recorded from the reference.

mod allocations;
mod bad_input;
mod behaviours;
mod calibration;
mod checklist;
mod checkpointing;
mod cli;
mod combined;
mod export;
mod generation;
mod golden;
mod halves;
mod hub;
mod inspect;
mod labels;
mod laws;
mod layers;
mod own_layers;
mod parity;
mod prompts;
mod properties;
mod questions;
mod rows;
mod support;
mod tied_heads;
mod training;
