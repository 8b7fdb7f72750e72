//! What an architecture is, and models of any architecture.

mod declaration;
mod models;
mod origin;

pub(crate) use declaration::Constructor;
pub use declaration::{Architecture, ModelConfig};
pub use models::{
    AutoCausalLm, AutoDenoiser, AutoFeatureExtractor, AutoImageClassifier, AutoImageToText, AutoMaskedLm,
    AutoQuestionAnswerer, AutoSemanticSegmenter, AutoSeq2SeqLm, AutoSequenceClassifier, AutoSpeechSeq2Seq,
    AutoTokenClassifier,
};
pub(crate) use origin::Origin;
