//! Several adapters as one.

use std::path::{Path, PathBuf};

use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result};
use peft_lora::combine::weighted::{Combination, Combine};

use crate::folder::adapted::{adapted, made_of, refuse_source};
use crate::run::registry::Registry;

/// Name of what is made, which no folder has.
const MADE: &str = "made";

/// Combines the adapters in some folders, each with its weight, into one adapter in `output`; see [`Combine`]. Adapters
/// of IA3 can be added up, and nothing else.
///
/// # Errors
/// If something cannot be read, an adapter is not plain LoRA, or ranks differ where they must not.
pub fn combine(
    adapters: &[(PathBuf, f64)],
    base: &Path,
    how: Combination,
    seed: u64,
    output: &Path,
    registry: &Registry,
    place: impl Into<Placement>,
) -> Result<()> {
    adapters.iter().map(|it| it.0.as_path()).chain([base]).try_for_each(|source| refuse_source(source, output))?;
    if adapters.is_empty() {
        return Err(PeftError::Invalid("there is nothing to combine: name at least one adapter".into()));
    }
    let names: Vec<String> = (0..adapters.len()).map(|at| format!("adapter{at}")).collect();
    let named: Vec<(String, PathBuf)> =
        names.iter().cloned().zip(adapters.iter().map(|(folder, _)| folder.clone())).collect();
    let weights: Vec<(&str, f64)> = names.iter().map(String::as_str).zip(adapters.iter().map(|it| it.1)).collect();
    let from: Vec<PathBuf> = adapters.iter().map(|it| it.0.clone()).collect();
    let mut model = adapted(base, &named, registry, place)?;
    let is_ia3 = model.adapters().values().all(|it| it.config.peft_type() == "IA3");
    match how {
        #[cfg(feature = "ia3")]
        Combination::Factors(peft_lora::combine::weighted::Merge::Linear) if is_ia3 => {
            peft_ia3::CombineIa3::combine_ia3(&mut model, MADE, &weights)?;
        }
        _ if is_ia3 => {
            let reason = "its vectors can only be added up: take `linear`";
            return Err(PeftError::unsupported("this combination of IA3", reason));
        }
        how => model.combine(MADE, &weights, how, seed).map_err(|error| made_of(error, &from))?,
    }
    model.save_adapter(output, MADE).map_err(|error| made_of(error, &from))
}
