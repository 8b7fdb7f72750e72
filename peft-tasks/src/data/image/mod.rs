//! Pictures: from a file to the numbers that a model reads.
//!
//! [`Picture`] and [`Mask`] decode files, [`ImageProcessor`] does what a `preprocessor_config.json` says, and [`Pictures`] decodes
//! those of the next batch on threads of its own. What is changed at random while a model learns is said by
//! [`Augmentations`](super::augmentation::Augmentations).

pub(crate) mod change;
mod decoding;
mod defaults;
pub mod geometry;
pub mod listing;
pub mod mask;
pub mod picture;
pub mod pictures;
pub mod processor;
pub mod resampling;

pub use listing::ImageRows;
pub use mask::Mask;
pub use picture::Picture;
pub use pictures::Pictures;
pub use processor::ImageProcessor;
pub use resampling::Resampling;
