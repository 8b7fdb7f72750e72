//! The model. Source: `diffusers/models/unets/unet_2d_condition.py` (0.42).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{Conv2d, GroupNorm};
use peft_core::{Adaptable, ModelSpec};

use super::blocks::{DownBlock, MidBlock, Transformers, UpBlock};
use super::config::{DownBlockType, Level, MidBlockType, UNet2dConditionConfig, UpBlockType};
use crate::architecture::Architecture;
use crate::common::config::Activation;
use crate::common::denoiser::{AddedWidths, Denoiser, DenoiserConfig, DenoiserInput};
use crate::diffusion::layers::resnet::ResnetSettings;
use crate::diffusion::layers::time::{TimestepEmbedding, Timesteps};
use crate::diffusion::layers::transformer::TransformerSettings;

/// The architecture, for the list of built-in ones.
pub fn architecture() -> Architecture {
    Architecture::new(["UNet2DConditionModel"], "").denoiser(UNet2dConditionModel::new)
}

/// A noise predictor that looks at a text.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct UNet2dConditionModel {
    pub conv_in: Conv2d,
    pub time_embedding: TimestepEmbedding,
    /// SDXL's embedding of the pooled text and of sizes.
    pub add_embedding: Option<TimestepEmbedding>,
    pub down_blocks: Vec<DownBlock>,
    pub mid_block: Option<MidBlock>,
    pub up_blocks: Vec<UpBlock>,
    pub conv_norm_out: GroupNorm,
    pub conv_out: Conv2d,
    #[module(skip)]
    time_proj: Timesteps,
    #[module(skip)]
    add_time_proj: Option<Timesteps>,
    #[module(skip)]
    act: Activation,
    #[module(skip)]
    about: DenoiserConfig,
    centers_input: bool,
}

/// `levels`, `blocks_…` of a configuration that was read: [`ModelConfig::from_raw`](crate::architecture::ModelConfig) has
/// checked that they are there.
const CHECKED: &str = "a configuration that `from_raw` has checked";

impl UNet2dConditionModel {
    /// A model whose parameters are not allocated yet.
    ///
    /// # Panics
    /// If the configuration was not read by `ModelConfig::from_raw` and its lists do not fit.
    pub fn new(config: &UNet2dConditionConfig, device: &Device) -> Self {
        let levels = config.levels().expect(CHECKED);
        let (blocks_down, blocks_up) = (config.blocks_down().expect(CHECKED), config.blocks_up().expect(CHECKED));
        let resnet = ResnetSettings {
            groups: config.norm_num_groups,
            epsilon: config.norm_eps,
            act: config.act_fn,
            dropout: config.dropout,
            time_width: Some(config.time_width()),
            scale: 1.0,
        };
        let transformer = |level: &Level| TransformerSettings {
            heads: level.heads,
            d_text: level.d_text,
            groups: config.norm_num_groups,
            linear_projection: config.use_linear_projection,
            only_cross_attention: level.only_cross_attention,
        };
        let timesteps =
            |channels| Timesteps { channels, flip_sin_to_cos: config.flip_sin_to_cos, freq_shift: config.freq_shift };
        let conv =
            |channels, kernel: usize| Conv2d::new(channels, [kernel; 2], 1, device).with_padding([(kernel - 1) / 2; 2]);
        let (first, last) = (&levels[0], &levels[levels.len() - 1]);

        let down_blocks = levels.iter().enumerate().map(|(at, level)| {
            let channels = [levels[at.saturating_sub(1)].channels, level.channels];
            let transformers = (config.down_block_types[at] == DownBlockType::CrossAttention)
                .then(|| Transformers { settings: transformer(level), blocks: &blocks_down[at] });
            let padding = (at + 1 < levels.len()).then_some(config.downsample_padding);
            DownBlock::new(channels, level.layers, transformers, &resnet, padding, device)
        });
        let mid_block = config.mid_block_type.map(|kind| {
            let blocks = [config.blocks_mid().expect(CHECKED)];
            // The block in the middle has both attentions whatever `only_cross_attention` says.
            let settings = TransformerSettings { only_cross_attention: false, ..transformer(last) };
            let transformers =
                (kind == MidBlockType::CrossAttention).then_some(Transformers { settings, blocks: &blocks });
            let resnet = ResnetSettings { scale: config.mid_block_scale_factor, ..resnet.clone() };
            MidBlock::new(last.channels, transformers, &resnet, device)
        });
        let up_blocks = levels.iter().rev().enumerate().map(|(at, level)| {
            let before = levels[(levels.len() - at).min(levels.len() - 1)].channels;
            let skip = levels[(levels.len() - 1 - at).saturating_sub(1)].channels;
            let transformers = (config.up_block_types[at] == UpBlockType::CrossAttention)
                .then(|| Transformers { settings: transformer(level), blocks: &blocks_up[at] });
            let channels = [before, skip, level.channels];
            UpBlock::new(channels, level.layers + 1, transformers, &resnet, at + 1 < levels.len(), device)
        });

        Self {
            conv_in: conv([config.in_channels, first.channels], config.conv_in_kernel),
            time_embedding: TimestepEmbedding::new(first.channels, config.time_width(), config.act_fn, device),
            // Its activation is SiLU whatever `act_fn` says.
            add_embedding: config
                .projection_class_embeddings_input_dim
                .filter(|_| config.addition_embed_type.is_some())
                .map(|width| TimestepEmbedding::new(width, config.time_width(), Activation::Silu, device)),
            down_blocks: down_blocks.collect(),
            mid_block,
            up_blocks: up_blocks.collect(),
            conv_norm_out: GroupNorm::new(config.norm_num_groups, first.channels, config.norm_eps, device),
            conv_out: conv([first.channels, config.out_channels], config.conv_out_kernel),
            time_proj: timesteps(first.channels),
            add_time_proj: config
                .addition_time_embed_dim
                .filter(|_| config.addition_embed_type.is_some())
                .map(timesteps),
            act: config.act_fn,
            about: DenoiserConfig {
                in_channels: config.in_channels,
                out_channels: config.out_channels,
                d_text: first.d_text,
                sample_size: config
                    .sample_size
                    .as_ref()
                    .and_then(|it| it.each(2, "sample_size").ok())
                    .map(|it| [it[0], it[1]]),
                added: config.addition_embed_type.and(config.addition_time_embed_dim).map(|number| AddedWidths {
                    total: config.projection_class_embeddings_input_dim.unwrap_or_default(),
                    number,
                }),
            },
            centers_input: config.center_input_sample,
        }
    }

