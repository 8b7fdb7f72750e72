//! Latent diffusion: text encoder, noise predictor, autoencoder and schedulers.
//!
//! The parts follow `diffusers` (0.42), whose folders hold one model each: `text_encoder/`, `unet/`, `vae/`,
//! `scheduler/`. Paper: Rombach et al. 2022, arXiv 2112.10752.

pub mod clip_text;
pub mod folder;
pub mod layers;
pub mod schedulers;
pub mod text_to_image;
pub mod unet;
pub mod vae;
