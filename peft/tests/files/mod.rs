//! Adapter folders and checkpoints: read, described, fetched, and written for other programs.

mod export;
mod hub;
mod inspect;
mod properties;
