//! Tasks, one a file: what is learned from samples, and how well a model does it.

#[cfg(feature = "image")]
pub mod dreambooth_data;
mod every_position;
pub mod features;
#[cfg(feature = "image")]
pub mod image_classification;
#[cfg(feature = "image")]
pub mod image_to_text;
mod in_batches;
pub mod interruption;
pub mod language_modelling;
pub mod loss;
pub mod masked_language_modelling;
pub mod question_answering;
mod row_labels;
#[cfg(feature = "image")]
pub mod semantic_segmentation;
pub mod sequence_classification;
pub mod sequence_to_sequence;
pub mod similarity;
#[cfg(feature = "audio")]
pub mod speech_to_text;
pub mod task;
pub mod text_to_image;
pub mod token_classification;
