//! `cargo xtask parallel`: runs of several processes over MPI, held against a run of one; and what becomes of a run when one
//! of its processes dies or stands still.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::break_it::base;
use super::break_it::command::{self, Outcome, Peft, wait};
use super::cargo;

/// In what time the end of one process must be the end of all.
const SOON: Duration = Duration::from_secs(30);
/// On whatever cores there are, also in a container, where everybody is root.
const ANYWHERE: [&str; 2] = ["--allow-run-as-root", "--oversubscribe"];
/// Steps of a run that is to be cut: more than it comes to.
const LONG: usize = 100_000;

pub(crate) fn run() -> Result<(), String> {
    // A container may have it and forbid what it needs.
    let mut two = Command::new("mpirun");
    two.args(ANYWHERE).args(["-n", "2", "true"]);
    match two.output() {
        Err(_) => {
            println!("mpirun is not installed; left out");
            return Ok(());
        }
        Ok(output) if !output.status.success() => {
            println!("mpirun starts no two processes here; left out\n{}", String::from_utf8_lossy(&output.stderr));
            return Ok(());
        }
        Ok(_) => {}
    }
    let status = cargo(&["build", "--workspace", "--features", "peft/mpi", "--bin", "peft"]).status();
    if !status.map_err(|error| format!("no cargo: {error}"))?.success() {
        return Err("peft does not build with the feature `mpi`".to_owned());
    }
    let place = env::temp_dir().join(format!("peft-parallel-{}", std::process::id()));
    let outcome = all(&Peft::find(None)?, &place);
    // Nothing to keep, and nothing to do about what stays.
    let _ = fs::remove_dir_all(&place);
    outcome
}

fn all(peft: &Peft, place: &Path) -> Result<(), String> {
    base::prepare(peft, place)?;
    equal(peft, place)?;
    goes_on(peft, place)?;
    sharded(peft, place)?;
    refused(peft, place)?;
    falls(peft, place, "KILL", "signal 9", "")?;
    falls(peft, place, "STOP", "was not heard of", "")?;
    falls(peft, place, "STOP", "was not heard of", " --shard-base")
}

/// The run of these tests, `rows` a step for each process.
fn train(rows: usize, steps: usize, output: &str) -> String {
    format!(
        "train --model tiny-gpt --data text.jsonl --eval-data text.jsonl --steps {steps} --save-every 2 --log-every 1 \
         --batch-size {rows} --max-length 16 --schedule constant --r 2 --targets c_attn,c_fc --output {output}"
    )
}

fn mpirun(peft: &Peft, place: &Path, processes: usize, words: &str) -> Command {
    let mut command = Command::new("mpirun");
    command.args(ANYWHERE).args(["-n", &processes.to_string()]);
    command.arg(peft.program()).args(words.split_whitespace()).current_dir(place).stdin(Stdio::null());
    command
        .env("RAYON_NUM_THREADS", "1")
        .env("RUST_BACKTRACE", "0")
        .env("OMPI_MCA_btl_base_warn_component_unused", "0");
    command
}

fn in_processes(peft: &Peft, place: &Path, processes: usize, words: &str) -> Result<Outcome, String> {
    command::finish(mpirun(peft, place, processes, words), &format!("mpirun -n {processes} peft {words}"))
}

fn succeeds(outcome: Outcome) -> Result<Outcome, String> {
    match outcome.code {
        Some(0) => Ok(outcome),
        _ => Err(outcome.shown()),
    }
}

/// Losses of a run, and of its evaluations.
fn losses(folder: &Path) -> Result<Vec<f64>, String> {
    let log = folder.join("train_log.jsonl");
    let text = fs::read_to_string(&log).map_err(|error| format!("cannot read {}: {error}", log.display()))?;
    let number = |line: &str| line.split("\"loss\":").nth(1)?.split([',', '}']).next()?.trim().parse().ok();
    text.lines().map(|it| number(it).ok_or_else(|| format!("no loss in {it}"))).collect()
}

