//! `unet/config.json`. Source: `diffusers/models/unets/unet_2d_condition.py` (0.42).

use peft_core::{PeftError, Result};
use serde::Deserialize;

use crate::architecture::ModelConfig;
use crate::common::config::{Activation, RawConfig, heads_divide};

/// A value for all blocks, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One for each. Before the other: where a value may be a list itself, a list is one for each.
    Many(Vec<T>),
    /// The same everywhere.
    One(T),
}

impl<T: Clone> OneOrMany<T> {
    /// One for each of so many.
    ///
    /// # Errors
    /// If there are more or fewer; names the field.
    pub fn each(&self, count: usize, field: &str) -> Result<Vec<T>> {
        match self {
            Self::One(value) => Ok(vec![value.clone(); count]),
            Self::Many(values) if values.len() == count => Ok(values.clone()),
            Self::Many(values) => {
                Err(PeftError::config(field, format!("has {} values for {count} blocks", values.len())))
            }
        }
    }
}

/// What a block on the way down is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks, and behind each a transformer that looks at the text.
    #[serde(rename = "CrossAttnDownBlock2D")]
    CrossAttention,
    /// Residual blocks.
    #[serde(rename = "DownBlock2D")]
    Plain,
}

/// What a block on the way up is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks, and behind each a transformer that looks at the text.
    #[serde(rename = "CrossAttnUpBlock2D")]
    CrossAttention,
    /// Residual blocks.
    #[serde(rename = "UpBlock2D")]
    Plain,
}

/// What the block between the two ways is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum MidBlockType {
    /// A residual block, a transformer, and another residual block.
    #[serde(rename = "UNetMidBlock2DCrossAttn")]
    CrossAttention,
    /// A residual block.
    #[serde(rename = "UNetMidBlock2D")]
    Plain,
}

/// How timesteps become vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeEmbeddingType {
    /// Sines and cosines.
    Positional,
}

/// What else is added to the embedding of the timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdditionEmbedType {
    /// The pooled text, and sizes of the picture: SDXL.
    TextTime,
}

/// `config.json` of a noise predictor. Defaults are those of diffusers.
///
/// Of the reference's fields, `upcast_attention` changes nothing in single precision; `resnet_skip_time_act`,
/// `resnet_out_scale_factor`, `cross_attention_norm` and `mid_block_only_cross_attention` act in block types only that are
/// refused here.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct UNet2dConditionConfig {
    /// Rows and columns of the latents that it was trained on.
    pub sample_size: Option<OneOrMany<usize>>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub down_block_types: Vec<DownBlockType>,
    /// None where the file says `null`.
    pub mid_block_type: Option<MidBlockType>,
    pub up_block_types: Vec<UpBlockType>,
    pub only_cross_attention: OneOrMany<bool>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: OneOrMany<usize>,
    pub downsample_padding: usize,
    pub mid_block_scale_factor: f64,
    pub dropout: f64,
    pub act_fn: Activation,
    pub norm_num_groups: usize,
    pub norm_eps: f64,
    pub cross_attention_dim: OneOrMany<usize>,
    pub transformer_layers_per_block: OneOrMany<OneOrMany<usize>>,
    pub reverse_transformer_layers_per_block: Option<OneOrMany<OneOrMany<usize>>>,
    /// The number of heads, whatever its name: diffusers' issue 2011.
    pub attention_head_dim: OneOrMany<usize>,
    pub use_linear_projection: bool,
    pub addition_embed_type: Option<AdditionEmbedType>,
    pub addition_time_embed_dim: Option<usize>,
    pub projection_class_embeddings_input_dim: Option<usize>,
    pub time_embedding_type: TimeEmbeddingType,
    pub time_embedding_dim: Option<usize>,
    pub resnet_time_scale_shift: TimeScaleShift,
    pub conv_in_kernel: usize,
    pub conv_out_kernel: usize,
}

/// How the embedding of the timestep acts on a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// It is added.
    Default,
}

impl Default for UNet2dConditionConfig {
    fn default() -> Self {
        use {DownBlockType as Down, UpBlockType as Up};
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![Down::CrossAttention, Down::CrossAttention, Down::CrossAttention, Down::Plain],
            mid_block_type: Some(MidBlockType::CrossAttention),
            up_block_types: vec![Up::Plain, Up::CrossAttention, Up::CrossAttention, Up::CrossAttention],
            only_cross_attention: OneOrMany::One(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: OneOrMany::One(2),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            dropout: 0.0,
            act_fn: Activation::Silu,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: OneOrMany::One(1280),
            transformer_layers_per_block: OneOrMany::One(OneOrMany::One(1)),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: OneOrMany::One(8),
            use_linear_projection: false,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            time_embedding_type: TimeEmbeddingType::Positional,
            time_embedding_dim: None,
            resnet_time_scale_shift: TimeScaleShift::Default,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
        }
    }
}

/// Settings that change numbers and that are not computed here.
const MUST_BE_OFF: [&str; 9] = [
    "num_attention_heads",
    "dual_cross_attention",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "class_embed_type",
    "num_class_embeds",
    "time_embedding_act_fn",
    "timestep_post_act",
    "time_cond_proj_dim",
];

