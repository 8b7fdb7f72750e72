//! One process, one measurement: the worker that `cargo xtask bench` starts.
//!
//! It loads a model from a folder and says `loaded SECONDS TRAINABLE`. For every line that it then reads it does one
//! step and says `step SECONDS VALUE`. Where the line is `count` and not `step`, it says before that what the step launched
//! on a card, `launches COUNT NAME; COUNT NAME`. When its input ends it says `peak BYTES CARD_BYTES` and leaves. Whoever writes
//! the lines decides whose turn it is, so that two programs can be measured step by step in turn, and the memory of each is
//! the memory of a process that did nothing else.

// The worker talks to its caller through standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod media;
mod plain;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use burn::module::{Lora, Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use peft::core::files::checkpoint::{BaseDtype, FloatType, Placement, model_tensors, write_tensors};
use peft::core::files::safetensors::Stored;
use peft::core::files::shards::{ShardSize, ShardWriter};
use peft::core::launches::LaunchCounter;
use peft::core::ops::plain as composed;
use peft::core::quant::{QuantConfig, QuantFormat};
use peft::core::{Adaptable, DEFAULT_ADAPTER, ModelSpec, PeftError, PeftModel, Result, nn};
use peft::lora::LoraConfig;
use peft::models::auto::{
    self, AutoCausalLm, AutoDenoiser, AutoImageClassifier, AutoSemanticSegmenter, AutoSequenceClassifier,
    AutoSpeechSeq2Seq, ClassifierOptions,
};
use peft::models::common::config::RawConfig;
use peft::models::text::decoder::gpt2::Gpt2LmHeadModel;
use peft::models::text::encoder::bert::BertForSequenceClassification;
use peft::models::{CausalLm, ModelInput, SequenceClassifier};
use peft::tasks::data::labels::{Label, LabelKind, LabelSet};
use peft::tasks::data::{Padding, Sample};
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::sequence_classification::SequenceClassification;
use peft::tasks::tasks::task::{Task, scalar};
use peft::tasks::train::{Observer, StepDone, TrainConfig, Trainer};

use crate::media::Media;
use crate::plain::{PlainBert, PlainGpt2, PlainLlama};

#[derive(Debug, Parser)]
struct Args {
    /// Folder of a checkpoint.
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    task: TaskKind,
    #[arg(long)]
    method: Method,
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Every linear layer, not only the attention's as the method's defaults have it.
    #[arg(long)]
    all_linear: bool,
    #[arg(long)]
    dora: bool,
    /// Products with weights in bf16.
    #[arg(long)]
    bf16: bool,
    /// Keep the linear layers of the base in few bits: nf4, fp4 or int8. Scales of blocks are quantised, too.
    #[arg(long)]
    quantize: Option<QuantFormat>,
    /// Round what enters a layer in int8, too.
    #[arg(long)]
    llm_int8: bool,
    #[arg(long)]
    gradient_checkpointing: bool,
    /// What `synthesise` writes.
    #[arg(long, default_value = "float32", value_parser = float_type)]
    float: FloatType,
    /// Computes with the numbers of the file, where it lies.
    #[arg(long)]
    mapped: bool,
    /// How many adapters share the base in `adapters`.
    #[arg(long, default_value_t = 1)]
    adapters: usize,
    #[arg(long)]
    batch: usize,
    #[arg(long)]
    seq: usize,
    /// Rows and columns of a picture or of latents, frames of a recording.
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// Ends of paths that are adapted, if not the method's defaults.
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Modules that are trained whole beside the adapters.
    #[arg(long, value_delimiter = ',')]
    modules_to_save: Vec<String>,
    #[arg(long, default_value = "flex")]
    device: String,
    /// Without the kernels for cards: every operation composed of Burn's own.
    #[arg(long)]
    composed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskKind {
    CausalLm,
    SeqCls,
    ImageCls,
    SemanticSeg,
    SpeechToText,
    Unet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Writes random weights beside the folder's `config.json`; measures nothing.
    Synthesise,
    /// Training steps of LoRA or DoRA by our trainer.
    Lora,
    /// Forward passes; each takes the next of several adapters that share a base.
    Adapters,
    /// Training steps of Burn's built-in LoRA on a model of `burn::nn` layers.
    BurnLora,
    /// Training steps of all parameters of our model.
    Full,
}

fn float_type(name: &str) -> std::result::Result<FloatType, String> {
    match name {
        "float32" => Ok(FloatType::F32),
        "bfloat16" => Ok(FloatType::BF16),
        other => Err(format!("`{other}` is neither float32 nor bfloat16")),
    }
}

/// AdamW's rate; of no consequence for the time, but losses should not blow up.
const LEARNING_RATE: f64 = 2e-4;

fn main() -> ExitCode {
    // `cargo bench` starts every bench with this word. There is nothing to measure without a caller.
    if std::env::args().any(|it| it == "--bench") {
        println!("start it by `cargo xtask bench`");
        return ExitCode::SUCCESS;
    }
    // As the command does, so that a step costs here what it costs a user.
    peft::memory::keep_pages();
    let args = Args::parse();
    match if args.composed { composed::only(|| run(&args)) } else { run(&args) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let device = peft::device::device(&args.device)?;
    if args.method == Method::Synthesise {
        return synthesise(args, &device);
    }
    let started = Instant::now();
    let quantize = args.quantize.map(|it| QuantConfig::new(it).double_quant(it != QuantFormat::Int8));
    let dtype = if args.mapped { BaseDtype::Auto } else { BaseDtype::default() };
    let place = Placement::on(&device).with_dtype(dtype).with_quantization(quantize);
    let place = place.with_llm_int8_threshold(args.llm_int8.then_some(6.0));
    match args.task {
        TaskKind::CausalLm => {
            let (model, _) = auto::load_causal_lm(&args.folder, &place)?;
            let bench = Bench { args, device, load: started.elapsed().as_secs_f64() };
            let task = bench.language_modelling()?;
            match args.method {
                Method::Adapters => bench.infer(model, |model, input| {
                    let logits = CausalLm::logits(model, input, None);
                    let [batch, seq, vocab] = logits.dims();
                    logits.reshape([batch * seq, vocab])
                }),
                Method::BurnLora => match model.downcast::<Gpt2LmHeadModel>().map_err(AutoCausalLm::downcast) {
                    Ok(it) => bench.burn_lora(PlainGpt2::new(it, &bench.config()?), &task),
                    Err(Ok(it)) => bench.burn_lora(PlainLlama::new(it, &bench.config()?), &task),
                    Err(Err(_)) => {
                        Err(PeftError::unsupported("Burn's LoRA on this model", "GPT-2 and LLaMA are written out"))
                    }
                },
                Method::Full => bench.full(model, &task),
                _ => bench.lora(model, &task),
            }
        }
        TaskKind::SeqCls => {
            let (model, _) = auto::load_sequence_classifier(&args.folder, &place, &ClassifierOptions::default())?;
            let bench = Bench { args, device, load: started.elapsed().as_secs_f64() };
            let task = bench.classification(model.num_labels())?;
            match args.method {
                Method::Adapters => bench.infer(model, SequenceClassifier::logits),
                Method::BurnLora => match model.downcast::<BertForSequenceClassification>() {
                    Ok(it) => bench.burn_lora(PlainBert::new(it, &bench.config()?), &task),
                    Err(_) => Err(PeftError::unsupported("Burn's LoRA on this classifier", "only BERT is written out")),
                },
                Method::Full => bench.full(model, &task),
                _ => bench.lora(model, &task),
            }
        }
        TaskKind::ImageCls => {
            let (model, _) = auto::load_image_classifier(&args.folder, &place, &ClassifierOptions::default())?;
            Bench { args, device, load: started.elapsed().as_secs_f64() }.media(model, media::image_loss)
        }
        TaskKind::SemanticSeg => {
            let (model, _) = auto::load_semantic_segmenter(&args.folder, &place, &ClassifierOptions::default())?;
            Bench { args, device, load: started.elapsed().as_secs_f64() }.media(model, media::pixel_loss)
        }
        TaskKind::SpeechToText => {
            let (model, _) = auto::load_speech_seq2seq(&args.folder, &place)?;
            Bench { args, device, load: started.elapsed().as_secs_f64() }.media(model, media::speech_loss)
        }
        TaskKind::Unet => {
            let (model, _) = auto::load_denoiser(&args.folder, &place)?;
            Bench { args, device, load: started.elapsed().as_secs_f64() }.media(model, media::noise_loss)
        }
    }
}

/// Random weights under the names that checkpoints use, so that every contender loads the same model.
fn synthesise(args: &Args, device: &Device) -> Result<()> {
    let raw = RawConfig::read(&args.folder)?;
    device.seed(0);
    let tensors = match args.task {
        TaskKind::CausalLm => {
            return synthesise_decoder(args, &AutoCausalLm::from_config(&raw, device)?.spec(), device);
        }
        TaskKind::SeqCls => model_tensors(&AutoSequenceClassifier::from_config(&raw, device)?),
        TaskKind::ImageCls => model_tensors(&AutoImageClassifier::from_config(&raw, device)?),
        TaskKind::SemanticSeg => model_tensors(&AutoSemanticSegmenter::from_config(&raw, device)?),
        TaskKind::SpeechToText => model_tensors(&AutoSpeechSeq2Seq::from_config(&raw, device)?),
        TaskKind::Unet => model_tensors(&AutoDenoiser::from_config(&raw, device)?),
    };
    let name = if args.task == TaskKind::Unet { "diffusion_pytorch_model.safetensors" } else { "model.safetensors" };
    write_tensors(args.folder.join(name), tensors, args.float)
}

/// How many random numbers there are before they repeat: drawing all of a large model takes minutes. A prime, so that no
/// two rows of a matrix are the same.
const PERIOD: usize = 1_048_583;

/// The same tensor by tensor, so that a model may be larger than memory: norms of 1, biases of 0, the rest small.
fn synthesise_decoder(args: &Args, spec: &ModelSpec, device: &Device) -> Result<()> {
    let entries = spec.iter().map(|it| (it.path(), it.shape_on_disk())).collect();
    let mut writer = ShardWriter::new(&args.folder, entries, args.float, ShardSize(5_000_000_000));
    let drawn = Tensor::<1>::random([PERIOD], Distribution::Normal(0.0, 0.02), device).into_data();
    let drawn = drawn.try_into_vec::<f32>().map_err(|it| PeftError::Invalid(format!("{it:?}")))?;
    let mut drawn = drawn.iter().copied().cycle();
    for param in spec.iter() {
        let (key, shape) = (param.path(), param.shape_on_disk());
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = match shape.as_slice() {
            [_] if key.ends_with(".weight") => vec![1.0; count],
            [_] => vec![0.0; count],
            _ => drawn.by_ref().take(count).collect(),
        };
        writer.write(Stored { key, data: TensorData::new(values, shape) })?;
    }
    writer.finish()?;
    Ok(())
}

/// What all measurements of this process share.
struct Bench<'a> {
    args: &'a Args,
    device: Device,
    /// Seconds that loading the base took.
    load: f64,
}

impl Bench<'_> {
    fn config(&self) -> Result<RawConfig> {
        RawConfig::read(&self.args.folder)
    }

