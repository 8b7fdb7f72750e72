//! What `peft generate` is asked, and what is said of generation, whatever is read and written.

use std::path::{Path, PathBuf};

use burn::module::Module;
use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result, WEIGHTS_FILE};
use peft_tasks::data::tokenizer::{TokenStream, Tokenizer};
use peft_tasks::generate::{GenerationConfig, GenerationPlan};

use super::common::{Adapter, PlaceArgs, adapter_sources};
#[cfg(feature = "image")]
use super::pictures::PictureArgs;
use super::terminal::part;
use crate::load::adapters::AdapterSource;
use crate::load::names::model_folder;
use crate::run::fit::blame_the_base;

/// Most tokens of a text, where nobody says how many.
pub(super) const MAX_NEW_TOKENS: usize = 128;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of the base model, or its id on the hub, `owner/name` or `owner/name@revision:folder`.
    #[arg(long, value_name = "DIR or ID")]
    model: String,
    /// Adapter folder or hub id; several are all active, in this order. `DIR=0.5` lets it act at half its strength.
    #[arg(long, value_name = "DIR or ID[=STRENGTH]")]
    adapter: Vec<Adapter>,
    /// What is written [default: what the adapter's `task_type` says, else the base's `architectures`; text-to-image for a
    /// folder of diffusers with `model_index.json`]
    #[arg(long)]
    pub(super) task: Option<String>,
    /// Text to continue, or the source of a model that writes a target for one, such as T5; or what a picture is to show. With
    /// --image a question, or how the caption begins.
    #[arg(long, required_unless_present_any = ["audio", "image"])]
    pub(super) prompt: Option<String>,
    /// Put the prompt into the model's chat template.
    #[arg(long)]
    pub(super) chat: bool,
    /// Picture to write about: PNG, JPEG, WebP, GIF, BMP or TIFF.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["audio", "chat", "task_id"])]
    pub(super) image: Option<PathBuf>,
    /// Recording to write down: WAV, FLAC, MP3 or OGG.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "chat", "task_id"])]
    pub(super) audio: Option<PathBuf>,
    /// Language of the recording, a name or a code such as `en` [default: heard]
    #[arg(long, value_name = "LANGUAGE", requires = "audio")]
    pub(super) language: Option<String>,
    /// Write in English what is said in the recording, whatever is spoken.
    #[arg(long, requires = "audio")]
    pub(super) translate: bool,
    /// Write when each part of the recording is said.
    #[arg(long, requires = "audio")]
    pub(super) timestamps: bool,
    /// Most tokens to generate [default: 128; for a recording as many as the model writes, for each window]
    #[arg(long)]
    pub(super) max_new_tokens: Option<usize>,
    /// Sample instead of taking the likeliest token.
    #[arg(long)]
    sample: bool,
    /// Above 1 bolder, below 1 tamer; implies --sample.
    #[arg(long)]
    temperature: Option<f64>,
    /// Sample among the likeliest so many; implies --sample.
    #[arg(long)]
    top_k: Option<usize>,
    /// Sample among the likeliest that have this probability together; implies --sample.
    #[arg(long)]
    top_p: Option<f64>,
    /// Above 1 makes tokens that occurred less likely.
    #[arg(long)]
    repetition_penalty: Option<f64>,
    /// Follow so many texts at once and take the best: beam search.
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// Above 0 favours long texts in beam search, below 0 short ones.
    #[arg(long, allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// End beam search when as many texts have ended as there are beams.
    #[arg(long)]
    early_stopping: bool,
    /// Number of the task, for a prompt that tells tasks apart.
    #[arg(long, value_name = "N")]
    pub(super) task_id: Option<i64>,
    /// What the drawn tokens, or the noise of a picture, depend on.
    #[arg(long, default_value_t = 42)]
    pub(super) seed: u64,
    #[cfg(feature = "image")]
    #[command(flatten)]
    pub(super) picture: PictureArgs,
    #[command(flatten)]
    place: PlaceArgs,
}

impl Args {
    /// Folder of the base, adapters, and where the base goes.
    pub(super) fn sources(&self) -> Result<(PathBuf, Vec<AdapterSource>, Placement)> {
        Ok((model_folder(&self.model)?, adapter_sources(&self.adapter)?, self.place.placement()?))
    }

    /// Puts what was asked for over the settings of the model.
    pub(super) fn fill(&self, config: &mut GenerationConfig) {
        let drawn = self.sample || self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some();
        config.max_new_tokens = self.max_new_tokens.or(config.max_new_tokens);
        config.do_sample = Some(drawn);
        config.temperature = self.temperature.or(config.temperature);
        config.top_k = self.top_k.or(config.top_k);
        config.top_p = self.top_p.or(config.top_p);
        config.repetition_penalty = self.repetition_penalty.or(config.repetition_penalty);
        config.num_beams = self.beams.or(config.num_beams);
        config.length_penalty = self.length_penalty.or(config.length_penalty);
        if self.early_stopping {
            config.early_stopping = Some(true.into());
        }
        config.seed = Some(self.seed);
    }
}

/// The tokens that end a text: those of the model's files, else the tokenizer's. Which they are is logged.
pub(super) fn end_of(plan: &mut GenerationPlan, tokenizer: &Tokenizer) {
    if plan.eos.is_empty() {
        plan.eos.extend(tokenizer.eos_id());
    }
    let names: Vec<String> =
        plan.eos.iter().map(|it| format!("{:?} ({it})", tokenizer.token(*it).unwrap_or_default())).collect();
    match names.is_empty() {
        true => tracing::warn!(
            "no file of the model names an end token, so a text ends at --max-new-tokens only: write `eos_token_id` into \
             its config.json"
        ),
        false => tracing::info!("a text ends with {}", names.join(" or ")),
    }
}

/// The error of a number that is none while a text is written, with the files that it may come from.
pub(super) fn blame_the_weights<M: Module>(
    error: PeftError,
    model: &M,
    base: &Path,
    adapters: &[AdapterSource],
) -> PeftError {
    let PeftError::NotFinite(reason) = error else { return error };
    let files = adapters.iter().map(|it| it.folder.join(WEIGHTS_FILE)).chain([base.to_path_buf()]);
    let names: Vec<String> = files.map(|it| it.display().to_string()).collect();
    let error = PeftError::NotFinite(format!("{reason}: look at {}", names.join(", ")));
    blame_the_base(error, model, base)
}

/// Prints what a token adds to the text.
pub(super) fn print(stream: &mut TokenStream<'_>, token: u32) -> Result<()> {
    match stream.push(token)? {
        Some(text) => part(text),
        None => Ok(()),
    }
}
