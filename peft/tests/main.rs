//! Tests of the whole: methods on models, against numbers recorded from the reference.

#[macro_use]
mod support;

mod adapters;
mod allocations;
mod bad_input;
mod checklist;
mod command;
mod diffusion;
mod files;
mod generation;
mod half_precision;
mod in_pieces;
mod laws;
mod layers;
mod library;
mod own_layers;
mod parity;
mod pictures;
mod tied_heads;
mod training;
