//! What an adapter folder holds, whether it fits a base model, and which other programs can read it.

mod facts;
mod fit;
mod programs;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use peft_core::{AdapterFolder, Result, thousands};
use peft_models::common::config::RawConfig;
use serde::Serialize;

use crate::methods;
use facts::Facts;
#[cfg(feature = "lora")]
pub(crate) use fit::sites_of;
use fit::{fit, is_tied};

/// What [`inspect`] found. Plain data: serialise it, or print it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The folder.
    pub path: PathBuf,
    /// `peft_type` of the configuration.
    pub peft_type: String,
    /// Whether this build can compute it.
    pub known: bool,
    /// `task_type` of the configuration.
    pub task_type: Option<String>,
    /// `base_model_name_or_path` of the configuration.
    pub base_model_name_or_path: Option<String>,
    /// Rank of the configuration.
    pub rank: Option<usize>,
    /// Ranks that the tensors have, with the number of layers that have them.
    pub ranks: BTreeMap<usize, usize>,
    /// `lora_alpha` of the configuration.
    pub alpha: Option<f64>,
    /// Factor of the update where no pattern says otherwise.
    pub scale: Option<f64>,
    /// What the configuration switches on beside the common case.
    pub flags: Flags,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements of all tensors.
    pub parameters: usize,
    /// Size of all tensors in the file.
    pub bytes: usize,
    /// Element types, with the number of tensors that have them.
    pub dtypes: BTreeMap<String, usize>,
    /// Last names of the adapted layers, with their numbers.
    pub layers: BTreeMap<String, usize>,
    /// What the outputs of its head mean, in order.
    pub labels: Vec<String>,
    /// Tensors that belong to no adapted layer: saved modules, biases, copies of the base.
    pub whole: Vec<String>,
    /// Tensors of zeros only.
    pub zero: Vec<String>,
    /// Tensors with NaN or infinity.
    pub not_finite: Vec<String>,
    /// Tensors that should be there, as the other half of a pair is.
    pub missing_partners: Vec<String>,
    /// What is suspicious about the adapter, and what to do.
    pub warnings: Vec<String>,
    /// What other programs make of the folder.
    pub consumers: Vec<Verdict>,
    /// Whether the adapter fits the base model, if one was given.
    pub fit: Option<Fit>,
}

/// Switches of the configuration that change the numbers or the tensors.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Flags {
    /// Scale by `alpha / √r`.
    pub use_rslora: bool,
    /// Magnitude and direction are trained apart.
    pub use_dora: bool,
    /// `lora_B` has a bias.
    pub lora_bias: bool,
    /// Which biases are trained.
    pub bias: String,
    /// Modules that are saved whole.
    pub modules_to_save: Vec<String>,
    /// `init_lora_weights`, unless it is `true`.
    pub init: Option<String>,
    /// Some layers have a rank of their own.
    pub rank_pattern: bool,
    /// Some layers have an alpha of their own.
    pub alpha_pattern: bool,
}

/// What a program does with the folder.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The program.
    pub consumer: &'static str,
    /// The worst of the reasons' effects.
    pub outcome: Outcome,
    /// Why, worst first.
    pub reasons: Vec<Reason>,
}

/// How well a program reads a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It reads it.
    Loads,
    /// It reads it, but leaves something out: the numbers differ.
    LoadsButIgnores,
    /// It does not read it.
    Refuses,
}

/// One thing that a program needs, ignores or refuses.
#[derive(Debug, Clone, Serialize)]
pub struct Reason {
    /// What it leads to; [`Outcome::Loads`] is a hint.
    pub effect: Outcome,
    /// The thing in the folder.
    pub what: String,
    /// What to do about it.
    pub next: String,
}

/// Whether an adapter fits a base model.
#[derive(Debug, Clone, Serialize)]
pub struct Fit {
    /// The folder of the base model.
    pub base: PathBuf,
    /// Whether it does; nothing if it cannot be told.
    pub fits: Option<bool>,
    /// Why not.
    pub report: String,
}

