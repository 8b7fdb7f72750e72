//! What the noise predictor and the autoencoder are made of. Source: `diffusers/models` (0.42).

pub mod attention;
pub mod resnet;
pub mod sampling;
pub mod time;
pub mod transformer;
