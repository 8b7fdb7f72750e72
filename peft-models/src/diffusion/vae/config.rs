//! `vae/config.json`. Source: `diffusers/models/autoencoders/autoencoder_kl.py` (0.42).

use peft_core::{PeftError, Result};
use serde::Deserialize;

use crate::architecture::ModelConfig;
use crate::common::config::{Activation, RawConfig};
use crate::diffusion::unet::OneOrMany;

/// `config.json` of an autoencoder. Defaults are those of diffusers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct AutoencoderKlConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub act_fn: Activation,
    pub latent_channels: usize,
    pub norm_num_groups: usize,
    /// Size of the pictures that it was trained on, and of a tile.
    pub sample_size: OneOrMany<usize>,
    /// Latents are multiplied by this before the noise predictor sees them.
    pub scaling_factor: f64,
    /// What is taken off the latents before that.
    pub shift_factor: Option<f64>,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    pub mid_block_add_attention: bool,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec!["DownEncoderBlock2D".to_owned()],
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: OneOrMany::One(32),
            scaling_factor: 0.18215,
            shift_factor: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl ModelConfig for AutoencoderKlConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        // Means and deviations of single channels, which pipelines of Stable Diffusion do not read.
        let config: Self = raw.parse(&["latents_mean", "latents_std"])?;
        let count = config.block_out_channels.len();
        for (field, types, known) in [
            ("down_block_types", &config.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &config.up_block_types, "UpDecoderBlock2D"),
        ] {
            if count == 0 || types.len() != count {
                return Err(PeftError::config(field, format!("has {} values for {count} blocks", types.len())));
            }
            if let Some(other) = types.iter().find(|it| *it != known) {
                return Err(PeftError::config(field, format!("names `{other}`, and only `{known}` can be computed")));
            }
        }
        let groups = config.norm_num_groups;
        if let Some(width) = config.block_out_channels.iter().find(|it| groups == 0 || *it % groups != 0) {
            return Err(PeftError::config("norm_num_groups", format!("is {groups}, which does not divide {width}")));
        }
        if !config.scaling_factor.is_finite() || config.scaling_factor == 0.0 {
            return Err(PeftError::config("scaling_factor", format!("is {}", config.scaling_factor)));
        }
        config.sample_size.each(2, "sample_size")?;
        Ok(config)
    }
}
