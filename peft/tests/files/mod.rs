//! Adapter folders and checkpoints: read, described, fetched, merged, and written for other programs.

mod export;
mod hub;
mod index;
mod inspect;
mod merge;
#[cfg(feature = "image")]
mod pictures;
mod properties;
