//! What an architecture is, and models of any architecture.

mod declaration;
mod image_to_text;
mod models;
mod origin;

pub(crate) use declaration::Constructor;
pub use declaration::{Architecture, ModelConfig};
pub use image_to_text::{AutoImageToText, ImageToText, LanguageModel};
pub use models::{
    AutoCausalLm, AutoDenoiser, AutoFeatureExtractor, AutoImageClassifier, AutoMaskedLm, AutoQuestionAnswerer,
    AutoSemanticSegmenter, AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq, AutoTokenClassifier,
};
pub(crate) use origin::Origin;