    /// Rows of token ids: the same numbers in every contender, spread over the vocabulary.
    fn rows(&self) -> Result<Vec<Vec<u32>>> {
        let vocab = self.config()?.json.get("vocab_size").and_then(serde_json::Value::as_u64);
        let vocab = vocab.ok_or_else(|| PeftError::config("vocab_size", "is missing"))?;
        let (batch, seq) = (self.args.batch as u64, self.args.seq as u64);
        let id = |at: u64| (at * 7919 % vocab) as u32;
        Ok((0..batch).map(|row| (row * seq..(row + 1) * seq).map(id).collect()).collect())
    }

    fn language_modelling(&self) -> Result<LanguageModelling> {
        LanguageModelling::padded(self.rows()?.into_iter().map(Sample::language).collect(), 0)
    }

    fn classification(&self, classes: usize) -> Result<SequenceClassification> {
        let rows = self.rows()?;
        let labels = (0..rows.len()).map(|row| Label::Class(row % classes)).collect();
        let samples = rows.into_iter().map(|input_ids| Sample { input_ids, ..Sample::default() }).collect();
        let set = LabelSet::new(LabelKind::Single, (0..classes).map(|it| it.to_string()).collect());
        SequenceClassification::new(samples, labels, set, Padding::right(0))
    }

