//! The form of mlx-lm. Sources: `linear_to_lora_layers` and `load_adapters` in `mlx_lm/tuner/utils.py`, `LoRALinear` and
//! `DoRALinear` beside it.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::TensorData;
use peft_core::files::checkpoint::{Stored, check_finite, serialize, write_together};
use peft_core::{CONFIG_FILE, PeftError, Result};
use serde_json::json;

use super::form::Exported;
use super::pairs::{Allowed, INSPECT, Pairs};

const WEIGHTS: &str = "adapters.safetensors";
/// What mlx-lm calls the list of layers in its models.
const LAYERS: &str = "model.layers.";

/// One rank and one scale for all, factors as `[in, rank]` and `[rank, out]`, and names of layers within their block.
///
/// mlx-lm gives a target to every block. One without tensors keeps the fresh values of its factors, whose `lora_b` is
/// zero.
pub(super) fn write(found: &Pairs, output: &Path) -> Result<Exported> {
    found.refuse("the form of mlx-lm", Allowed { magnitudes: true, ..Allowed::default() })?;
    let mut keys = BTreeSet::new();
    for pair in &found.pairs {
        let within = pair.module.strip_prefix(LAYERS).and_then(|it| it.split_once('.'));
        match within.filter(|(number, _)| number.parse::<usize>().is_ok()) {
            Some((_, name)) => keys.insert(name.to_owned()),
            None if pair.module == "lm_head" => keys.insert(pair.module.clone()),
            None => {
                let reason = "mlx-lm has other names for the layers of models whose blocks are not `model.layers.N`: \
                    merge the adapter into the base and convert that";
                return Err(PeftError::unsupported(format!("`{}` in the form of mlx-lm", pair.module), reason));
            }
        };
    }
    let is_dora = found.pairs.iter().any(|it| it.magnitude.is_some());
    let rank = found.largest_rank();
    let scale = found.pairs[0].scale;
    let is_common = found.pairs.iter().all(|it| it.scale == scale);
    let mut tensors = Vec::new();
    for pair in &found.pairs {
        let (a, b) = pair.padded(rank, if is_common { 1.0 } else { pair.scale });
        let key = |name: &str| format!("{}.{name}", pair.module);
        let width = pair.inner[0];
        tensors.push(Stored { key: key("lora_a"), data: transposed(&a, rank, width) });
        tensors.push(Stored { key: key("lora_b"), data: transposed(&b, pair.out, rank) });
        if let Some(magnitude) = &pair.magnitude {
            tensors.push(Stored { key: key("m"), data: magnitude.clone() });
        }
    }
    check_finite(&tensors, found.float, INSPECT)?;
    let config = json!({
        "fine_tune_type": if is_dora { "dora" } else { "lora" },
        // Less than one means all blocks.
        "num_layers": -1,
        "lora_parameters": {
            "rank": rank,
            "scale": if is_common { scale } else { 1.0 },
            "dropout": found.config.lora_dropout,
            "keys": keys,
        },
        "model": found.json.get("base_model_name_or_path"),
    });
    let text = serde_json::to_string_pretty(&config).map_err(|error| PeftError::Invalid(error.to_string()))?;
    let bytes = serialize(tensors, found.float)?;
    let [weights, file] = [WEIGHTS, CONFIG_FILE].map(|it| output.join(it));
    write_together(&[(&weights, &bytes), (&file, text.as_bytes())])?;
    Ok(Exported {
        files: vec![weights, file],
        layers: found.pairs.len(),
        rank,
        converted: Vec::new(),
        notes: Vec::new(),
    })
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> TensorData {
    let turned = (0..columns * rows).map(|at| values[(at % rows) * columns + at / rows]).collect::<Vec<f32>>();
    TensorData::new(turned, [columns, rows])
}
