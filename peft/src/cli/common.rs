//! Arguments and displays that several commands share.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use burn::module::Module;
use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use peft::core::files::checkpoint::{BaseDtype, Placement};
use peft::core::{Adaptable, DEFAULT_ADAPTER, PeftModel, Result};
use peft::load::hub::{Hub, What};
use peft::models::auto::{self, AutoCausalLm, AutoSeq2SeqLm};
use peft::models::{CausalLm, Seq2SeqLm};
use peft::tasks::data::columns::Columns;
use peft::tasks::train::Observer;
use peft::tasks::train::log::{EvalRecord, TrainRecord};

/// Which columns of the data file are what.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ColumnArgs {
    /// Column of the text.
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column of a second text.
    #[arg(long, value_name = "NAME")]
    text_pair_column: Option<String>,
    /// Column of the prompt.
    #[arg(long, value_name = "NAME")]
    prompt_column: Option<String>,
    /// Column of the answer; only answers are learned.
    #[arg(long, value_name = "NAME")]
    completion_column: Option<String>,
    /// Column of the conversation.
    #[arg(long, value_name = "NAME")]
    messages_column: Option<String>,
    /// Column of the label.
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
}

impl ColumnArgs {
    pub(crate) fn columns(&self) -> Columns {
        Columns {
            text: self.text_column.clone(),
            text_pair: self.text_pair_column.clone(),
            prompt: self.prompt_column.clone(),
            completion: self.completion_column.clone(),
            messages: self.messages_column.clone(),
            label: self.label_column.clone(),
            ..Columns::default()
        }
    }
}

/// Where the base goes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PlaceArgs {
    /// flex, wgpu, cuda, tch: among those compiled in.
    #[arg(long)]
    device: Option<String>,
    /// What the frozen matrices of the base are kept in: float32; auto, as they are in its file, so that bf16 and f16 take
    /// half the memory and give the same numbers; bfloat16 or float16, rounded to it, which is another base.
    #[arg(long, default_value_t)]
    dtype: BaseDtype,
}

impl PlaceArgs {
    pub(crate) fn placement(&self) -> Result<Placement> {
        Ok(Placement::on(&device(self.device.as_deref())?).with_dtype(self.dtype))
    }
}

/// The best device of this build, or the one that is named.
pub(crate) fn device(name: Option<&str>) -> Result<Device> {
    let best = peft::device::devices().first().copied().unwrap_or("flex");
    peft::device::device(name.unwrap_or(best))
}

/// Loads a language model with adapters; names them `default`, `adapter1`, ….
pub(crate) fn causal_lm(model: &Path, adapters: &Adapters, place: &Placement) -> Result<PeftModel<AutoCausalLm>> {
    let (mut base, _) = auto::load_causal_lm(model, place)?;
    for folder in adapters.iter() {
        if peft::forward::names_head(&peft::core::read_config(folder)?) {
            base = base.untied();
        }
    }
    adapted(base, adapters, &place.device)
}

/// The same for a model with an encoder and a decoder.
pub(crate) fn seq2seq_lm(model: &Path, adapters: &Adapters, place: &Placement) -> Result<PeftModel<AutoSeq2SeqLm>> {
    let (mut base, _) = auto::load_seq2seq_lm(model, place)?;
    for folder in adapters.iter() {
        if peft::forward::names_head(&peft::core::read_config(folder)?) {
            base = base.untied();
        }
    }
    adapted(base, adapters, &place.device)
}

/// A model with adapters, named `default`, `adapter1`, ….
pub(crate) fn adapted<M: Module + Adaptable>(base: M, adapters: &Adapters, device: &Device) -> Result<PeftModel<M>> {
    let spec = base.spec();
    let mut peft = PeftModel::with_spec(base, spec, device);
    for (at, (folder, strength)) in adapters.folders.iter().zip(&adapters.strengths).enumerate() {
        let name = if at == 0 { DEFAULT_ADAPTER.to_owned() } else { format!("adapter{at}") };
        if peft.adapters().is_empty() {
            peft.adopt_tables(&peft::core::AdapterFolder::open(folder)?)?;
        }
        peft.load_adapter(folder, &name, &peft::methods())?;
        peft.set_strength(&name, *strength)?;
    }
    Ok(peft)
}

