//! Decoders: models that predict the next token.

pub mod bloom;
pub mod chatglm;
pub mod gemma;
pub mod gpt2;
pub mod gpt_neo;
pub mod gpt_neox;
pub mod gptj;
pub mod llama;
pub mod opt;
pub mod phi3;
