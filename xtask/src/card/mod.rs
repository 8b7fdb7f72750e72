//! `cargo xtask card`: all that a visit of some minutes to a machine with a card needs, in one folder that can be
//! carried there; and the visit itself.
//!
//! The machine needs neither Rust nor a network. The folder holds the bench's worker, this program, the scripts of the
//! comparison with torch, and `run.sh`, which hands over to this program (`xtask card visit`). What it measures is
//! written after every measurement, and nothing that fails ends the visit.

mod flops;
mod options;
mod pack;
mod plan;
mod table;
mod torch;
mod visit;

use options::{PACK_USAGE, Pack, VISIT_USAGE, Visit};

pub(crate) fn run(words: &[String]) -> Result<(), String> {
    let wants_help = words.iter().any(|it| it == "--help" || it == "-h");
    match words.split_first() {
        Some((word, _)) if word == "visit" && wants_help => println!("{VISIT_USAGE}"),
        Some((word, rest)) if word == "visit" => {
            visit::run(&Visit::parse(rest).map_err(|reason| format!("{reason}\n\n{VISIT_USAGE}"))?)?;
        }
        _ if wants_help => println!("{PACK_USAGE}"),
        _ => pack::run(&Pack::parse(words).map_err(|reason| format!("{reason}\n\n{PACK_USAGE}"))?)?,
    }
    Ok(())
}
