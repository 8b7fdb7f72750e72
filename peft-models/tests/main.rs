//! Base models against the reference's numbers, and against themselves.

mod architectures;
mod cache;
mod diffusion;
mod input;
mod loading;
mod reference;
mod sizes;
mod support;