/// A level of the model: what its blocks on both ways have in common.
#[derive(Debug, Clone)]
pub(super) struct Level {
    pub(super) channels: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) d_text: usize,
    pub(super) only_cross_attention: bool,
}

impl ModelConfig for UNet2dConditionConfig {
    fn from_raw(raw: &RawConfig) -> Result<Self> {
        let config: Self = raw.parse(&MUST_BE_OFF)?;
        if let Some(kind) = raw.json.get("attention_type").filter(|it| !it.is_null() && *it != "default") {
            return Err(PeftError::config("attention_type", format!("is {kind}, and only `default` can be computed")));
        }
        config.check()?;
        Ok(config)
    }
}

impl UNet2dConditionConfig {
    fn check(&self) -> Result<()> {
        let count = self.block_out_channels.len();
        if count == 0 {
            return Err(PeftError::config("block_out_channels", "is empty"));
        }
        for (field, given) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            if given != count {
                return Err(PeftError::config(field, format!("has {given} values for {count} blocks")));
            }
        }
        for (field, kernel) in [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)] {
            if kernel % 2 == 0 {
                return Err(PeftError::config(field, format!("is {kernel}, and only odd kernels keep the size")));
            }
        }
        if self.addition_embed_type.is_some() {
            for (field, value) in [
                ("addition_time_embed_dim", self.addition_time_embed_dim),
                ("projection_class_embeddings_input_dim", self.projection_class_embeddings_input_dim),
            ] {
                value.ok_or_else(|| PeftError::config(field, "is not set, and `addition_embed_type` needs it"))?;
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(PeftError::config("dropout", format!("is {}, expected 0 to below 1", self.dropout)));
        }
        let levels = self.levels()?;
        for level in &levels {
            heads_divide(("attention_head_dim", level.heads), ("block_out_channels", level.channels))?;
        }
        // Skips are normalised with what they meet.
        let widths = levels.iter().map(|it| it.channels);
        let met = levels.windows(2).map(|it| it[0].channels + it[1].channels);
        if let Some(width) = widths.chain(met).find(|it| self.norm_num_groups == 0 || it % self.norm_num_groups != 0) {
            let reason = format!("is {}, which does not divide {width} channels", self.norm_num_groups);
            return Err(PeftError::config("norm_num_groups", reason));
        }
        self.blocks_down()?;
        self.blocks_up()?;
        Ok(())
    }

    /// The levels, from the finest to the coarsest.
    pub(super) fn levels(&self) -> Result<Vec<Level>> {
        let count = self.block_out_channels.len();
        let layers = self.layers_per_block.each(count, "layers_per_block")?;
        let heads = self.attention_head_dim.each(count, "attention_head_dim")?;
        let widths = self.cross_attention_dim.each(count, "cross_attention_dim")?;
        let only_cross_attention = self.only_cross_attention.each(count, "only_cross_attention")?;
        let level = |at: usize| Level {
            channels: self.block_out_channels[at],
            layers: layers[at],
            heads: heads[at],
            d_text: widths[at],
            only_cross_attention: only_cross_attention[at],
        };
        Ok((0..count).map(level).collect())
    }

    /// Transformer blocks behind each residual block of each level, on the way down.
    pub(super) fn blocks_down(&self) -> Result<Vec<Vec<usize>>> {
        let field = "transformer_layers_per_block";
        let levels = self.levels()?;
        let counts = self.transformer_layers_per_block.each(levels.len(), field)?;
        counts.iter().zip(&levels).map(|(count, level)| count.each(level.layers, field)).collect()
    }

    /// The same on the way up, from the coarsest level to the finest, where each level has one residual block more.
    pub(super) fn blocks_up(&self) -> Result<Vec<Vec<usize>>> {
        let levels = self.levels()?;
        let (counts, field) = match &self.reverse_transformer_layers_per_block {
            Some(counts) => {
                let field = "reverse_transformer_layers_per_block";
                (counts.each(levels.len(), field)?, field)
            }
            None => {
                let field = "transformer_layers_per_block";
                let mut counts = self.transformer_layers_per_block.each(levels.len(), field)?;
                counts.reverse();
                if counts.iter().any(|it| matches!(it, OneOrMany::Many(_))) {
                    let reason = "is not set, and lists in `transformer_layers_per_block` need it";
                    return Err(PeftError::config("reverse_transformer_layers_per_block", reason));
                }
                (counts, field)
            }
        };
        counts.iter().zip(levels.iter().rev()).map(|(count, level)| count.each(level.layers + 1, field)).collect()
    }

    /// Transformer blocks of the block between both ways.
    pub(super) fn blocks_mid(&self) -> Result<usize> {
        let field = "transformer_layers_per_block";
        let counts = self.transformer_layers_per_block.each(self.block_out_channels.len(), field)?;
        match counts.last() {
            Some(OneOrMany::One(count)) => Ok(*count),
            Some(OneOrMany::Many(counts)) if !counts.is_empty() => Ok(counts[0]),
            _ => Err(PeftError::config(field, "is empty")),
        }
    }

    /// Width of the embedding of a timestep.
    pub(super) fn time_width(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }
}
