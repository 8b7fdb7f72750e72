//! ChatGLM of three generations: the first is a network of its own, the second and third are one.

mod first;
mod mlp;
mod model;
mod second;

pub use first::{FirstAttention, FirstBlock, FirstConfig, FirstModel};
pub use mlp::GlmMlp;
pub use model::{BASE_PREFIX, ChatGlmConfig, ChatGlmForConditionalGeneration, ChatGlmModel, architecture};
pub use second::{SecondAttention, SecondBlock, SecondConfig, SecondEmbedding, SecondModel, SecondTransformer};