    fn lora_config(&self) -> LoraConfig {
        let mut config = LoraConfig::new(self.args.rank, 2.0 * self.args.rank as f64);
        config.use_dora = self.args.dora;
        config.task_type = match self.args.task {
            TaskKind::CausalLm => Some("CAUSAL_LM".to_owned()),
            TaskKind::SeqCls => Some("SEQ_CLS".to_owned()),
            _ => None,
        };
        config.modules_to_save = Some(self.args.modules_to_save.clone()).filter(|it| !it.is_empty());
        match (self.args.all_linear, self.args.targets.as_slice()) {
            (true, _) => config.all_linear(),
            (false, []) => config,
            (false, targets) => config.targets(targets.to_vec()),
        }
    }

    fn peft<M: Module + Adaptable>(&self, model: M) -> PeftModel<M> {
        PeftModel::new(model)
    }

    fn loaded<M: Module>(&self, model: &M) -> Turns {
        println!("loaded {} {}", self.load, trainable(model));
        let mut turns = Turns { begun: Instant::now(), device: self.device.clone(), counter: None };
        turns.wait();
        turns
    }

    /// The trainer that users run, with its clipping and its checks.
    fn lora<M: Module + Adaptable, T: Task<M>>(&self, model: M, task: &T) -> Result<()> {
        let mut peft = self.peft(model);
        peft.add_adapter_as(DEFAULT_ADAPTER, self.lora_config(), 0)?;
        let mut config = TrainConfig {
            learning_rate: LEARNING_RATE,
            batch_size: self.args.batch,
            bf16: self.args.bf16,
            gradient_checkpointing: self.args.gradient_checkpointing,
            // Without an end: the caller stops when it has seen enough.
            max_steps: Some(1_000_000),
            ..TrainConfig::default()
        };
        config.schedule.lr_scheduler_type = "constant".parse()?;
        let mut turns = self.loaded(peft.model());
        Trainer::new(&mut peft, task, config).observer(&mut turns).run()?;
        Ok(())
    }