fn same(what: &str, found: &[f64], wanted: &[f64]) -> Result<(), String> {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    match found.len() == wanted.len() && !found.is_empty() && found.iter().zip(wanted).all(near) {
        true => Ok(()),
        false => Err(format!("{what}: losses are {found:?}, of one process {wanted:?}")),
    }
}

fn equal(peft: &Peft, place: &Path) -> Result<(), String> {
    peft.expect(place, &train(6, 50, "alone"))?;
    let alone = losses(&place.join("alone"))?;
    for processes in [2, 3] {
        let output = format!("of-{processes}");
        let outcome = succeeds(in_processes(peft, place, processes, &train(6 / processes, 50, &output))?)?;
        if outcome.stdout.matches("adapter, log and loss curve are in").count() != 1 {
            return Err(format!("not one process alone tells of the run:\n{}", outcome.stdout));
        }
        same(&format!("{processes} processes"), &losses(&place.join(&output))?, &alone)?;
        println!("{processes} processes: {} losses are those of one", alone.len());
    }
    let eval = "eval --model tiny-gpt --adapter alone --data text.jsonl --batch-size 2";
    let (alone, shared) = (peft.expect(place, eval)?, succeeds(in_processes(peft, place, 2, eval)?)?);
    match alone.stdout == shared.stdout {
        true => Ok(()),
        false => Err(format!("eval prints {}, in two processes {}", alone.stdout, shared.stdout)),
    }
}

/// A base in pieces gives, digit by digit, what the same processes compute with a whole one.
fn sharded(peft: &Peft, place: &Path) -> Result<(), String> {
    let settings = ["", " --quantize nf4 --gradient-checkpointing", " --dtype bfloat16 --dora"];
    for (at, more) in settings.into_iter().enumerate() {
        for processes in [2, 3] {
            let [whole, pieces] = ["whole", "pieces"].map(|it| format!("{it}-{at}-{processes}"));
            let run = |output: &str| train(6 / processes, 20, output) + more;
            succeeds(in_processes(peft, place, processes, &run(&whole))?)?;
            succeeds(in_processes(peft, place, processes, &(run(&pieces) + " --shard-base"))?)?;
            let [whole, pieces] = [losses(&place.join(whole))?, losses(&place.join(pieces))?];
            if whole.is_empty() || whole != pieces {
                return Err(format!("{processes} processes{more}: losses are {pieces:?}, of a whole base {whole:?}"));
            }
        }
    }
    let eval = "eval --model tiny-gpt --adapter whole-0-2 --data text.jsonl --batch-size 2";
    let alone = peft.expect(place, eval)?;
    for processes in [2, 3] {
        let pieces = succeeds(in_processes(peft, place, processes, &format!("{eval} --shard-base"))?)?;
        if alone.stdout != pieces.stdout {
            return Err(format!("eval prints {}, with a base in {processes} pieces {}", alone.stdout, pieces.stdout));
        }
    }
    let noted = peft.expect(place, &format!("{eval} --shard-base"))?;
    if !noted.stderr.contains("one process alone keeps the whole base") {
        return Err(format!("a base in one piece is worth a note:\n{}", noted.shown()));
    }
    println!("a base in pieces gives the losses of a whole one, in 2 and in 3 processes");
    Ok(())
}

/// A run that goes on in another number of processes, with the same rows a step.
fn goes_on(peft: &Peft, place: &Path) -> Result<(), String> {
    succeeds(in_processes(peft, place, 2, &train(3, 20, "moved"))?)?;
    succeeds(in_processes(peft, place, 3, &(train(2, 40, "moved") + " --resume"))?)?;
    peft.expect(place, &(train(6, 50, "moved") + " --resume"))?;
    let steps = |it: Vec<f64>| it[it.len() - 11..].to_vec();
    let (moved, alone) = (losses(&place.join("moved"))?, losses(&place.join("alone"))?);
    same("resumed", &steps(moved), &steps(alone))?;
    println!("20 steps in two processes, 20 in three and 10 in one are those of one");
    Ok(())
}