    /// What the model makes of a timestep and, in SDXL, of the pooled text and of sizes; `[batch, time_width]`.
    fn condition(&self, input: &DenoiserInput) -> Tensor<2> {
        let batch = input.sample.dims()[0];
        // A row for each sample before any layer that may carry an adapter, since adapters count the rows.
        let time = if input.timestep.dims()[0] == batch {
            input.timestep.clone()
        } else {
            input.timestep.clone().expand([batch])
        };
        let time = self.time_embedding.forward(self.time_proj.forward(time));
        match (&self.add_embedding, &self.add_time_proj, &input.added) {
            (Some(embedding), Some(time_proj), Some(added)) => {
                let sizes = added.time_ids.clone();
                let [rows, count] = sizes.dims();
                let sizes = time_proj.forward(sizes.reshape([rows * count])).reshape([rows as i64, -1]);
                time + embedding.forward(Tensor::cat(vec![added.text_embeds.clone(), sizes], 1))
            }
            _ => time,
        }
    }
}

impl Denoiser for UNet2dConditionModel {
    fn predict(&self, input: &DenoiserInput) -> Tensor<4> {
        let (time, text) = (self.condition(input), &input.encoder_hidden_states);
        let sample = input.sample.clone();
        let sample = if self.centers_input { sample.mul_scalar(2.0).sub_scalar(1.0) } else { sample };
        let sample = self.conv_in.forward(sample);
        let mut skips = vec![sample.clone()];
        let down = |sample, block: &DownBlock| block.forward(sample, &time, text, &mut skips);
        let mut sample = self.down_blocks.iter().fold(sample, down);
        if let Some(block) = &self.mid_block {
            sample = block.forward(sample, &time, text);
        }
        let up = |sample, block: &UpBlock| block.forward(sample, &time, text, &mut skips);
        let sample = self.up_blocks.iter().fold(sample, up);
        self.conv_out.forward(self.act.apply(self.conv_norm_out.forward(sample)))
    }

    fn about(&self) -> &DenoiserConfig {
        &self.about
    }
}

impl Adaptable for UNet2dConditionModel {
    fn spec(&self) -> ModelSpec {
        ModelSpec::of(self)
    }
}
