//! Transformers over the pixels of a picture. Source: `diffusers/models/transformers/transformer_2d.py`,
//! `models/attention.py` and `models/activations.py` (0.42).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::forward::gradient_checkpointing;
use peft_core::nn::{Conv2d, GroupNorm, LayerNorm, Projection};
use peft_core::ops;

use super::attention::{Attention, pixels_first, pixels_last};

/// ε of the norm before the blocks, which no configuration sets.
const NORM_EPSILON: f64 = 1e-6;

/// ε of the norms in the blocks, which no configuration sets.
const BLOCK_NORM_EPSILON: f64 = 1e-5;

/// How much wider than the pixels the middle of a feed-forward layer is.
const FEED_FORWARD_FACTOR: usize = 4;

/// What transformers of a level of the model have in common.
#[derive(Debug, Clone)]
pub struct TransformerSettings {
    /// Heads of each attention.
    pub heads: usize,
    /// Width of the text.
    pub d_text: usize,
    /// Groups of channels that are normalised together.
    pub groups: usize,
    /// Whether pixels are projected as a sequence, not as a picture.
    pub linear_projection: bool,
    /// Whether pixels look at the text only, twice.
    pub only_cross_attention: bool,
}

/// A gated linear unit with GELU.
#[derive(Module, Debug)]
pub struct Geglu {
    /// `[2 · inner, d_model]`: what is gated, and the gates.
    pub proj: Projection,
}

impl Geglu {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        let both = self.proj.forward(hidden);
        let inner = both.dims()[2] / 2;
        let (gated, gate) = (both.clone().narrow(2, 0, inner), both.narrow(2, inner, inner));
        gated * ops::gelu(gate)
    }
}

/// A part of a feed-forward layer; the reference keeps them in a list.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum FeedForwardPart {
    /// The gated unit.
    Geglu(Geglu),
    /// The place of a dropout, which no configuration of these models sets.
    Dropout(Nothing),
    /// The way back.
    Out(Projection),
}

/// A part without parameters.
#[derive(Module, Debug, Default)]
pub struct Nothing {}

/// A gated feed-forward layer.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// The gated unit, nothing, and the way back.
    pub net: Vec<FeedForwardPart>,
}

impl FeedForward {
    fn new(d_model: usize, device: &Device) -> Self {
        let inner = FEED_FORWARD_FACTOR * d_model;
        Self {
            net: vec![
                FeedForwardPart::Geglu(Geglu { proj: Projection::new(d_model, 2 * inner, true, device) }),
                FeedForwardPart::Dropout(Nothing {}),
                FeedForwardPart::Out(Projection::new(inner, d_model, true, device)),
            ],
        }
    }

    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.net.iter().fold(hidden, |hidden, part| match part {
            FeedForwardPart::Geglu(unit) => unit.forward(hidden),
            FeedForwardPart::Dropout(_) => hidden,
            FeedForwardPart::Out(projection) => projection.forward(hidden),
        })
    }
}

/// Attention to the pixels, attention to the text, and a feed-forward layer.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BasicTransformerBlock {
    pub norm1: LayerNorm,
    pub attn1: Attention,
    pub norm2: LayerNorm,
    pub attn2: Attention,
    pub norm3: LayerNorm,
    pub ff: FeedForward,
    only_cross_attention: bool,
}

impl BasicTransformerBlock {
    fn new(d_model: usize, settings: &TransformerSettings, device: &Device) -> Self {
        let norm = || LayerNorm::new(d_model, BLOCK_NORM_EPSILON, device);
        let attention = |d_seen| Attention::new(d_model, d_seen, settings.heads, false, device);
        Self {
            norm1: norm(),
            attn1: attention(if settings.only_cross_attention { settings.d_text } else { d_model }),
            norm2: norm(),
            attn2: attention(settings.d_text),
            norm3: norm(),
            ff: FeedForward::new(d_model, device),
            only_cross_attention: settings.only_cross_attention,
        }
    }

    fn forward(&self, hidden: Tensor<3>, text: &Tensor<3>) -> Tensor<3> {
        let seen = self.only_cross_attention.then(|| text.clone());
        let hidden = self.attn1.forward(self.norm1.forward(hidden.clone()), seen) + hidden;
        let hidden = self.attn2.forward(self.norm2.forward(hidden.clone()), Some(text.clone())) + hidden;
        self.ff.forward(self.norm3.forward(hidden.clone())) + hidden
    }
}

/// The way from a picture to the width of the blocks, or back.
#[derive(Module, Debug)]
pub enum PixelProjection {
    /// Of pixels in a row: `[out, in]`.
    Linear(Projection),
    /// Of a picture: `[out, in, 1, 1]`.
    Conv(Conv2d),
}

impl PixelProjection {
    fn new(channels: usize, linear: bool, device: &Device) -> Self {
        match linear {
            true => Self::Linear(Projection::new(channels, channels, true, device)),
            false => Self::Conv(Conv2d::new([channels; 2], [1; 2], 1, device)),
        }
    }
}

/// A stack of blocks over the pixels of a picture, added to the picture.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Transformer2d {
    pub norm: GroupNorm,
    pub proj_in: PixelProjection,
    pub transformer_blocks: Vec<BasicTransformerBlock>,
    pub proj_out: PixelProjection,
}

impl Transformer2d {
    /// A lazy stack of so many blocks.
    pub fn new(channels: usize, blocks: usize, settings: &TransformerSettings, device: &Device) -> Self {
        Self {
            norm: GroupNorm::new(settings.groups, channels, NORM_EPSILON, device),
            proj_in: PixelProjection::new(channels, settings.linear_projection, device),
            transformer_blocks: (0..blocks).map(|_| BasicTransformerBlock::new(channels, settings, device)).collect(),
            proj_out: PixelProjection::new(channels, settings.linear_projection, device),
        }
    }

    /// # Shapes
    /// - input, output: `[batch, channels, rows, columns]`
    /// - text: `[batch, seq, d_text]`
    pub fn forward(&self, input: Tensor<4>, text: &Tensor<3>) -> Tensor<4> {
        let [_, _, rows, columns] = input.dims();
        let normed = self.norm.forward(input.clone());
        let pixels = match &self.proj_in {
            PixelProjection::Conv(conv) => pixels_last(conv.forward(normed)),
            PixelProjection::Linear(projection) => projection.forward(pixels_last(normed)),
        };
        let pixels = self.transformer_blocks.iter().fold(pixels, |pixels, block| {
            gradient_checkpointing::layer(block, pixels, text, |block, pixels, text| block.forward(pixels, text))
        });
        let output = match &self.proj_out {
            PixelProjection::Conv(conv) => conv.forward(pixels_first(pixels, [rows, columns])),
            PixelProjection::Linear(projection) => pixels_first(projection.forward(pixels), [rows, columns]),
        };
        output + input
    }
}
