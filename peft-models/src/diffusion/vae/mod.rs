//! The autoencoder between pictures and latents.

mod coder;
mod config;
mod model;
mod tiles;

pub use coder::{Decoder, Encoder};
pub use config::AutoencoderKlConfig;
pub use model::{AutoencoderKl, Posterior};