/// Positions of the model that the prompts of adapters take up.
pub(crate) fn reserved_positions(adapters: &[PathBuf]) -> Result<usize> {
    let of = |it: &PathBuf| Ok(peft::load::configure::virtual_positions(&peft::core::read_config(it)?));
    adapters.iter().map(of).sum()
}

/// Between how many tasks the prompts of adapters tell.
pub(crate) fn most_tasks(adapters: &[PathBuf]) -> Result<usize> {
    let of = |it: &PathBuf| Ok(peft::load::configure::tasks(&peft::core::read_config(it)?));
    adapters.iter().map(of).try_fold(1, |most, it: Result<usize>| Ok(most.max(it?)))
}

/// A folder, or a model of the hub: downloaded once, with a progress bar.
pub(crate) fn model_folder(name: &str) -> Result<PathBuf> {
    hub(name, What::Model)
}

/// `DIR`, `ID`, `DIR=0.5` or `ID=0.5`: an adapter and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adapter {
    name: String,
    pub(crate) weight: f64,
}

impl Adapter {
    /// A name that takes no weight.
    pub(crate) fn unscaled(name: &str) -> Self {
        Self { name: name.to_owned(), weight: 1.0 }
    }

    /// A folder, or an adapter of the hub.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        hub(&self.name, What::Adapter)
    }
}

impl FromStr for Adapter {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // A folder may have the sign in its name.
        let cut = text.rsplit_once('=').filter(|_| !Path::new(text).is_dir());
        let Some((name, weight)) = cut else { return Ok(Self::unscaled(text)) };
        match weight.parse::<f64>() {
            Ok(weight) if weight.is_finite() && !name.is_empty() => Ok(Self { name: name.to_owned(), weight }),
            _ => Err(format!("`{weight}` is no number; expected a folder or DIR=0.5")),
        }
    }
}

/// Folders of adapters and their strengths.
pub(crate) struct Adapters {
    folders: Vec<PathBuf>,
    pub(crate) strengths: Vec<f64>,
}

impl Deref for Adapters {
    type Target = [PathBuf];

    fn deref(&self) -> &[PathBuf] {
        &self.folders
    }
}

/// Folders, or adapters of the hub.
pub(crate) fn adapter_folders(adapters: &[Adapter]) -> Result<Adapters> {
    Ok(Adapters {
        folders: adapters.iter().map(Adapter::folder).collect::<Result<_>>()?,
        strengths: adapters.iter().map(|it| it.weight).collect(),
    })
}

fn hub(name: &str, what: What) -> Result<PathBuf> {
    // An existing folder is itself, whatever its name looks like.
    if Path::new(name).is_dir() {
        Ok(PathBuf::from(name))
    } else {
        Hub::from_env().with_progress(true).resolve(name, what)
    }
}

/// A progress bar with loss, tokens per second and time left.
pub(crate) struct Bar {
    bar: ProgressBar,
    /// `(step, loss)` of every step.
    pub(crate) losses: Vec<(usize, f64)>,
}

impl Bar {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, losses: Vec::new() }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Bar {
    fn step(&mut self, record: &TrainRecord, total: usize) {
        self.losses.push((record.step, record.loss));
        self.bar.set_length(total as u64);
        self.bar.set_position(record.step as u64);
        self.bar.set_message(format!("loss {:.4}  {:.0} tokens/s", record.loss, record.tokens_per_second));
    }

    fn evaluated(&mut self, record: &EvalRecord) {
        let metrics: Vec<String> =
            record.metrics.iter().map(|(name, value)| format!("{name} {}", short(value))).collect();
        let line = format!("step {}: evaluation loss {:.4}  {}", record.step, record.loss, metrics.join("  "));
        if self.bar.is_hidden() { println!("{line}") } else { self.bar.println(line) }
    }
}

/// A number with four digits behind the point.
pub(crate) fn short(value: &serde_json::Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), |it| format!("{it:.4}"))
}

/// Bytes that the process has held at most, where the system tells.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|it| it.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
