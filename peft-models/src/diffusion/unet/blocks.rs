//! The blocks on both ways. Source: `diffusers/models/unets/unet_2d_blocks.py` (0.42).

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::diffusion::layers::resnet::{ResnetBlock2d, ResnetSettings};
use crate::diffusion::layers::sampling::{Downsample2d, Upsample2d};
use crate::diffusion::layers::transformer::{Transformer2d, TransformerSettings};

/// What makes a transformer of so many blocks over so many channels.
pub(super) struct Transformers<'a> {
    pub(super) settings: TransformerSettings,
    /// Blocks behind each residual block.
    pub(super) blocks: &'a [usize],
}

impl Transformers<'_> {
    fn build(&self, channels: usize, device: &Device) -> Vec<Transformer2d> {
        self.blocks.iter().map(|blocks| Transformer2d::new(channels, *blocks, &self.settings, device)).collect()
    }
}

/// A block on the way down: `CrossAttnDownBlock2D` or, without transformers, `DownBlock2D`.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DownBlock {
    /// One behind each residual block, or none.
    pub attentions: Vec<Transformer2d>,
    pub resnets: Vec<ResnetBlock2d>,
    /// One, except in the last block.
    pub downsamplers: Vec<Downsample2d>,
}

impl DownBlock {
    pub(super) fn new(
        [d_input, d_output]: [usize; 2],
        layers: usize,
        transformers: Option<Transformers<'_>>,
        resnet: &ResnetSettings,
        downsample_padding: Option<usize>,
        device: &Device,
    ) -> Self {
        let d_in = |at| if at == 0 { d_input } else { d_output };
        Self {
            attentions: transformers.map(|it| it.build(d_output, device)).unwrap_or_default(),
            resnets: (0..layers).map(|at| ResnetBlock2d::new([d_in(at), d_output], resnet, device)).collect(),
            downsamplers: downsample_padding.iter().map(|it| Downsample2d::new(d_output, *it, device)).collect(),
        }
    }

    /// The output; what the way up meets again is added to `skips`.
    pub(super) fn forward(
        &self,
        mut hidden: Tensor<4>,
        time: &Tensor<2>,
        text: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (at, resnet) in self.resnets.iter().enumerate() {
            hidden = resnet.forward(hidden, Some(time));
            if let Some(transformer) = self.attentions.get(at) {
                hidden = transformer.forward(hidden, text);
            }
            skips.push(hidden.clone());
        }
        for downsample in &self.downsamplers {
            hidden = downsample.forward(hidden);
            skips.push(hidden.clone());
        }
        hidden
    }
}

/// The block between both ways: `UNetMidBlock2DCrossAttn` or, without a transformer, `UNetMidBlock2D`.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct MidBlock {
    pub attentions: Vec<Transformer2d>,
    /// One more than transformers.
    pub resnets: Vec<ResnetBlock2d>,
}

impl MidBlock {
    pub(super) fn new(
        channels: usize,
        transformers: Option<Transformers<'_>>,
        resnet: &ResnetSettings,
        device: &Device,
    ) -> Self {
        let attentions = transformers.map(|it| it.build(channels, device)).unwrap_or_default();
        let resnets = (0..=attentions.len()).map(|_| ResnetBlock2d::new([channels; 2], resnet, device)).collect();
        Self { attentions, resnets }
    }

    pub(super) fn forward(&self, mut hidden: Tensor<4>, time: &Tensor<2>, text: &Tensor<3>) -> Tensor<4> {
        for (at, resnet) in self.resnets.iter().enumerate() {
            if let Some(transformer) = at.checked_sub(1).and_then(|it| self.attentions.get(it)) {
                hidden = transformer.forward(hidden, text);
            }
            hidden = resnet.forward(hidden, Some(time));
        }
        hidden
    }
}

/// A block on the way up: `CrossAttnUpBlock2D` or, without transformers, `UpBlock2D`.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct UpBlock {
    /// One behind each residual block, or none.
    pub attentions: Vec<Transformer2d>,
    pub resnets: Vec<ResnetBlock2d>,
    /// One, except in the last block.
    pub upsamplers: Vec<Upsample2d>,
}

impl UpBlock {
    /// `d_before` are the channels of the block before, `d_skip` those of the last skip that it meets.
    pub(super) fn new(
        [d_before, d_skip, d_output]: [usize; 3],
        layers: usize,
        transformers: Option<Transformers<'_>>,
        resnet: &ResnetSettings,
        upsamples: bool,
        device: &Device,
    ) -> Self {
        let resnets = (0..layers).map(|at| {
            let own = if at == 0 { d_before } else { d_output };
            let skip = if at + 1 == layers { d_skip } else { d_output };
            ResnetBlock2d::new([own + skip, d_output], resnet, device)
        });
        Self {
            attentions: transformers.map(|it| it.build(d_output, device)).unwrap_or_default(),
            resnets: resnets.collect(),
            upsamplers: upsamples.then(|| Upsample2d::new(d_output, device)).into_iter().collect(),
        }
    }

    /// The output. Skips are taken from the end; what is left of them says how large the output is to be.
    pub(super) fn forward(
        &self,
        mut hidden: Tensor<4>,
        time: &Tensor<2>,
        text: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (at, resnet) in self.resnets.iter().enumerate() {
            let joined = skips.pop().into_iter().fold(hidden, |hidden, skip| Tensor::cat(vec![hidden, skip], 1));
            hidden = resnet.forward(joined, Some(time));
            if let Some(transformer) = self.attentions.get(at) {
                hidden = transformer.forward(hidden, text);
            }
        }
        // Twice the size, unless the way down came from an odd one.
        let size = skips.last().map(|it| [it.dims()[2], it.dims()[3]]);
        self.upsamplers.iter().fold(hidden, |hidden, upsample| upsample.forward(hidden, size))
    }
}
