//! What an inspection found, as data and as text.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use peft_core::thousands;
use serde::Serialize;

/// What [`inspect`](fn@crate::folder::inspect::inspect) found. Plain data: serialise it, or print it.
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
    /// Acts behind a sequence of tokens only: activated LoRA.
    pub alora_invocation_tokens: bool,
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
    /// It reads it and finds nothing of it, without an error.
    LoadsNothing,
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
    /// Why the reference cannot load such an adapter on this base, although it fits.
    pub not_in_reference: Vec<String>,
}

pub(super) fn shorten(keys: &[impl AsRef<str>]) -> String {
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
            (flags.alora_invocation_tokens, "alora"),
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
        if let Some(Fit { base, fits, report, .. }) = &self.fit {
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
                Outcome::LoadsNothing => "finds nothing of it, and says nothing",
                Outcome::Refuses => "refuses",
            };
            write!(f, "\n  {consumer:<12}{outcome}")?;
            for Reason { effect, what, next } in reasons {
                let verb = match effect {
                    Outcome::Loads => "note: ",
                    Outcome::LoadsButIgnores | Outcome::LoadsNothing => "ignores ",
                    Outcome::Refuses => "refuses ",
                };
                write!(f, "\n    {verb}{what}: {next}")?;
            }
        }
        Ok(())
    }
}
