//! The `peft` command: what the user types and sees. The work is in the libraries.

mod combine;
mod common;
mod convert;
mod demo;
mod eval;
mod export;
mod forward;
mod generate;
mod inspect;
mod merge;
mod methods;
mod train;

use clap::{Parser, Subcommand};
use peft::core::Result;

/// Fine-tune large models by training a few parameters. Reads Hugging Face checkpoints, writes adapters that PEFT reads.
#[derive(Debug, Parser)]
#[command(name = "peft", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fine-tune a small built-in model, save the adapter, load it again: see it work in a minute.
    Demo(demo::Args),
    /// Train an adapter.
    Train(Box<train::Args>),
    /// Measure a model, with or without adapters, on a data file.
    Eval(eval::Args),
    /// Continue a prompt, with or without adapters.
    Generate(generate::Args),
    /// Fold adapters into the weights and write a plain checkpoint.
    Merge(merge::Args),
    /// Say what an adapter folder holds and who can load it.
    Inspect(inspect::Args),
    /// Make one LoRA adapter of several, each with a weight.
    Combine(combine::Args),
    /// Turn an adapter of any method that changes weights into LoRA, and say what is lost.
    Convert(convert::Args),
    /// Write a LoRA adapter in the form of another program.
    Export(export::Args),
    /// List the methods of this build: papers, parameters, defaults.
    Methods(methods::Args),
    /// Compute one forward pass from files to files, to compare with Python.
    Forward(forward::Args),
}

impl Cli {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Demo(args) => demo::run(&args),
            Command::Train(args) => train::run(&args),
            Command::Eval(args) => eval::run(&args),
            Command::Generate(args) => generate::run(&args),
            Command::Merge(args) => merge::run(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Combine(args) => combine::run(&args),
            Command::Convert(args) => convert::run(&args),
            Command::Export(args) => export::run(&args),
            Command::Methods(args) => methods::run(&args),
            Command::Forward(args) => forward::run(&args),
        }
    }
}
