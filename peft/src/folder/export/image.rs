//! The forms of image programs: diffusers and kohya's scripts.
//!
//! Sources: `convert_state_dict_to_kohya` and `get_peft_kwargs` in `diffusers/utils` (0.42).

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_core::files::checkpoint::{Stored, check_finite, write_tensors};
use peft_core::{PeftError, Result};

use super::form::Exported;
use super::pairs::{Allowed, INSPECT, Pairs, scaled};

/// The name that diffusers looks for.
const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";
/// Any name will do.
const KOHYA_FILE: &str = "lora.safetensors";

/// Text encoders of pipelines are CLIPs.
fn component<'a>(found: &Pairs, given: Option<&'a str>) -> &'a str {
    let is_text = found.pairs.iter().all(|it| it.module.starts_with("text_model."));
    given.unwrap_or(if is_text { "text_encoder" } else { "unet" })
}

/// Keys of PEFT behind the name of the component. Versions differ in where they look for alpha and in what they do without
/// one where ranks differ; at one rank and a scale of 1, which is in `lora_B`, all agree.
pub(super) fn write_diffusers(found: &Pairs, output: &Path, part: Option<&str>) -> Result<Exported> {
    found.refuse("the form of diffusers", Allowed { convolutions: true, magnitudes: true, biases: true })?;
    let part = component(found, part);
    let rank = found.largest_rank();
    let mut tensors = Vec::new();
    for pair in &found.pairs {
        let key = |name: &str| format!("{part}.{}.{name}", pair.module);
        let (a, b) = pair.padded(rank, pair.scale);
        tensors.push(Stored { key: key("lora_A.weight"), data: TensorData::new(a, pair.shape_a(rank)) });
        tensors.push(Stored { key: key("lora_B.weight"), data: TensorData::new(b, pair.shape_b(rank)) });
        if let Some(magnitude) = &pair.magnitude {
            tensors.push(Stored { key: key("lora_magnitude_vector"), data: magnitude.clone() });
        }
        if let Some(bias) = &pair.bias {
            let bias: Vec<f32> = bias.iter().map(|it| scaled(*it, pair.scale)).collect();
            tensors.push(Stored { key: key("lora_B.bias"), data: TensorData::new(bias, [pair.out]) });
        }
    }
    write(found, tensors, output.join(DIFFUSERS_FILE))
}

/// Dots become underscores, and every layer has its alpha. It is the same in all of them, for diffusers (0.42) loses alphas
/// that differ; what is left of the scale is in `lora_up`.
pub(super) fn write_kohya(found: &Pairs, output: &Path, part: Option<&str>) -> Result<Exported> {
    found.refuse("kohya's form", Allowed { convolutions: true, ..Allowed::default() })?;
    let prefix = match component(found, part) {
        "unet" => "lora_unet",
        "text_encoder" => "lora_te",
        "text_encoder_1" => "lora_te1",
        "text_encoder_2" => "lora_te2",
        other if other.starts_with("lora_") => other,
        other => {
            let known =
                "expected unet, text_encoder, text_encoder_1, text_encoder_2 or a prefix that starts with lora_";
            return Err(PeftError::config("component", format!("is `{other}`, {known}")));
        }
    };
    let alphas = found.pairs.iter().map(|it| it.scale * it.rank as f64);
    let alpha = alphas.into_iter().find(|it| *it != 0.0).unwrap_or(1.0);
    let mut tensors = Vec::new();
    for pair in &found.pairs {
        let module = format!("{prefix}_{}", pair.module.replace('.', "_"));
        let (a, b) = pair.padded(pair.rank, pair.scale * pair.rank as f64 / alpha);
        let key = |name: &str| format!("{module}.{name}");
        tensors.push(Stored { key: key("lora_down.weight"), data: TensorData::new(a, pair.shape_a(pair.rank)) });
        tensors.push(Stored { key: key("lora_up.weight"), data: TensorData::new(b, pair.shape_b(pair.rank)) });
        tensors.push(Stored { key: key("alpha"), data: TensorData::new(vec![alpha as f32], Vec::<usize>::new()) });
    }
    write(found, tensors, output.join(KOHYA_FILE))
}

fn write(found: &Pairs, tensors: Vec<Stored>, file: PathBuf) -> Result<Exported> {
    check_finite(&tensors, found.float, INSPECT)?;
    write_tensors(&file, tensors, found.float)?;
    Ok(Exported {
        files: vec![file],
        layers: found.pairs.len(),
        rank: found.largest_rank(),
        converted: Vec::new(),
        notes: Vec::new(),
    })
}
