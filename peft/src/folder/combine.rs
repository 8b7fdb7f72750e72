//! Adapter folders as things: combined into one, converted to LoRA.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use peft_core::{Adaptable, DEFAULT_ADAPTER, PeftError, PeftModel, Result};
use peft_lora::combine::convert::{Conversion, ConvertToLora, Rank};
use peft_lora::combine::weighted::{Combination, Combine};

use crate::load::adapted::{OnModel, with_adapters};

/// Name of what is made, which no folder has.
const MADE: &str = "made";

/// Whether two paths lead to the same folder, which is there.
pub fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Turns the adapter in a folder into LoRA of this rank or these ranks, writes it to `output`, and says what each layer lost.
///
/// # Errors
/// If something cannot be read, or the adapter changes more than weights of layers.
pub fn convert(adapter: &Path, base: &Path, rank: Rank, output: &Path, device: &Device) -> Result<Vec<Conversion>> {
    struct Job<'a> {
        rank: Rank,
        output: &'a Path,
    }
    impl OnModel for Job<'_> {
        type Output = Vec<Conversion>;
        fn run<M: Module + Adaptable>(self, mut peft: PeftModel<M>) -> Result<Self::Output> {
            let report = peft.convert_to_lora(DEFAULT_ADAPTER, MADE, self.rank)?;
            peft.save_adapter(self.output, MADE)?;
            Ok(report)
        }
    }
    let named = [(DEFAULT_ADAPTER.to_owned(), adapter.to_path_buf())];
    with_adapters(base, &named, device, Job { rank, output })
}

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
    device: &Device,
) -> Result<()> {
    struct Job<'a> {
        weights: Vec<(String, f64)>,
        how: Combination,
        seed: u64,
        output: &'a Path,
    }
    impl OnModel for Job<'_> {
        type Output = ();
        fn run<M: Module + Adaptable>(self, mut peft: PeftModel<M>) -> Result<()> {
            let weights: Vec<(&str, f64)> = self.weights.iter().map(|(name, it)| (name.as_str(), *it)).collect();
            let is_ia3 = peft.adapters().values().all(|it| it.config.peft_type() == "IA3");
            match self.how {
                #[cfg(feature = "ia3")]
                Combination::Factors(peft_lora::combine::weighted::Merge::Linear) if is_ia3 => {
                    peft_ia3::CombineIa3::combine_ia3(&mut peft, MADE, &weights)?;
                }
                _ if is_ia3 => {
                    let reason = "its vectors can only be added up: take `linear`";
                    return Err(PeftError::unsupported("this combination of IA3", reason));
                }
                how => peft.combine(MADE, &weights, how, self.seed)?,
            }
            peft.save_adapter(self.output, MADE)
        }
    }
    if adapters.is_empty() {
        return Err(PeftError::Invalid("there is nothing to combine: name at least one adapter".into()));
    }
    let name = |at: usize| format!("adapter{at}");
    let named: Vec<(String, PathBuf)> =
        adapters.iter().enumerate().map(|(at, (folder, _))| (name(at), folder.clone())).collect();
    let weights = adapters.iter().enumerate().map(|(at, (_, weight))| (name(at), *weight)).collect();
    with_adapters(base, &named, device, Job { weights, how, seed, output })
}

/// What all layers together lost: the norm of what is gone over the norm of what was there.
pub fn total_error(layers: &[Conversion]) -> f64 {
    let all: f64 = layers.iter().map(|it| it.norm.powi(2)).sum();
    let lost: f64 = layers.iter().map(|it| (it.error * it.norm).powi(2)).sum();
    if all > 0.0 { (lost / all).sqrt() } else { 0.0 }
}
