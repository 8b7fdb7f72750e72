//! The parts of Stable Diffusion that no case of an adapter shows.

mod clip_text;
mod schedulers;
mod vae;
