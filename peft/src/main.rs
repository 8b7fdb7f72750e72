//! The `peft` command with all that this build has. A program of one's own does the same with a larger registry.

use std::process::ExitCode;

fn main() -> ExitCode {
    peft::cli::run(peft::Registry::builtin())
}