    fn media<M: Module + Adaptable>(&self, model: M, loss: media::Loss<M>) -> Result<()> {
        let mels = self.config()?.json.get("num_mel_bins").and_then(serde_json::Value::as_u64).unwrap_or(80) as usize;
        let task = Media { batch: self.args.batch, seq: self.args.seq, size: self.args.size, mels, loss };
        match self.args.method {
            Method::Lora => self.lora(model, &task),
            Method::Full => self.full(model, &task),
            _ => Err(PeftError::unsupported("this measurement", "pictures and sound are trained on only")),
        }
    }

    fn infer<M: Module + Adaptable>(&self, model: M, logits: impl Fn(&M, &ModelInput) -> Tensor<2>) -> Result<()> {
        let mut peft = self.peft(model);
        let names: Vec<String> = (0..self.args.adapters).map(|it| format!("adapter{it}")).collect();
        for (seed, name) in names.iter().enumerate() {
            peft.add_adapter_as(name, self.lora_config(), seed as u64)?;
        }
        let ids: Vec<i64> = self.rows()?.into_iter().flatten().map(i64::from).collect();
        let ids = TensorData::new(ids, [self.args.batch, self.args.seq]);
        let input = ModelInput::ids(Tensor::<2, Int>::from_data(ids, &self.device));
        let mut turns = self.loaded(peft.model());
        for name in names.iter().cycle() {
            peft.set_active(&[name])?;
            let model = nn::eval(peft.model());
            let logits = logits(&model, &input);
            let [rows, classes] = logits.dims();
            let last = logits.slice([rows - 1..rows, classes - 1..classes]).reshape([1]);
            turns.done(scalar(&last));
        }
        Ok(())
    }

