//! Arguments that several commands share.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use peft_core::files::checkpoint::{BaseDtype, Placement};
use peft_core::quant::{QuantConfig, QuantFormat};
use peft_core::{PeftError, Result};
use peft_tasks::data::columns::Columns;
use peft_tasks::data::sample::Truncation;

use crate::device::best_device;
#[cfg(feature = "lora")]
use crate::device::cpu_device;
use crate::load::adapters::AdapterSource;
use crate::load::configure::{tasks, virtual_positions};
use crate::load::names::adapter_folder;

/// Which columns of the data file are what.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ColumnArgs {
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
    /// Column of what a conversation starts with, beside its turns [default: system]
    #[arg(long, value_name = "NAME")]
    system_column: Option<String>,
    /// Column of the pairs of question and answer before a prompt [default: history]
    #[arg(long, value_name = "NAME")]
    history_column: Option<String>,
    /// Column of the tools of a conversation [default: tools]
    #[arg(long, value_name = "NAME")]
    tools_column: Option<String>,
    /// A column that only a task of this program knows, by the name of its part.
    #[arg(long, value_name = "PART=NAME")]
    column: Vec<String>,
}

/// What is made of the texts of a row.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct RowArgs {
    /// What is done with rows that are longer than --max-length: right cuts their end, left their start, which keeps
    /// answers, and refuse is an error [default: right]
    #[arg(long, value_name = "left, right, refuse")]
    pub(super) truncation: Option<Truncation>,
    /// The role whose turns are learned, if it is neither `assistant` nor `gpt`.
    #[arg(long, value_name = "ROLE")]
    pub(super) assistant_role: Option<String>,
    /// A prompt as a Jinja template of the columns, such as '{{ instruction }}\n\n{{ input }}': this one, a blank line
    /// between instruction and input where there is an input, is what Alpaca's columns become without it.
    #[arg(long, value_name = "TEMPLATE")]
    pub(super) prompt_template: Option<String>,
}

impl ColumnArgs {
    pub(super) fn columns(&self) -> Result<Columns> {
        self.over(Columns::default())
    }

    /// What was given, and what a run file says of the rest.
    pub(super) fn over(&self, columns: Columns) -> Result<Columns> {
        let mut more = columns.more;
        for part in &self.column {
            let (part, name) = part.split_once('=').ok_or_else(|| {
                PeftError::config("--column", format!("is `{part}`, expected a part and its column, PART=NAME"))
            })?;
            more.insert(part.to_owned(), name.to_owned());
        }
        Ok(Columns {
            text: self.text_column.clone().or(columns.text),
            text_pair: self.text_pair_column.clone().or(columns.text_pair),
            prompt: self.prompt_column.clone().or(columns.prompt),
            completion: self.completion_column.clone().or(columns.completion),
            messages: self.messages_column.clone().or(columns.messages),
            label: self.label_column.clone().or(columns.label),
            system: self.system_column.clone().or(columns.system),
            history: self.history_column.clone().or(columns.history),
            tools: self.tools_column.clone().or(columns.tools),
            context: columns.context,
            more,
        })
    }
}

/// Where the base goes.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PlaceArgs {
    /// auto, flex, cuda, cuda:1, wgpu, tch, …: `peft devices` lists those of this machine [default: auto]
    #[arg(long)]
    pub(super) device: Option<String>,
    /// What the frozen matrices of the base are kept in: float32; auto, as they are in its file, so that bf16 and f16 take
    /// half the memory and give the same numbers; bfloat16 or float16, rounded to it, which is another base
    /// [default: float32]
    #[arg(long)]
    pub(super) dtype: Option<BaseDtype>,
    #[command(flatten)]
    quant: QuantArgs,
    /// Round what enters a layer in int8 to int8, too, but for columns with a number of this size: LLM.int8, with 6.0 by its
    /// authors.
    #[arg(long, value_name = "SIZE")]
    pub(super) llm_int8_threshold: Option<f32>,
}

impl PlaceArgs {
    pub(super) fn placement(&self) -> Result<Placement> {
        let place = Placement::on(&best_device(self.device.as_deref())?);
        let place = place.with_dtype(self.dtype.unwrap_or_default()).with_quantization(self.quantization());
        Ok(place.with_llm_int8_threshold(self.llm_int8_threshold))
    }

