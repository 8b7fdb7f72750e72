//! The `peft` command with a method, a model and a task that the workspace does not know.

use std::process::ExitCode;

use downstream::ranking::PairRankingKind;
use downstream::road::RoadConfig;
use peft::Registry;

fn main() -> ExitCode {
    let registry = Registry::builtin()
        .with_method::<RoadConfig>()
        .with_architecture(downstream::albert::architecture())
        .with_task(PairRankingKind);
    peft::cli::run(registry)
}
