//! The forms of image programs: diffusers and kohya's scripts.
//!
//! Sources: `convert_state_dict_to_kohya` and `get_peft_kwargs` in `diffusers/utils` (0.42).

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_core::files::checkpoint::{FloatType, Stored, check_finite, write_tensors};
use peft_core::{CONFIG_FILE, PeftError, Result};

use super::form::Exported;
use super::pairs::{Allowed, INSPECT, Pairs, scaled};

/// The parts of a pipeline that have a LoRA.
const PARTS: [&str; 3] = ["unet", "text_encoder", "text_encoder_2"];
/// The name that diffusers looks for.
const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";
/// Any name will do.
const KOHYA_FILE: &str = "lora.safetensors";

/// The adapters of a folder, each with the part of a pipeline that it is for: folders of PEFT in folders that are named
/// after parts, or one that is told by its layers. Text encoders of pipelines are CLIPs.
pub(super) fn parts(folder: &Path, given: Option<&str>) -> Result<Vec<(String, Pairs)>> {
    let inside = PARTS.iter().filter(|it| folder.join(it).join(CONFIG_FILE).is_file());
    let inside: Vec<&str> = inside.copied().filter(|it| given.is_none_or(|given| given == *it)).collect();
    if !inside.is_empty() {
        return inside.into_iter().map(|it| Ok((it.to_owned(), Pairs::read(&folder.join(it))?))).collect();
    }
    let found = Pairs::read(folder)?;
    let part = match given {
        Some(part) => part,
        None => part_of(&found).map_err(|error| error.in_file(folder))?,
    };
    Ok(vec![(part.to_owned(), found)])
}

/// What the layers of a UNet begin with, or are.
const OF_UNET: [&str; 9] = [
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
    "class_embedding",
    "encoder_hid_proj",
];

/// The part that an adapter is for, by the names of its layers. Adapters for pictures name no task, so nothing else tells one of
/// a UNet from one of a model that no image program has.
fn part_of(found: &Pairs) -> Result<&'static str> {
    let is_of = |starts: &[&str]| {
        let first = |module: &str| module.split('.').next().unwrap_or_default().to_owned();
        found.pairs.iter().find(|it| !starts.contains(&first(&it.module).as_str()))
    };
    let Some(other) = is_of(&OF_UNET) else { return Ok("unet") };
    match is_of(&["text_model"]) {
        None => Ok("text_encoder"),
        Some(_) => Err(PeftError::Invalid(format!(
            "`{}` is a layer of neither a UNet nor a CLIP text encoder, so no image program reads it: say by --component what \
             it is, or keep the folder of PEFT",
            other.module
        ))),
    }
}

/// Keys of PEFT behind the name of the part. Versions differ in where they look for alpha and in what they do without one
/// where ranks differ; at one rank and a scale of 1, which is in `lora_B`, all agree.
pub(super) fn write_diffusers(parts: &[(String, Pairs)], output: &Path) -> Result<Exported> {
    let mut tensors = Vec::new();
    for (part, found) in parts {
        found.refuse("the form of diffusers", Allowed { convolutions: true, magnitudes: true, biases: true })?;
        let rank = found.largest_rank();
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
    }
    write(parts, tensors, output.join(DIFFUSERS_FILE))
}

/// Dots become underscores, and every layer has its alpha. It is the same in all of them, for diffusers (0.42) loses alphas
/// that differ; what is left of the scale is in `lora_up`.
pub(super) fn write_kohya(parts: &[(String, Pairs)], output: &Path) -> Result<Exported> {
    let alphas = parts.iter().flat_map(|it| &it.1.pairs).map(|it| it.scale * it.rank as f64);
    let alpha = alphas.into_iter().find(|it| *it != 0.0).unwrap_or(1.0);
    let mut tensors = Vec::new();
    for (part, found) in parts {
        found.refuse("kohya's form", Allowed { convolutions: true, ..Allowed::default() })?;
        let prefix = match part.as_str() {
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
        for pair in &found.pairs {
            let module = format!("{prefix}_{}", pair.module.replace('.', "_"));
            let (a, b) = pair.padded(pair.rank, pair.scale * pair.rank as f64 / alpha);
            let key = |name: &str| format!("{module}.{name}");
            tensors.push(Stored { key: key("lora_down.weight"), data: TensorData::new(a, pair.shape_a(pair.rank)) });
            tensors.push(Stored { key: key("lora_up.weight"), data: TensorData::new(b, pair.shape_b(pair.rank)) });
            tensors.push(Stored { key: key("alpha"), data: TensorData::new(vec![alpha as f32], Vec::<usize>::new()) });
        }
    }
    write(parts, tensors, output.join(KOHYA_FILE))
}

fn write(parts: &[(String, Pairs)], tensors: Vec<Stored>, file: PathBuf) -> Result<Exported> {
    // Single precision if they differ.
    let float =
        parts.iter().map(|it| it.1.float).reduce(|a, b| if a == b { a } else { FloatType::F32 }).unwrap_or_default();
    check_finite(&tensors, float, INSPECT)?;
    write_tensors(&file, tensors, float)?;
    Ok(Exported {
        files: vec![file],
        layers: parts.iter().map(|it| it.1.pairs.len()).sum(),
        rank: parts.iter().map(|it| it.1.largest_rank()).max().unwrap_or(0),
        converted: Vec::new(),
        notes: Vec::new(),
    })
}