/// Looks into an adapter folder of any type, known to this build or not. Nothing is computed and no base weight is read.
///
/// # Errors
/// If the folder or the base's `config.json` cannot be read. An adapter that does not fit its base is no error.
pub fn inspect(folder: &Path, base: Option<&Path>) -> Result<Inspection> {
    let opened = AdapterFolder::open(folder)?;
    let base_config = base.map(RawConfig::read).transpose()?;
    let mut facts = Facts::read(&opened)?;
    facts.base_type = base_config.as_ref().and_then(|it| it.model_type().ok().map(str::to_owned));
    facts.base_is_tied = base_config.as_ref().map(is_tied);
    let fit = base.zip(base_config).map(|(base, raw)| fit(&opened, base, raw));
    let consumers = vec![
        facts.peft(),
        facts.vllm(),
        facts.llama_cpp(),
        facts.lorax(),
        facts.mistral_rs(),
        facts.ollama(),
        facts.own_form("mlx-lm", "mlx"),
        facts.own_form("diffusers", "diffusers"),
    ];
    let warnings = facts.warnings(&opened);
    let peft_type = facts.peft_type.clone();
    Ok(Inspection {
        path: folder.to_path_buf(),
        known: methods().names().any(|it| it == peft_type),
        peft_type,
        task_type: facts.text("task_type"),
        base_model_name_or_path: facts.text("base_model_name_or_path"),
        rank: facts.rank,
        ranks: facts.ranks,
        alpha: facts.alpha,
        scale: facts.rank.zip(facts.alpha).filter(|(rank, _)| *rank > 0).map(|(rank, alpha)| {
            let rank = rank as f64;
            alpha / if facts.flags.use_rslora { rank.sqrt() } else { rank }
        }),
        flags: facts.flags,
        tensors: facts.keys.len(),
        parameters: facts.parameters,
        bytes: facts.bytes,
        dtypes: facts.dtypes,
        layers: facts.layers,
        labels: opened.labels.map(|it| it.names).unwrap_or_default(),
        whole: facts.whole,
        zero: facts.zero,
        not_finite: facts.not_finite,
        missing_partners: facts.missing_partners,
        warnings,
        consumers,
        fit,
    })
}
fn shorten(keys: &[impl AsRef<str>]) -> String {
    let shown: Vec<&str> = keys.iter().take(3).map(AsRef::as_ref).collect();
    let more = keys.len() - shown.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

fn counted<T: fmt::Display>(map: &BTreeMap<T, usize>) -> String {
    map.iter().map(|(name, count)| format!("{name} ×{count}")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base_model_name_or_path.as_deref().unwrap_or("a base that it does not name");
        write!(f, "{} for {base}", self.peft_type)?;
        if let Some(task) = &self.task_type {
            write!(f, ", task {task}")?;
        }
        let mut line = Vec::new();
        line.extend(self.rank.map(|it| format!("r={it}")));
        line.extend(self.alpha.map(|it| format!("α={it}")));
        line.extend(self.scale.map(|it| format!("scale={it:.4}")));
        let flags = &self.flags;
        for (on, name) in [
            (flags.use_rslora, "rslora"),
            (flags.use_dora, "dora"),
            (flags.lora_bias, "lora_bias"),
            (flags.rank_pattern, "rank_pattern"),
            (flags.alpha_pattern, "alpha_pattern"),
        ] {
            line.extend(on.then(|| name.to_owned()));
        }
        line.extend((flags.bias != "none").then(|| format!("bias={}", flags.bias)));
        line.extend(flags.init.as_ref().map(|it| format!("init={it}")));
        if !line.is_empty() {
            write!(f, "\n  {}", line.join(" "))?;
        }
        if self.ranks.len() > 1 {
            write!(f, "\n  ranks: {}", counted(&self.ranks))?;
        }
        let (parameters, bytes) = (thousands(self.parameters), thousands(self.bytes));
        let dtypes = counted(&self.dtypes);
        write!(f, "\n  {} tensors, {parameters} parameters, {bytes} bytes, {dtypes}", self.tensors)?;
        if !self.layers.is_empty() {
            write!(f, "\n  adapted: {}", counted(&self.layers))?;
        }
        if !flags.modules_to_save.is_empty() {
            write!(f, "\n  modules_to_save: {}", flags.modules_to_save.join(", "))?;
        }
        if !self.labels.is_empty() {
            write!(f, "\n  labels: {}", self.labels.join(", "))?;
        }
        if !self.whole.is_empty() {
            write!(f, "\n  saved whole: {}", shorten(&self.whole))?;
        }
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        if let Some(Fit { base, fits, report }) = &self.fit {
            let base = base.display();
            match fits {
                Some(true) => write!(f, "\n  fits {base}")?,
                Some(false) => write!(f, "\n  does not fit {base}: {}", report.replace('\n', "\n  "))?,
                None => write!(f, "\n  cannot tell whether it fits {base}: {report}")?,
            }
        }
        for Verdict { consumer, outcome, reasons } in &self.consumers {
            let outcome = match outcome {
                Outcome::Loads => "loads",
                Outcome::LoadsButIgnores => "loads, but ignores part of it",
                Outcome::Refuses => "refuses",
            };
            write!(f, "\n  {consumer:<12}{outcome}")?;
            for Reason { effect, what, next } in reasons {
                let verb = match effect {
                    Outcome::Loads => "note: ",
                    Outcome::LoadsButIgnores => "ignores ",
                    Outcome::Refuses => "refuses ",
                };
                write!(f, "\n    {verb}{what}: {next}")?;
            }
        }
        Ok(())
    }
}
