//! Whether adapters act on the base that they were trained on: in as many bits.

use peft_core::Result;
use peft_core::files::checkpoint::Placement;
use peft_core::quant::QuantConfig;
use peft_models::common::config::RawConfig;

use crate::load::adapters::AdapterSource;
use crate::run::config::{RUN_FILE, RunConfig};

/// Says which adapters were trained on the base in other numbers than it has now: the run file beside them says so. They
/// were trained to make up for its rounding, and compute something else here.
///
/// # Errors
/// If `config.json` says what cannot be understood.
pub(crate) fn warn_of_another_base(adapters: &[AdapterSource], raw: &RawConfig, place: &Placement) -> Result<()> {
    let now = place.quantize.clone().or(raw.quantization()?);
    let words = |config: &Option<QuantConfig>| config.as_ref().map_or("full precision".to_owned(), |it| it.to_string());
    for AdapterSource { folder, .. } in adapters {
        // Whoever trained it without a run file does not say.
        let Ok(run) = RunConfig::read(folder.join(RUN_FILE)) else { continue };
        let same = |a: &QuantConfig, b: &QuantConfig| a.format == b.format && a.double_quant == b.double_quant;
        let is_same = match (&run.quantization, &now) {
            (Some(then), Some(now)) => same(then, now),
            // A base whose own files are quantised is named as it is.
            (None, _) => raw.quantization()?.is_some() || place.quantize.is_none(),
            (Some(_), None) => false,
        };
        if !is_same {
            tracing::warn!(
                "{} was trained on its base in {}, and acts here on one in {}: what it computes differs",
                folder.display(),
                words(&run.quantization),
                words(&now)
            );
        }
    }
    Ok(())
}
