//! Pictures, recordings and latents that lie in no file: numbers that follow from their places, the same in every contender.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::core::ops::{self, Interpolation};
use peft::core::{PeftError, Result};
use peft::models::{AudioInput, Denoiser, DenoiserInput, ImageClassifier, ModelInput, SemanticSegmenter, Seq2SeqLm};
use peft::tasks::tasks::loss;
use peft::tasks::tasks::task::{Evaluation, Task};

/// The mean loss of the one batch.
pub(crate) type Loss<M> = fn(&M, &Media<M>, &Device) -> Result<Tensor<1>>;

/// One batch, again and again.
#[derive(Debug)]
pub(crate) struct Media<M> {
    pub(crate) batch: usize,
    /// Tokens of a transcript.
    pub(crate) seq: usize,
    /// Rows and columns, or frames.
    pub(crate) size: usize,
    /// Bands of a recording's spectrum.
    pub(crate) mels: usize,
    pub(crate) loss: Loss<M>,
}

impl<M> Media<M> {
    fn pictures(&self, channels: usize, device: &Device) -> Tensor<4> {
        numbers([self.batch, channels, self.size, self.size], 7919, device)
    }
}

/// Numbers between −1 and 1, spread by a prime.
fn numbers<const D: usize>(dims: [usize; D], prime: usize, device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..dims.iter().product()).map(|at| (at * prime % 1009) as f32 / 504.5 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

/// Classes or tokens below `end`, spread by a prime.
fn classes<const D: usize>(dims: [usize; D], end: usize, device: &Device) -> Tensor<D, Int> {
    let values: Vec<i64> = (0..dims.iter().product()).map(|at| (at * 7919 % end) as i64).collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

pub(crate) fn image_loss<M: ImageClassifier>(model: &M, media: &Media<M>, device: &Device) -> Result<Tensor<1>> {
    let logits = model.logits(media.pictures(model.num_channels(), device));
    Ok(ops::cross_entropy(logits, classes([media.batch], model.num_labels(), device)))
}

pub(crate) fn pixel_loss<M: SemanticSegmenter>(model: &M, media: &Media<M>, device: &Device) -> Result<Tensor<1>> {
    let size = [media.size, media.size];
    let logits = model.logits(media.pictures(model.num_channels(), device));
    let labels = classes([media.batch, media.size, media.size], model.num_labels(), device);
    let logits = ops::interpolate(logits, size, Interpolation::Bilinear);
    Ok(loss::segmentation(logits, labels, model.ignored_label()))
}

pub(crate) fn speech_loss<M: Seq2SeqLm<AudioInput>>(model: &M, media: &Media<M>, device: &Device) -> Result<Tensor<1>> {
    let input_features = numbers([media.batch, media.mels, media.size], 7919, device);
    let labels = classes([media.batch, media.seq], 97, device);
    let read = ModelInput::ids(model.shift_right(labels.clone())?);
    Ok(loss::every_position(model.logits(&AudioInput { input_features }, &read), labels))
}

pub(crate) fn noise_loss<M: Denoiser>(model: &M, media: &Media<M>, device: &Device) -> Result<Tensor<1>> {
    let about = model.about();
    if about.added.is_some() {
        return Err(PeftError::unsupported("this model", "it has conditions that are not written out here"));
    }
    let input = DenoiserInput {
        sample: media.pictures(about.in_channels, device),
        timestep: Tensor::from_floats([500.0], device),
        encoder_hidden_states: numbers([media.batch, 77, about.d_text], 104_729, device),
        added: None,
    };
    let noise = numbers([media.batch, about.out_channels, media.size, media.size], 104_729, device);
    Ok((model.predict(&input) - noise).square().mean())
}

impl<M: Module> Task<M> for Media<M> {
    fn lengths(&self) -> Vec<usize> {
        vec![1; self.batch]
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.len() * self.seq
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.len()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        Ok((self.loss)(model, self, device)?.mul_scalar(items.len() as f64))
    }

    fn evaluate(&self, _model: &M, _batch_size: usize, _device: &Device) -> Result<Evaluation> {
        Err(PeftError::unsupported("an evaluation of the bench", "it measures steps of training"))
    }
}
