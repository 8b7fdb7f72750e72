//! The model. Source: `diffusers/models/autoencoders/autoencoder_kl.py` (0.42).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::Conv2d;
use peft_core::{Adaptable, ModelSpec};

use super::coder::{Decoder, Encoder};
use super::config::AutoencoderKlConfig;
use super::tiles::Tiles;

/// Which part of a tile overlaps the one before.
const OVERLAP: f64 = 0.25;

/// An autoencoder whose latents are normally distributed.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct AutoencoderKl {
    pub encoder: Encoder,
    pub decoder: Decoder,
    pub quant_conv: Option<Conv2d>,
    pub post_quant_conv: Option<Conv2d>,
    #[module(skip)]
    config: AutoencoderKlConfig,
}

impl AutoencoderKl {
    /// A model whose parameters are not allocated yet.
    pub fn new(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let quant = |channels| Conv2d::new([channels; 2], [1; 2], 1, device);
        Self {
            encoder: Encoder::new(config, device),
            decoder: Decoder::new(config, device),
            quant_conv: config.use_quant_conv.then(|| quant(2 * config.latent_channels)),
            post_quant_conv: config.use_post_quant_conv.then(|| quant(config.latent_channels)),
            config: config.clone(),
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// How many pixels of a picture, along each axis, one of the latents stands for.
    pub fn scale(&self) -> usize {
        1 << (self.config.block_out_channels.len() - 1)
    }

    /// The distribution of the latents of pictures whose numbers are −1 to 1.
    ///
    /// # Shapes
    /// - pictures: `[batch, in_channels, height, width]`
    /// - latents: `[batch, latent_channels, height / scale, width / scale]`
    pub fn encode(&self, pictures: Tensor<4>) -> Posterior {
        Posterior::new(self.moments(pictures))
    }

    fn moments(&self, pictures: Tensor<4>) -> Tensor<4> {
        through(&self.quant_conv, self.encoder.forward(pictures))
    }

    /// The pictures of latents, −1 to 1.
    ///
    /// # Shapes
    /// - latents: `[batch, latent_channels, rows, columns]`
    /// - output: `[batch, out_channels, rows · scale, columns · scale]`
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(through(&self.post_quant_conv, latents))
    }

    /// [`encode`](Self::encode) in tiles as large as the pictures that the model was trained on: less memory, but tiles do
    /// not see each other, so that numbers differ a little. A picture no larger than a tile is encoded whole.
    pub fn encode_tiled(&self, pictures: Tensor<4>) -> Posterior {
        let (sample, latent) = self.tile_sizes();
        let [_, _, height, width] = pictures.dims();
        if height <= sample && width <= sample {
            return self.encode(pictures);
        }
        let blend = (latent as f64 * OVERLAP) as usize;
        let step = ((sample as f64 * (1.0 - OVERLAP)) as usize).max(1);
        let tiles = Tiles { size: sample, step, blend, kept: latent - blend };
        Posterior::new(tiles.map(&pictures, |tile| self.moments(tile)))
    }

    /// [`decode`](Self::decode) in tiles, as [`encode_tiled`](Self::encode_tiled).
    pub fn decode_tiled(&self, latents: Tensor<4>) -> Tensor<4> {
        let (sample, latent) = self.tile_sizes();
        let [_, _, rows, columns] = latents.dims();
        if rows <= latent && columns <= latent {
            return self.decode(latents);
        }
        let blend = (sample as f64 * OVERLAP) as usize;
        let step = ((latent as f64 * (1.0 - OVERLAP)) as usize).max(1);
        let tiles = Tiles { size: latent, step, blend, kept: sample - blend };
        tiles.map(&latents, |tile| self.decode(tile))
    }

    /// Rows and columns of a tile, of pictures and of latents.
    fn tile_sizes(&self) -> (usize, usize) {
        // A list has been checked to hold two.
        let sample = self.config.sample_size.each(2, "sample_size").map_or(32, |it| it[0]);
        (sample, (sample / self.scale()).max(1))
    }

    /// Latents as the noise predictor sees them.
    pub fn scaled(&self, latents: Tensor<4>) -> Tensor<4> {
        let shift = self.config.shift_factor.unwrap_or(0.0);
        latents.sub_scalar(shift).mul_scalar(self.config.scaling_factor)
    }

    /// The inverse of [`scaled`](Self::scaled).
    pub fn unscaled(&self, latents: Tensor<4>) -> Tensor<4> {
        latents.div_scalar(self.config.scaling_factor).add_scalar(self.config.shift_factor.unwrap_or(0.0))
    }
}

fn through(conv: &Option<Conv2d>, input: Tensor<4>) -> Tensor<4> {
    match conv {
        Some(conv) => conv.forward(input),
        None => input,
    }
}

impl Adaptable for AutoencoderKl {
    fn spec(&self) -> ModelSpec {
        ModelSpec::of(self)
    }
}

/// The latents of pictures: a normal distribution for each number.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// `[batch, latent_channels, rows, columns]`
    pub mean: Tensor<4>,
    /// Standard deviation, in the same shape.
    pub std: Tensor<4>,
}

impl Posterior {
    fn new(moments: Tensor<4>) -> Self {
        let channels = moments.dims()[1] / 2;
        let (mean, log_variance) = (moments.clone().narrow(1, 0, channels), moments.narrow(1, channels, channels));
        Self { mean, std: log_variance.clamp(-30.0, 20.0).mul_scalar(0.5).exp() }
    }

    /// The likeliest latents.
    pub fn mode(self) -> Tensor<4> {
        self.mean
    }

    /// Latents drawn by standard normal noise of their shape.
    pub fn sample(self, noise: Tensor<4>) -> Tensor<4> {
        self.mean + self.std * noise
    }
}
