//! The parts of Stable Diffusion that no case of an adapter shows.

mod clip_text;
mod layers;
mod schedulers;
mod sizes;
mod vae;