    /// In how few bits the base is to be kept.
    pub(super) fn quantization(&self) -> Option<QuantConfig> {
        self.quant.config()
    }
}

/// Who keeps the base.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ShardArgs {
    /// Each of several processes keeps a part of every matrix of the base and reads the rest when it is needed: the same
    /// numbers, and a fraction of the memory. Of the CPU backend.
    #[arg(long)]
    pub(super) shard_base: bool,
}

/// In how few bits a base is kept.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct QuantArgs {
    /// Keep the linear layers of the base in 4 or 8 bits: nf4, fp4 or int8, as `BitsAndBytesConfig` of transformers does.
    /// A checkpoint that bitsandbytes, GPTQ or AWQ wrote is read as it is, without this.
    #[arg(long, value_name = "FORMAT")]
    quantize: Option<QuantFormat>,
    /// Quantise the scales of nf4 and fp4, too, which saves 0.37 bits a number.
    #[arg(long, requires = "quantize")]
    double_quant: bool,
    /// Layers that are not quantised: names with commas [default: the heads]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "quantize")]
    skip_modules: Option<Vec<String>>,
}

impl QuantArgs {
    pub(super) fn config(&self) -> Option<QuantConfig> {
        let config = QuantConfig::new(self.quantize?).double_quant(self.double_quant);
        Some(QuantConfig { skip_modules: self.skip_modules.clone(), ..config })
    }
}

/// In which numbers a base is kept that is only read.
#[cfg(feature = "lora")]
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CpuArgs {
    /// What the matrices of the base are kept in: auto, as they are in its file, which changes no number and takes half the
    /// memory for bf16 and f16; float32; bfloat16 or float16, rounded to it [default: auto]
    #[arg(long)]
    dtype: Option<BaseDtype>,
}

#[cfg(feature = "lora")]
impl CpuArgs {
    pub(super) fn placement(&self) -> Result<Placement> {
        Ok(Placement::on(&cpu_device()?).with_dtype(self.dtype.unwrap_or(BaseDtype::Auto)))
    }
}

/// Positions of the model that the prompts of adapters take up.
pub(super) fn reserved_positions(adapters: &[AdapterSource]) -> Result<usize> {
    let of = |it: &AdapterSource| Ok(virtual_positions(&peft_core::read_config(&it.folder)?));
    adapters.iter().map(of).sum()
}

/// Between how many tasks the prompts of adapters tell.
pub(super) fn most_tasks(adapters: &[AdapterSource]) -> Result<usize> {
    let of = |it: &AdapterSource| Ok(tasks(&peft_core::read_config(&it.folder)?));
    adapters.iter().map(of).try_fold(1, |most, it: Result<usize>| Ok(most.max(it?)))
}

/// `DIR`, `ID`, `DIR=0.5` or `ID=0.5`: an adapter and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Adapter {
    name: String,
    pub(super) weight: f64,
}

impl Adapter {
    /// A folder, or an adapter of the hub.
    pub(super) fn folder(&self) -> Result<PathBuf> {
        adapter_folder(&self.name)
    }
}

impl FromStr for Adapter {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // A folder may have the sign in its name.
        let cut = text.rsplit_once('=').filter(|_| !Path::new(text).is_dir());
        let Some((name, weight)) = cut else { return Ok(Self { name: text.to_owned(), weight: 1.0 }) };
        match weight.parse::<f64>() {
            Ok(weight) if weight.is_finite() && !name.is_empty() => Ok(Self { name: name.to_owned(), weight }),
            _ => Err(format!("`{weight}` is no number; expected a folder or DIR=0.5")),
        }
    }
}

/// Folders, or adapters of the hub, and how strongly each acts.
pub(super) fn adapter_sources(adapters: &[Adapter]) -> Result<Vec<AdapterSource>> {
    adapters.iter().map(|it| Ok(AdapterSource { folder: it.folder()?, strength: it.weight })).collect()
}

/// Bytes that the process has held at most, where the system tells.
pub(super) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|it| it.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
