//! Tasks, one a file: what is learned from samples, and how well a model does it.

mod every_position;
pub mod features;
pub mod interruption;
pub mod language_modelling;
pub mod loss;
pub mod masked_language_modelling;
pub mod question_answering;
pub mod sequence_classification;
pub mod sequence_to_sequence;
pub mod similarity;
pub mod task;
pub mod token_classification;
