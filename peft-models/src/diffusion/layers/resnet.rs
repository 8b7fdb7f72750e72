//! A residual block of two convolutions. Source: `diffusers/models/resnet.py` (0.42), `ResnetBlock2D`.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::forward::gradient_checkpointing;
use peft_core::nn::{Conv2d, Dropout, GroupNorm, Projection};

use crate::common::config::Activation;

/// What residual blocks of a model have in common.
#[derive(Debug, Clone)]
pub struct ResnetSettings {
    /// Groups of channels that are normalised together.
    pub groups: usize,
    /// ε of the norms.
    pub epsilon: f64,
    /// Between norms and convolutions.
    pub act: Activation,
    /// Share of elements dropped before the second convolution.
    pub dropout: f64,
    /// Width of the time embedding; none in the autoencoder.
    pub time_width: Option<usize>,
    /// What the sum is divided by.
    pub scale: f64,
}

/// A residual block.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ResnetBlock2d {
    pub norm1: GroupNorm,
    pub conv1: Conv2d,
    pub time_emb_proj: Option<Projection>,
    pub norm2: GroupNorm,
    pub conv2: Conv2d,
    /// Where the numbers of channels differ.
    pub conv_shortcut: Option<Conv2d>,
    dropout: Dropout,
    #[module(skip)]
    act: Activation,
    scale: f64,
}

impl ResnetBlock2d {
    /// A lazy block from `d_input` to `d_output` channels.
    pub fn new([d_input, d_output]: [usize; 2], settings: &ResnetSettings, device: &Device) -> Self {
        let norm = |channels| GroupNorm::new(settings.groups, channels, settings.epsilon, device);
        let conv = |channels| Conv2d::new(channels, [3; 2], 1, device).with_padding([1; 2]);
        Self {
            norm1: norm(d_input),
            conv1: conv([d_input, d_output]),
            time_emb_proj: settings.time_width.map(|width| Projection::new(width, d_output, true, device)),
            norm2: norm(d_output),
            conv2: conv([d_output, d_output]),
            conv_shortcut: (d_input != d_output).then(|| Conv2d::new([d_input, d_output], [1; 2], 1, device)),
            dropout: Dropout::new(settings.dropout),
            act: settings.act,
            scale: settings.scale,
        }
    }

    /// # Shapes
    /// - input: `[batch, d_input, rows, columns]`
    /// - time: `[batch, time_width]`
    /// - output: `[batch, d_output, rows, columns]`
    pub fn forward(&self, input: Tensor<4>, time: Option<&Tensor<2>>) -> Tensor<4> {
        gradient_checkpointing::layer(self, input, &time.cloned(), |block, input, time| block.compute(input, time))
    }

    fn compute(&self, input: Tensor<4>, time: &Option<Tensor<2>>) -> Tensor<4> {
        let mut hidden = self.conv1.forward(self.act.apply(self.norm1.forward(input.clone())));
        if let (Some(project), Some(time)) = (&self.time_emb_proj, time) {
            let shift = project.forward(self.act.apply(time.clone()));
            let [batch, channels] = shift.dims();
            hidden = hidden + shift.reshape([batch, channels, 1, 1]);
        }
        let hidden = self.dropout.forward(self.act.apply(self.norm2.forward(hidden)));
        let hidden = self.conv2.forward(hidden);
        let input = match &self.conv_shortcut {
            Some(conv) => conv.forward(input),
            None => input,
        };
        let sum = input + hidden;
        if self.scale == 1.0 { sum } else { sum.div_scalar(self.scale) }
    }
}