    /// Burn's LoRA as its documentation has it: `apply_lora` and a plain loop.
    fn burn_lora<M: Module, T: Task<M>>(&self, model: M, task: &T) -> Result<()> {
        let targets: &[&str] = match (self.args.all_linear, self.args.task) {
            (true, _) => &["c_attn", "c_proj", "c_fc", "query", "key", "value", "dense", "_proj"],
            (false, _) => &["c_attn", "q_proj", "v_proj", "query", "value"],
        };
        // What the reference calls `all-linear` leaves the head out, but not the pooler of a classifier.
        let targets: Vec<String> = targets.iter().map(|it| format!("{it}.weight")).collect();
        let lora = Lora::new(self.args.rank, 2.0 * self.args.rank as f64)
            .set_param_group(ParamGroup::from_any_predicates(targets));
        // `train` is what lifts a loaded model onto the device with autodiff.
        let model = model.train().apply_lora(lora);
        let model = model.unfreeze_group(ParamGroup::from_predicate("classifier"));
        self.plain_loop(model, task)
    }

    fn full<M: Module, T: Task<M>>(&self, model: M, task: &T) -> Result<()> {
        self.plain_loop(model.unfreeze().train(), task)
    }

    fn plain_loop<M: Module, T: Task<M>>(&self, mut model: M, task: &T) -> Result<()> {
        let config = TrainConfig::default();
        let mut optimizer = AdamWConfig::new()
            .with_epsilon(config.adam_epsilon as f32)
            .with_weight_decay(config.weight_decay as f32)
            .init();
        let items: Vec<usize> = (0..self.args.batch).collect();
        let mut turns = self.loaded(&model);
        loop {
            let loss = task.loss_sum(&model, &items, &self.device)?.div_scalar(task.targets(0, &items) as f64);
            let value = scalar(&loss);
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(LEARNING_RATE, model, gradients);
            turns.done(value);
        }
    }
}

/// Elements of the parameters that get gradients.
fn trainable<M: Module>(model: &M) -> usize {
    struct Count(usize);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.base();
            if value.is_require_grad() {
                self.0 += value.shape().num_elements();
            }
        }
    }
    let mut count = Count(0);
    model.visit(&mut count);
    count.0
}

/// Steps only when the caller says so.
struct Turns {
    begun: Instant,
    device: Device,
    counter: Option<LaunchCounter>,
}

impl Turns {
    fn wait(&mut self) {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        match line.trim() {
            "step" if read.is_ok() => {}
            "count" => self.counter = Some(failing(LaunchCounter::start(&self.device))),
            _ => {
                // What a pool holds at the end: it keeps what it needed at its peak. 0 where there is none.
                let card = self.device.memory_pool_usage().map_or(0, |it| it.bytes_reserved);
                println!("peak {} {card}", peak_memory().unwrap_or(0));
                std::process::exit(0);
            }
        }
        self.begun = Instant::now();
    }

    fn done(&mut self, value: f64) {
        if let Some(counter) = self.counter.take() {
            let launches = failing(counter.finish());
            let launches: Vec<_> = launches.iter().map(|(name, count)| format!("{count} {name}")).collect();
            println!("launches {}", launches.join("; "));
        }
        // A card may still work at the end of the step when its loss is there.
        if let Err(error) = self.device.sync() {
            eprintln!("error: the device failed: {error}");
            std::process::exit(1);
        }
        println!("step {} {value}", self.begun.elapsed().as_secs_f64());
        self.wait();
    }
}

impl Observer for Turns {
    fn step(&mut self, done: &StepDone<'_>, _total: usize) {
        self.done(done.loss());
    }
}

/// The worker has no one to give an error to but who reads its output.
fn failing<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(1)
    })
}

/// Bytes that the process has held at most, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|it| it.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