fn refused(peft: &Peft, place: &Path) -> Result<(), String> {
    for (words, reason) in
        [("inspect alone", "only `train` and `eval` share their work"), (&train(3, 4, "alone"), "of an earlier run")]
    {
        let outcome = in_processes(peft, place, 2, words)?;
        if outcome.code == Some(0) || !outcome.stderr.contains(reason) {
            return Err(format!("`{reason}` was expected of\n{}", outcome.shown()));
        }
    }
    println!("what cannot be shared is refused");
    Ok(())
}

/// A process that gets a signal in the middle ends the run, which goes on from its last checkpoint.
fn falls(peft: &Peft, place: &Path, signal: &str, said: &str, more: &str) -> Result<(), String> {
    let output = format!("fallen-{signal}{}", more.replace(' ', ""));
    let mut command = mpirun(peft, place, 2, &(train(3, LONG, &output) + more));
    let errors = place.join(format!("{output}.txt"));
    let file = fs::File::create(&errors).map_err(|error| format!("cannot create {}: {error}", errors.display()))?;
    let mut run = command.stdout(Stdio::null()).stderr(file).spawn().map_err(|error| format!("no mpirun: {error}"))?;
    let outcome = fall(&mut run, &place.join(&output), signal);
    // Nothing to end where all has ended.
    let _ = run.kill();
    let seconds = outcome?;
    let text = fs::read_to_string(&errors).unwrap_or_default();
    let status = run.wait().map_err(|error| format!("cannot wait for mpirun: {error}"))?;
    if status.success() || !text.contains(said) || !text.contains("rank 1") {
        return Err(format!("after SIG{signal} to rank 1 the run ends with {status} and says:\n{text}"));
    }
    let checkpoints = fs::read_dir(place.join(&output)).map_err(|error| error.to_string())?;
    let last =
        checkpoints.flatten().filter_map(|it| it.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok()).max();
    let last: usize = last.ok_or("the run left no checkpoint")?;
    peft.expect(place, &(train(6, last + 2, &output) + " --resume"))?;
    println!("SIG{signal} to one of two{more} ends both in {seconds:.1} s; the run goes on from step {last}");
    Ok(())
}

/// Sends the signal to rank 1 after a few steps, and says how long the rest lived.
fn fall(run: &mut Child, output: &Path, signal: &str) -> Result<f64, String> {
    let start = Instant::now();
    while !output.join("checkpoint-4").exists() {
        if start.elapsed() > SOON || run.try_wait().map_err(|error| error.to_string())?.is_some() {
            return Err("the run does not come to its fourth step".to_owned());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let victim = rank(1, run.id())?;
    let status = Command::new("kill").args([&format!("-{signal}"), &victim.to_string()]).status();
    if !status.map_err(|error| format!("no kill: {error}"))?.success() {
        return Err(format!("process {victim} takes no signal"));
    }
    let start = Instant::now();
    match wait(run, SOON)? {
        true => Ok(start.elapsed().as_secs_f64()),
        false => Err(format!("SIG{signal} to rank 1: the others live on for {} s", SOON.as_secs())),
    }
}

/// The process of a rank: a child of this mpirun, which tells each its number.
fn rank(rank: usize, mpirun: u32) -> Result<u32, String> {
    let wanted = [format!("OMPI_COMM_WORLD_RANK={rank}"), format!("PPid:\t{mpirun}")];
    let is_it = |process: &PathBuf| {
        let read = |name: &str| fs::read(process.join(name)).map(|it| String::from_utf8_lossy(&it).into_owned());
        read("environ").is_ok_and(|it| it.split('\0').any(|it| it == wanted[0]))
            && read("status").is_ok_and(|it| it.lines().any(|it| it == wanted[1]))
    };
    let processes = fs::read_dir("/proc").map_err(|error| format!("cannot read /proc: {error}"))?;
    let found = processes.flatten().map(|it| it.path()).find(is_it);
    let number = found.and_then(|it| it.file_name()?.to_str()?.parse().ok());
    number.ok_or_else(|| format!("rank {rank} is not there"))
}
