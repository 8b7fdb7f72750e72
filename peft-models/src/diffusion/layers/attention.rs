//! Attention. Source: `diffusers/models/attention_processor.py` (0.42), `Attention` with `AttnProcessor2_0`.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::nn::{GroupNorm, Projection};
use peft_core::ops;

use crate::common::attention_heads::{merge_heads, split_heads};

/// Attention of a sequence to itself, or to another one.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Attention {
    pub to_q: Projection,
    pub to_k: Projection,
    pub to_v: Projection,
    /// One projection; in the reference a dropout of 0 stands behind it.
    pub to_out: Vec<Projection>,
    heads: usize,
}

impl Attention {
    /// A lazy layer. `d_seen` is the width of what is looked at.
    pub fn new(d_model: usize, d_seen: usize, heads: usize, bias: bool, device: &Device) -> Self {
        Self {
            to_q: Projection::new(d_model, d_model, bias, device),
            to_k: Projection::new(d_seen, d_model, bias, device),
            to_v: Projection::new(d_seen, d_model, bias, device),
            to_out: vec![Projection::new(d_model, d_model, true, device)],
            heads,
        }
    }

    /// `seen` is what is looked at; by default `hidden` itself.
    ///
    /// # Shapes
    /// - hidden, output: `[batch, seq, d_model]`
    /// - seen: `[batch, keys, d_seen]`
    pub fn forward(&self, hidden: Tensor<3>, seen: Option<Tensor<3>>) -> Tensor<3> {
        let d_head = hidden.dims()[2] / self.heads;
        let seen = seen.unwrap_or_else(|| hidden.clone());
        let query = split_heads(self.to_q.forward(hidden), d_head);
        let key = split_heads(self.to_k.forward(seen.clone()), d_head);
        let value = split_heads(self.to_v.forward(seen), d_head);
        let mixed = merge_heads(ops::attention(query, key, value, None, (d_head as f64).powf(-0.5), 0.0));
        self.to_out.iter().fold(mixed, |mixed, projection| projection.forward(mixed))
    }
}

/// Attention of the pixels of a picture to each other, added to the picture: what stands in the middle of the autoencoder.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct PictureAttention {
    pub group_norm: GroupNorm,
    pub to_q: Projection,
    pub to_k: Projection,
    pub to_v: Projection,
    pub to_out: Vec<Projection>,
}

impl PictureAttention {
    /// A lazy layer with one head.
    pub fn new(channels: usize, groups: usize, epsilon: f64, device: &Device) -> Self {
        let projection = || Projection::new(channels, channels, true, device);
        Self {
            group_norm: GroupNorm::new(groups, channels, epsilon, device),
            to_q: projection(),
            to_k: projection(),
            to_v: projection(),
            to_out: vec![projection()],
        }
    }

    /// # Shapes
    /// - input, output: `[batch, channels, rows, columns]`
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [_, channels, rows, columns] = input.dims();
        let pixels = pixels_last(self.group_norm.forward(input.clone()));
        let [query, key, value] =
            [&self.to_q, &self.to_k, &self.to_v].map(|it| it.forward(pixels.clone()).unsqueeze_dim::<4>(1));
        let mixed = ops::attention(query, key, value, None, (channels as f64).powf(-0.5), 0.0);
        let mixed = self.to_out.iter().fold(merge_heads(mixed), |mixed, projection| projection.forward(mixed));
        input + pixels_first(mixed, [rows, columns])
    }
}

/// A picture as a sequence of pixels: `[batch, channels, rows, columns]` to `[batch, rows · columns, channels]`.
pub fn pixels_last(picture: Tensor<4>) -> Tensor<3> {
    let [batch, channels, rows, columns] = picture.dims();
    picture.reshape([batch, channels, rows * columns]).swap_dims(1, 2)
}

/// A sequence of pixels as a picture: `[batch, rows · columns, channels]` to `[batch, channels, rows, columns]`.
pub fn pixels_first(pixels: Tensor<3>, [rows, columns]: [usize; 2]) -> Tensor<4> {
    let [batch, _, channels] = pixels.dims();
    pixels.swap_dims(1, 2).reshape([batch, channels, rows, columns])
}
