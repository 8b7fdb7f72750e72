//! Stable Diffusion's noise predictors and text encoders.

use std::path::Path;

use burn::tensor::Tensor;
use peft_core::files::checkpoint::TensorFile;
use peft_models::auto::load_denoiser;
use peft_models::{AddedConditions, Denoiser, DenoiserInput};

use crate::support::{assert_close, device, still};

cases! {
    clip_text_base,
    clip_text_base_bare,
    clip_text_projection_base,
    unet_no_mid_base,
    unet_odd_base,
    unet_plain_mid_base,
    unet_sd15_base,
    unet_sd15_base_odd,
    unet_sd15_base_one,
    unet_sd21_base,
    unet_sdxl_base,
}

pub(super) fn check_denoiser(model: &Path, inputs: &TensorFile, expected: &TensorFile) {
    fn floats<const D: usize>(file: &TensorFile, key: &str) -> Tensor<D> {
        Tensor::from_data(file.floats(key).unwrap(), &device())
    }
    let timesteps = inputs.integers("timestep").unwrap();
    let timesteps: Vec<f32> = timesteps.iter::<i64>().map(|it| it as f32).collect();
    let input = DenoiserInput {
        sample: floats(inputs, "sample"),
        timestep: Tensor::from_floats(timesteps.as_slice(), &device()),
        encoder_hidden_states: floats(inputs, "encoder_hidden_states"),
        added: inputs.shape("time_ids").map(|_| AddedConditions {
            text_embeds: floats(inputs, "text_embeds"),
            time_ids: floats(inputs, "time_ids"),
        }),
    };
    let sample = still(load_denoiser(model, &device()).unwrap().0).predict(&input);
    assert_close("sample", sample.clone().into_data(), expected.floats("sample").unwrap());
    let loss = (sample - floats(inputs, "labels")).square().mean();
    super::assert_loss(loss, expected);
}
