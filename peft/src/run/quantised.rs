//! Whether adapters act on the base that they were trained on: in as many bits.

use peft_core::Result;
use peft_core::files::checkpoint::Placement;
use peft_core::quant::QuantConfig;
use peft_models::common::config::RawConfig;

use crate::load::adapters::AdapterSource;
use crate::run::config::{RUN_FILE, RunConfig};

/// What is not quantised.
const FULL: &str = "full precision";

/// Says which adapters were trained on the base in other numbers than it has now: the run file beside them says so. They
/// were trained to make up for its rounding, and compute something else here.
///
/// # Errors
/// If `config.json` says what cannot be understood.
pub(crate) fn warn_of_another_base(adapters: &[AdapterSource], raw: &RawConfig, place: &Placement) -> Result<()> {
    let stored = raw.quantization()?;
    let now = match (&place.quantize, &stored) {
        (Some(asked), _) => asked.to_string(),
        (None, Some(stored)) => stored.to_string(),
        (None, None) => FULL.to_owned(),
    };
    for AdapterSource { folder, .. } in adapters {
        // Whoever trained it without a run file does not say.
        let Ok(run) = RunConfig::read(folder.join(RUN_FILE)) else { continue };
        let is_same = match (&run.quantization, &place.quantize, &stored) {
            (Some(then), Some(now), _) => then.is_like(now),
            (Some(then), None, Some(now)) => now.is_like(then),
            (Some(_), None, None) => false,
            // A base whose own files are quantised is named as it is.
            (None, asked, stored) => stored.is_some() || asked.is_none(),
        };
        if !is_same {
            let then = run.quantization.as_ref().map_or(FULL.to_owned(), QuantConfig::to_string);
            tracing::warn!(
                "{} was trained on its base in {then}, and acts here on one in {now}: what it computes differs",
                folder.display(),
            );
        }
    }
    Ok(())
}
