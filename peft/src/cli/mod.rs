//! The `peft` command: what the user types and sees. The work is in the libraries.
//!
//! [`run`] is a whole command line. A program that registers a method, an architecture or a task of its own has them in
//! every subcommand:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     peft::cli::run(peft::Registry::builtin()) // .with_method::<…>().with_architecture(…).with_task(…)
//! }
//! ```

mod bar;
#[cfg(feature = "image")]
mod captions;
#[cfg(feature = "lora")]
mod combine;
mod common;
#[cfg(feature = "lora")]
mod convert;
#[cfg(feature = "lora")]
mod demo;
mod devices;
mod dreambooth;
mod eval;
#[cfg(feature = "lora")]
mod export;
mod faults;
mod flags;
mod forward;
mod generate;
mod generation;
mod inspect;
mod merge;
mod methods;
mod parallel;
#[cfg(feature = "image")]
mod pictures;
#[cfg(feature = "audio")]
mod speech;
mod stop;
mod terminal;
mod train;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use peft_core::{PeftError, Result};
use tracing_subscriber::EnvFilter;

use crate::run::registry::Registry;

/// Fine-tune large models by training a few parameters. Reads Hugging Face checkpoints, writes adapters that PEFT reads.
#[derive(Debug, Parser)]
#[command(name = "peft", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fine-tune a small built-in model, save the adapter, load it again: see it work in a minute.
    #[cfg(feature = "lora")]
    Demo(demo::Args),
    /// Train an adapter.
    Train(Box<train::Args>),
    /// Measure a model, with or without adapters, on a data file.
    Eval(Box<eval::Args>),
    /// Continue a prompt, write a recording down, describe a picture, or make one, with or without adapters.
    Generate(Box<generation::Args>),
    /// Fold adapters into the weights and write a plain checkpoint.
    Merge(merge::Args),
    /// Say what an adapter folder holds and who can load it.
    Inspect(inspect::Args),
    /// Make one LoRA adapter of several, each with a weight.
    #[cfg(feature = "lora")]
    Combine(combine::Args),
    /// Turn an adapter of any method that changes weights into LoRA, and say what is lost.
    #[cfg(feature = "lora")]
    Convert(convert::Args),
    /// Write a LoRA adapter in the form of another program.
    #[cfg(feature = "lora")]
    Export(export::Args),
    /// List the methods of this build: papers, parameters, defaults.
    Methods(methods::Args),
    /// List the devices that this build finds on this machine.
    Devices(devices::Args),
    /// Compute one forward pass from files to files, to compare with Python.
    Forward(forward::Args),
}

/// Runs the command line of this process, with all that `registry` knows.
pub fn run(registry: Registry) -> ExitCode {
    crate::memory::keep_pages();
    let matches = match command_line(&registry).try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let process = match parallel::Process::join(matches!(cli.command, Command::Train(_) | Command::Eval(_))) {
        Ok(process) => process,
        Err(error) => return terminal::failed(&error),
    };
    if !process.is_first() {
        terminal::be_quiet(process.name());
    }
    let filter = EnvFilter::try_from_env("PEFT_LOG").unwrap_or_else(|_| EnvFilter::new("warn,cubecl=error,wgpu=error"));
    // A program that has a subscriber of its own keeps it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .without_time()
        // Colours are for terminals.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(|| terminal::Log)
        .try_init();
    // Before anything is read or downloaded.
    let device = matches.subcommand().and_then(|(_, it)| it.try_get_one::<String>("device").ok().flatten());
    let work =
        || device.map_or(Ok(()), |it| crate::device::device(it).map(drop)).and_then(|()| cli.command.run(&registry));
    let code = match (process.within(|| faults::as_error(work)), matches.subcommand()) {
        (Ok(code), _) => return code,
        (Err(error), Some((_, given))) => terminal::failed(&flags::with_flags(error, given)),
        (Err(error), None) => terminal::failed(&error),
    };
    process.fail();
    code
}

/// Help, the version, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> ExitCode {
    match error.print() {
        Ok(()) => ExitCode::from(error.exit_code() as u8),
        // Help is printed on standard output; where the rest cannot be read, its exit code says enough.
        Err(source) if !error.use_stderr() => terminal::failed(&PeftError::io("write", terminal::STDOUT)(source)),
        Err(_) => ExitCode::from(error.exit_code() as u8),
    }
}

/// The command line, whose help names the tasks of this program.
fn command_line(registry: &Registry) -> clap::Command {
    let names = registry.tasks.names().join(", ");
    // `--lr -1` is a number that is refused by its name, and no unknown flag.
    let takes_numbers = |arg: clap::Arg| {
        let takes_value = arg.get_action().takes_values();
        if takes_value { arg.allow_negative_numbers(true) } else { arg }
    };
    let commands = Cli::command().mut_subcommands(|command| command.mut_args(takes_numbers));
    ["train", "eval", "generate", "merge", "forward"].into_iter().fold(commands, |command, name| {
        command.mut_subcommand(name, |it| {
            it.mut_arg("task", |arg| {
                let more = arg.get_help().map(ToString::to_string).unwrap_or_default();
                arg.help(format!("{names} {more}").trim_end().to_owned())
            })
        })
    })
}

impl Command {
    fn run(self, registry: &Registry) -> Result<ExitCode> {
        let done = match self {
            #[cfg(feature = "lora")]
            Self::Demo(args) => demo::run(&args, registry),
            Self::Train(args) => return train::run(&args, registry),
            Self::Eval(args) => eval::run(&args, registry),
            Self::Generate(args) => generate::run(&args, registry),
            Self::Merge(args) => merge::run(&args, registry),
            Self::Inspect(args) => inspect::run(&args, registry),
            #[cfg(feature = "lora")]
            Self::Combine(args) => combine::run(&args, registry),
            #[cfg(feature = "lora")]
            Self::Convert(args) => convert::run(&args, registry),
            #[cfg(feature = "lora")]
            Self::Export(args) => export::run(&args, registry),
            Self::Methods(args) => methods::run(&args, registry),
            Self::Devices(args) => devices::run(&args),
            Self::Forward(args) => forward::run(&args, registry),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}
