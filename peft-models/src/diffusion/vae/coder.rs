//! Encoder and decoder. Source: `diffusers/models/autoencoders/vae.py` (0.42).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Conv2d, GroupNorm};
use peft_core::ops;

use super::config::AutoencoderKlConfig;
use crate::diffusion::layers::attention::PictureAttention;
use crate::diffusion::layers::resnet::{ResnetBlock2d, ResnetSettings};
use crate::diffusion::layers::sampling::{Downsample2d, Upsample2d};

/// ε of all norms, which no configuration sets.
const EPSILON: f64 = 1e-6;

fn resnet_settings(config: &AutoencoderKlConfig) -> ResnetSettings {
    ResnetSettings {
        groups: config.norm_num_groups,
        epsilon: EPSILON,
        act: config.act_fn,
        dropout: 0.0,
        time_width: None,
        scale: 1.0,
    }
}

fn conv(channels: [usize; 2], device: &Device) -> Conv2d {
    Conv2d::new(channels, [3; 2], 1, device).with_padding([1; 2])
}

/// A level of the encoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DownEncoderBlock {
    pub resnets: Vec<ResnetBlock2d>,
    /// One, except in the last block.
    pub downsamplers: Vec<Downsample2d>,
}

/// A level of the decoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct UpDecoderBlock {
    pub resnets: Vec<ResnetBlock2d>,
    /// One, except in the last block.
    pub upsamplers: Vec<Upsample2d>,
}

/// The coarsest level of both: a residual block, attention, and another residual block.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct MidCoderBlock {
    pub attentions: Vec<PictureAttention>,
    pub resnets: Vec<ResnetBlock2d>,
}

impl MidCoderBlock {
    fn new(config: &AutoencoderKlConfig, channels: usize, device: &Device) -> Self {
        let attention = || PictureAttention::new(channels, config.norm_num_groups, EPSILON, device);
        let settings = resnet_settings(config);
        Self {
            attentions: config.mid_block_add_attention.then(attention).into_iter().collect(),
            resnets: (0..2).map(|_| ResnetBlock2d::new([channels; 2], &settings, device)).collect(),
        }
    }

    fn forward(&self, mut hidden: Tensor<4>) -> Tensor<4> {
        for (at, resnet) in self.resnets.iter().enumerate() {
            if let Some(attention) = at.checked_sub(1).and_then(|it| self.attentions.get(it)) {
                hidden = attention.forward(hidden);
            }
            hidden = resnet.forward(hidden, None);
        }
        hidden
    }
}

/// Pictures to the moments of their latents.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Encoder {
    pub conv_in: Conv2d,
    pub down_blocks: Vec<DownEncoderBlock>,
    pub mid_block: MidCoderBlock,
    pub conv_norm_out: GroupNorm,
    pub conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn new(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let settings = resnet_settings(config);
        let block = |at: usize| {
            let before = widths[at.saturating_sub(1)];
            let d_in = |layer| if layer == 0 { before } else { widths[at] };
            DownEncoderBlock {
                resnets: (0..config.layers_per_block)
                    .map(|layer| ResnetBlock2d::new([d_in(layer), widths[at]], &settings, device))
                    .collect(),
                downsamplers: (at + 1 < widths.len())
                    .then(|| Downsample2d::new(widths[at], 0, device))
                    .into_iter()
                    .collect(),
            }
        };
        Self {
            conv_in: conv([config.in_channels, first], device),
            down_blocks: (0..widths.len()).map(block).collect(),
            mid_block: MidCoderBlock::new(config, last, device),
            conv_norm_out: GroupNorm::new(config.norm_num_groups, last, EPSILON, device),
            conv_out: conv([last, 2 * config.latent_channels], device),
        }
    }

    /// # Shapes
    /// - pictures: `[batch, in_channels, height, width]`
    /// - output: `[batch, 2 · latent_channels, rows, columns]`
    pub fn forward(&self, pictures: Tensor<4>) -> Tensor<4> {
        let hidden = self.down_blocks.iter().fold(self.conv_in.forward(pictures), |hidden, block| {
            let hidden = block.resnets.iter().fold(hidden, |hidden, resnet| resnet.forward(hidden, None));
            block.downsamplers.iter().fold(hidden, |hidden, downsample| downsample.forward(hidden))
        });
        let hidden = self.mid_block.forward(hidden);
        // SiLU whatever `act_fn` says.
        self.conv_out.forward(ops::silu(self.conv_norm_out.forward(hidden)))
    }
}

/// Latents to pictures.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Decoder {
    pub conv_in: Conv2d,
    pub up_blocks: Vec<UpDecoderBlock>,
    pub mid_block: MidCoderBlock,
    pub conv_norm_out: GroupNorm,
    pub conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn new(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let settings = resnet_settings(config);
        let block = |at: usize| {
            let before = widths[at.saturating_sub(1)];
            let d_in = |layer| if layer == 0 { before } else { widths[at] };
            UpDecoderBlock {
                resnets: (0..=config.layers_per_block)
                    .map(|layer| ResnetBlock2d::new([d_in(layer), widths[at]], &settings, device))
                    .collect(),
                upsamplers: (at + 1 < widths.len()).then(|| Upsample2d::new(widths[at], device)).into_iter().collect(),
            }
        };
        Self {
            conv_in: conv([config.latent_channels, first], device),
            up_blocks: (0..widths.len()).map(block).collect(),
            mid_block: MidCoderBlock::new(config, first, device),
            conv_norm_out: GroupNorm::new(config.norm_num_groups, last, EPSILON, device),
            conv_out: conv([last, config.out_channels], device),
        }
    }

    /// # Shapes
    /// - latents: `[batch, latent_channels, rows, columns]`
    /// - output: `[batch, out_channels, height, width]`
    pub fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let hidden = self.mid_block.forward(self.conv_in.forward(latents));
        let hidden = self.up_blocks.iter().fold(hidden, |hidden, block| {
            let hidden = block.resnets.iter().fold(hidden, |hidden, resnet| resnet.forward(hidden, None));
            block.upsamplers.iter().fold(hidden, |hidden, upsample| upsample.forward(hidden, None))
        });
        self.conv_out.forward(ops::silu(self.conv_norm_out.forward(hidden)))
    }
}
