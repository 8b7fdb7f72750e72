//! An adapter of any method that changes weights as LoRA.

use std::path::Path;

use peft_core::files::checkpoint::Placement;
use peft_core::{DEFAULT_ADAPTER, Result};
use peft_lora::combine::convert::{Conversion, ConvertToLora, Rank};

use crate::folder::adapted::{adapted, made_of, refuse_source};
use crate::run::registry::Registry;

/// Name of what is made, which no folder has.
const MADE: &str = "made";

/// Turns the adapter in a folder into LoRA of this rank or these ranks, writes it to `output`, and says what each layer lost.
///
/// # Errors
/// If something cannot be read, or the adapter changes more than weights of layers.
pub fn convert(
    adapter: &Path,
    base: &Path,
    rank: Rank,
    output: &Path,
    registry: &Registry,
    place: impl Into<Placement>,
) -> Result<Vec<Conversion>> {
    refuse_source(adapter, output)?;
    refuse_source(base, output)?;
    let named = [(DEFAULT_ADAPTER.to_owned(), adapter.to_path_buf())];
    let mut model = adapted(base, &named, registry, place)?;
    let from = [adapter.to_path_buf()];
    let report = model.convert_to_lora(DEFAULT_ADAPTER, MADE, rank).map_err(|error| made_of(error, &from))?;
    model.save_adapter(output, MADE).map_err(|error| made_of(error, &from))?;
    Ok(report)
}

/// What all layers together lost: the norm of what is gone over the norm of what was there.
pub fn total_error(layers: &[Conversion]) -> f64 {
    let all: f64 = layers.iter().map(|it| it.norm.powi(2)).sum();
    let lost: f64 = layers.iter().map(|it| (it.error * it.norm).powi(2)).sum();
    if all > 0.0 { (lost / all).sqrt() } else { 0.0 }
}
