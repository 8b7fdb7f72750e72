//! What an architecture is, and models of any architecture.

mod declaration;
mod models;
mod origin;

pub(crate) use declaration::Constructor;
pub use declaration::{Architecture, ModelConfig};
pub use models::{
    AutoCausalLm, AutoFeatureExtractor, AutoImageClassifier, AutoMaskedLm, AutoQuestionAnswerer, AutoSemanticSegmenter,
    AutoSeq2SeqLm, AutoSequenceClassifier, AutoTokenClassifier,
};
pub(crate) use origin::Origin;
