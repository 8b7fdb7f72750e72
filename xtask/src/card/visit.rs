//! The visit: what `run.sh` does on the machine with the card, within its time and without a hand.
//!
//! First what the machine is, then the peak of its products, then a smoke test on tiny models, then the lines of the
//! table. A program that fails, or takes too long, costs its own cell.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::flops;
use super::options::Visit;
use super::plan::{self, Program, Work};
use super::table::{Cell, Measured, Table};
use super::torch::Probe;
use crate::bench::programs::{Programs, Torch};
use crate::bench::report;
use crate::bench::runner::Runner;
use crate::bench::shapes::{Peer, Shape, Tuner};
use crate::bench::{TempFolder, write_config};

/// Steps that warm up, the first one among them: kernels are compiled and tried.
const WARM_UP: usize = 3;
/// Steps that count: at least so many, at most so many, and none that begins later than so many seconds after the first.
const STEPS: (usize, usize) = (3, 10);
const STEP_SECONDS: f64 = 6.0;
/// Nothing begins with fewer seconds than these.
const LEAST_SECONDS: u64 = 5;
/// How the reason begins of what was given up.
const NOT_DONE: &str = "not done within";
/// Steps of the smoke test whose losses are compared: the first shows the forward, the others the backward.
const SMOKE_STEPS: usize = 3;

pub(crate) fn run(options: &Visit) -> Result<(), String> {
    let clock = Clock { begun: Instant::now(), seconds: options.deadline };
    let make = |path: &Path| {
        fs::create_dir_all(path)
            .and_then(|()| path.canonicalize())
            .map_err(|error| format!("cannot make {}: {error}", path.display()))
    };
    let (results, logs) = (make(&options.results)?, make(&options.results.join("logs"))?);
    let folder = options.folder.canonicalize();
    let folder = folder.map_err(|error| format!("cannot find {}: {error}", options.folder.display()))?;
    let work = TempFolder::new(env::temp_dir().join(format!("peft-card-{}", std::process::id())))?;
    // Asks to keep kernels, and what was tried out, for the next process.
    let settings = "[compilation]\ncache = true\n\n[environment]\npath = \"local\"\n";
    let settings_at = work.0.join("cubecl.toml");
    fs::write(&settings_at, settings).map_err(|error| format!("cannot write {}: {error}", settings_at.display()))?;

    let mut about = machine(&results);
    let site = unpack_wheels(options, &folder, &work.0, &logs, &clock, &mut about);
    let torch = ask_torch(options, &folder, site.as_deref(), &logs, &clock);
    about.push(torch.about.clone());
    let missing = torch.missing.iter().filter(|_| options.python.is_some());
    about.extend(missing.map(|it| format!("no comparison with torch: {it}")));
    about.extend(torch.troubles.iter().map(|it| format!("not measured: {it}")));
    for line in &about {
        println!("{line}");
    }

    let programs = plan::programs(options.devices.len(), options.python.is_some());
    let name = |it: &Program| match it {
        Program::Ours(at) => options.devices[*at].clone(),
        Program::Torch => "torch".to_owned(),
        Program::TorchCompiled => "torch compiled".to_owned(),
    };
    let named = programs.iter().map(|it| (*it, name(it))).collect();
    let mut table = Table::new(plan::works(options.shapes), named);
    table.about = about;
    table.peaks = torch.peaks;
    table.write(&results)?;

    let mut visitor = Visitor {
        options,
        clock,
        cuda: cuda_path(&torch, &work.0),
        folder,
        work: work.0.clone(),
        logs,
        results,
        site,
        card: CardMemory::watch(),
        torch,
        weights: BTreeMap::new(),
        refused: BTreeMap::new(),
        doubts: BTreeMap::new(),
    };
    visitor.smoke(&mut table)?;
    for (line, program) in plan::order(&visitor.lines(&table), &programs) {
        visitor.fill(&mut table, line, program)?;
    }
    println!("\n{}", table.markdown());
    println!("{} is written after {:.0} s", visitor.results.join("card.md").display(), visitor.clock.passed());
    if table.ours() == 0 {
        return Err("nothing of ours was measured; the table says why".to_owned());
    }
    Ok(())
}

/// The time that there is.
#[derive(Debug, Clone, Copy)]
struct Clock {
    begun: Instant,
    seconds: u64,
}

impl Clock {
    fn passed(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn left(&self) -> Duration {
        Duration::from_secs(self.seconds).saturating_sub(self.begun.elapsed())
    }

    /// Whether nothing more should begin.
    fn is_over(&self) -> bool {
        self.left() < Duration::from_secs(LEAST_SECONDS)
    }

    /// In so many seconds, or when the visit ends.
    fn until(&self, seconds: u64) -> Instant {
        Instant::now() + self.left().min(Duration::from_secs(seconds))
    }
}

struct Visitor<'a> {
    options: &'a Visit,
    clock: Clock,
    /// What was carried here.
    folder: PathBuf,
    /// For weights and kernels; goes away.
    work: PathBuf,
    logs: PathBuf,
    results: PathBuf,
    /// Where the wheels were unpacked.
    site: Option<PathBuf>,
    /// Where kernels find their mathematics, if they would not find it by themselves.
    cuda: Option<PathBuf>,
    card: Option<CardMemory>,
    torch: Probe,
    weights: BTreeMap<&'static str, Result<PathBuf, String>>,
    /// Programs that need not be tried: by column and type.
    refused: BTreeMap<(String, bool), String>,
    /// What the smoke test found odd, by device and type.
    doubts: BTreeMap<(String, bool), String>,
}

impl Visitor<'_> {
    /// Tiny models on every device: losses of some steps against those of the processor, the first against torch's.
    fn smoke(&mut self, table: &mut Table) -> Result<(), String> {
        let mut late = BTreeSet::new();
        for shape in plan::smoke_shapes() {
            let method = plan::smoke_method(false);
            let reference = self.losses("flex", &shape, &method, SMOKE_STEPS);
            let torch = self.torch_loss(&shape, &method);
            if let Err(reason) = &reference {
                table.about.push(format!("smoke test, {}: the processor has no losses: {reason}", shape.name));
            }
            if let Some(Err(reason)) = &torch {
                table.about.push(format!("smoke test, {}: torch has no loss: {reason}", shape.name));
            }
            for device in &self.options.devices {
                for bf16 in [false, true] {
                    let kind = if bf16 { "bf16" } else { "f32" };
                    let key = (device.clone(), bf16);
                    if self.clock.is_over() || self.refused.contains_key(&key) {
                        continue;
                    }
                    let name = format!("smoke test, {}, {device}, {kind}", shape.name);
                    let line = match self.losses(device, &shape, &plan::smoke_method(bf16), SMOKE_STEPS) {
                        Ok(losses) => {
                            let torch = torch.as_ref().and_then(|it| it.as_ref().ok()).copied();
                            let (line, agree) =
                                agreement(&losses, reference.as_deref().ok(), torch, tolerance(device, bf16));
                            if !agree {
                                self.doubts.insert(key, format!("{name}: {line}"));
                            }
                            line
                        }
                        Err(reason) => {
                            // A driver may keep what it compiled in the time, so that the next model may be done in it.
                            let is_late = reason.starts_with(NOT_DONE);
                            if !is_late || !late.insert(key.clone()) {
                                self.refused.insert(key, format!("in the smoke test: {reason}"));
                            }
                            format!("failed: {reason}")
                        }
                    };
                    println!("{name}: {line}");
                    table.about.push(format!("{name}: {line}"));
                }
            }
            table.write(&self.results)?;
        }
        Ok(())
    }

    fn losses(&mut self, device: &str, shape: &Shape, method: &Tuner, steps: usize) -> Result<Vec<f64>, String> {
        let folder = self.weights(shape)?;
        let command = self.ours(device, shape, method, &folder)?;
        let name = format!("smoke-{}-{device}-{}", shape.name, if method.bf16 { "bf16" } else { "f32" });
        self.attempt(command, &name, |runner, _| {
            let mut losses = vec![runner.first_value];
            for _ in 1..steps {
                losses.push(runner.step()?);
            }
            Ok(losses)
        })
        .map(|(losses, _)| losses)
    }

    /// `None` without a torch that can be compared with.
    fn torch_loss(&mut self, shape: &Shape, method: &Tuner) -> Option<Result<f64, String>> {
        if self.options.python.is_none() || self.torch.missing.is_some() || self.clock.is_over() {
            return None;
        }
        let loss = self.weights(shape).and_then(|folder| {
            let command = self.peer(shape, method, Peer::PeftTorch, &folder)?;
            let name = format!("smoke-{}-torch", shape.name);
            self.attempt(command, &name, |runner, _| Ok(runner.first_value)).map(|it| it.0)
        });
        Some(loss)
    }

    /// Lines in the order of their importance; those behind that none of our devices can take.
    fn lines(&self, table: &Table) -> Vec<usize> {
        let is_taken = |line: &usize| {
            let bf16 = table.lines[*line].0.method.bf16;
            self.options.devices.iter().any(|it| !self.refused.contains_key(&(it.clone(), bf16)))
        };
        let (mut taken, others): (Vec<usize>, Vec<usize>) = (0..table.lines.len()).partition(is_taken);
        taken.extend(others);
        taken
    }

    /// Measures a cell and writes the table.
    fn fill(&mut self, table: &mut Table, line: usize, program: Program) -> Result<(), String> {
        let work = table.lines[line].0.clone();
        let column = table.programs.iter().find(|it| it.0 == program).map(|it| it.1.clone()).unwrap_or_default();
        let key = (column.clone(), work.method.bf16);
        let is_torch = matches!(program, Program::Torch | Program::TorchCompiled);
        let missing = self.torch.missing.clone().filter(|_| is_torch);
        let known =
            missing.or_else(|| self.refused.get(&key).cloned()).or_else(|| hopeless(table, program, work.method.bf16));
        let is_tried = known.is_none();
        if is_tried && self.clock.is_over() {
            return Ok(());
        }
        let outcome = known.map_or_else(|| self.measure(&work, program, &column), Err);
        if is_tried {
            let kind = if work.method.bf16 { "bf16" } else { "f32" };
            let Shape { name, batch, seq, .. } = work.shape;
            let said = match &outcome {
                Ok(it) => format!("{:.0} tokens/s", (batch * seq) as f64 / it.seconds),
                Err(reason) => format!("failed: {reason}"),
            };
            println!(
                "{:4.0} s  {name}, {batch} × {seq}, {}, {kind}, {column}: {said}",
                self.clock.passed(),
                work.method.name
            );
        }
        *table.cell(line, program) = match outcome {
            Ok(mut it) => {
                it.doubt = self.doubts.get(&key).cloned();
                Cell::Measured(it)
            }
            Err(reason) => Cell::Failed(reason),
        };
        compare_work(table, line);
        table.write(&self.results)
    }

    fn measure(&mut self, work: &Work, program: Program, column: &str) -> Result<Measured, String> {
        let Work { shape, method } = work;
        let folder = self.weights(shape)?;
        let command = match program {
            Program::Ours(at) => self.ours(&self.options.devices[at], shape, method, &folder)?,
            Program::Torch => self.peer(shape, method, Peer::PeftTorch, &folder)?,
            Program::TorchCompiled => self.peer(shape, method, Peer::PeftTorchCompiled, &folder)?,
        };
        let (batch, seq, rank) = (shape.batch, shape.seq, if method.name.contains("all") { "all" } else { "r8" });
        let kind = if method.bf16 { "bf16" } else { "f32" };
        let name = format!("{}-{batch}x{seq}-{rank}-{kind}-{}", shape.name, column.replace([' ', ':'], "-"));
        let ((trainable, first_loss), outcome) = self.attempt(command, &name, |runner, until| {
            runner.warm_up(WARM_UP - 1)?;
            let begun = Instant::now();
            for step in 0..STEPS.1 {
                // What is there counts, also if the time will not suffice for one more.
                let each = begun.elapsed() / u32::try_from(step.max(1)).unwrap_or(1);
                let is_enough = step >= STEPS.0 && begun.elapsed().as_secs_f64() > STEP_SECONDS;
                if is_enough || (step > 0 && Instant::now() + 2 * each > until) {
                    break;
                }
                runner.step()?;
            }
            Ok((runner.trainable, runner.first_value))
        })?;
        Ok(Measured {
            seconds: report::median(&outcome.seconds),
            steps: outcome.seconds.len(),
            host_bytes: outcome.peak_bytes,
            card_bytes: outcome.card_bytes,
            seen_bytes: self.card.as_ref().map_or(0, CardMemory::taken),
            cold_start: outcome.cold_start,
            first_loss,
            trainable,
            flops: flops::of_step(shape, trainable),
            doubt: None,
        })
    }

    /// Starts a worker, has it do something, and has it leave; what it says beside that is in a file of logs.
    fn attempt<R>(
        &self,
        mut command: Command,
        name: &str,
        act: impl FnOnce(&mut Runner, Instant) -> Result<R, String>,
    ) -> Result<(R, crate::bench::runner::Outcome), String> {
        let path = self.logs.join(format!("{name}.txt"));
        let log = File::create(&path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        command.current_dir(&self.work).stderr(log);
        if let Some(card) = &self.card {
            card.reset();
        }
        let begun = Instant::now();
        let until = self.clock.until(self.options.row_seconds);
        let outcome = Runner::start_until(command, name, Some(until)).and_then(|mut runner| {
            let acted = act(&mut runner, until)?;
            Ok((acted, runner.finish()?))
        });
        outcome.map_err(|error| {
            if Instant::now() >= until {
                let why = if self.clock.left().is_zero() { ", when the time of the visit was over" } else { "" };
                return format!("{NOT_DONE} {:.0} s{why}", begun.elapsed().as_secs_f64());
            }
            let said = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            last_words(&said).unwrap_or(error)
        })
    }

    fn ours(&self, device: &str, shape: &Shape, method: &Tuner, folder: &Path) -> Result<Command, String> {
        let mut command = self.programs(device).ours(shape, method, folder);
        self.set_up(&mut command, device)?;
        Ok(command)
    }

    fn set_up(&self, command: &mut Command, device: &str) -> Result<(), String> {
        if let Some(cuda) = &self.cuda {
            command.env("CUDA_PATH", cuda);
        }
        if crate::backend_of(device) == "tch" {
            let libraries = self.torch.libraries.as_ref().ok_or("there is no torch, whose libraries it needs")?;
            command.env("LD_LIBRARY_PATH", libraries);
            // Nothing in the program names the library for cards, so that it would not be loaded.
            let cuda = libraries.join("libtorch_cuda.so");
            if cuda.is_file() {
                command.env("LD_PRELOAD", cuda);
            }
        }
        Ok(())
    }

    fn peer(&self, shape: &Shape, method: &Tuner, peer: Peer, folder: &Path) -> Result<Command, String> {
        let mut command = self.programs("flex").peer(shape, method, peer, folder)?;
        command.envs(self.site.iter().map(|it| ("PYTHONPATH", it)));
        Ok(command)
    }

    fn programs(&self, device: &str) -> Programs {
        let torch = self.options.python.clone().map(|python| Torch {
            python,
            script: self.folder.join("peft_torch.py"),
            device: if self.torch.has_card { "cuda" } else { "cpu" }.to_owned(),
            as_on_cards: true,
        });
        // Any of them has `flex`.
        let bin = self.folder.join("bin");
        let (cubes, tch) = (bin.join("worker"), bin.join("worker-tch"));
        let is_tch = crate::backend_of(device) == "tch" || !cubes.is_file();
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Programs { worker: if is_tch { tch } else { cubes }, device: device.to_owned(), threads, torch }
    }

    /// A folder with random weights of the shape, made when it is first needed.
    fn weights(&mut self, shape: &Shape) -> Result<PathBuf, String> {
        if let Some(made) = self.weights.get(shape.name) {
            return made.clone();
        }
        let made = self.synthesise(shape);
        self.weights.insert(shape.name, made.clone());
        made
    }

    fn synthesise(&self, shape: &Shape) -> Result<PathBuf, String> {
        let folder = self.work.join("weights").join(shape.name);
        fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        write_config(shape, &folder)?;
        let begun = Instant::now();
        let mut command = self.programs("flex").synthesise(shape, &folder);
        // Where only the worker of tch is there, it needs its libraries for this, too.
        if !self.folder.join("bin").join("worker").is_file() {
            self.set_up(&mut command, "tch")?;
        }
        let log = self.logs.join(format!("weights-{}.txt", shape.name));
        finish(&mut command, &log, self.clock.until(2 * self.options.row_seconds))
            .map_err(|reason| format!("its weights could not be made: {reason}"))?;
        println!(
            "{:4.0} s  weights of {} made in {:.0} s",
            self.clock.passed(),
            shape.name,
            begun.elapsed().as_secs_f64()
        );
        Ok(folder)
    }
}

/// How far losses may be apart, relatively. Those of tiny models with random weights hardly differ from that of a guess, so this is
/// strict.
fn tolerance(device: &str, bf16: bool) -> f64 {
    match (crate::backend_of(device), bf16) {
        // 8 bits.
        (_, true) => 1e-3,
        // CubeK multiplies f32 in tf32 there, which has 11.
        ("cuda", false) => 3e-4,
        (_, false) => 1e-4,
    }
}

/// Whether losses are those of the processor and the first one that of torch, and how far they are apart.
fn agreement(losses: &[f64], reference: Option<&[f64]>, torch: Option<f64>, tolerance: f64) -> (String, bool) {
    let apart = |a: f64, b: f64| (a - b).abs() / a.abs().max(b.abs());
    let mut parts = Vec::new();
    let mut agree = losses.iter().all(|it| it.is_finite());
    // A number that is none is in agreement with nothing.
    if let Some(reference) = reference {
        let far = losses
            .iter()
            .zip(reference)
            .map(|(a, b)| apart(*a, *b))
            .fold(0.0, |far: f64, it| if it <= far { far } else { it });
        agree &= far <= tolerance;
        parts.push(format!("{} losses, {far:.1e} from those of the processor", losses.len()));
    }
    if let Some(torch) = torch {
        let far = apart(losses[0], torch);
        agree &= far <= tolerance;
        parts.push(format!("the first {far:.1e} from torch's"));
    }
    let verdict = if agree { "agrees" } else { "differs" };
    if parts.is_empty() {
        ("compared with nothing".to_owned(), agree)
    } else {
        (format!("{verdict}: {}", parts.join(", ")), agree)
    }
}

/// A program that failed on two shapes for the same reason, and never did anything else, will do so again.
fn hopeless(table: &Table, program: Program, bf16: bool) -> Option<String> {
    let column = table.programs.iter().position(|it| it.0 == program)?;
    let mut reasons = Vec::new();
    for (work, cells) in table.lines.iter().filter(|it| it.0.method.bf16 == bf16) {
        match &cells[column] {
            Cell::Measured(_) => return None,
            // Another shape may go where one had no weights, or no time.
            Cell::Failed(reason) => reasons.push((work.shape.name, reason)),
            Cell::Waiting => {}
        }
    }
    let (shape, first) = *reasons.first()?;
    let is_same = reasons.iter().all(|it| it.1 == first);
    (is_same && reasons.iter().any(|it| it.0 != shape)).then(|| first.clone())
}

/// Marks our cells of a line that did other work than torch.
fn compare_work(table: &mut Table, line: usize) {
    let programs: Vec<Program> = table.programs.iter().map(|it| it.0).collect();
    let (work, cells) = &mut table.lines[line];
    let torch = programs.iter().position(|it| *it == Program::Torch).and_then(|at| match &cells[at] {
        Cell::Measured(it) => Some((it.first_loss, it.trainable)),
        _ => None,
    });
    let Some((loss, trainable)) = torch else { return };
    let tolerance = Peer::PeftTorch.tolerance(&work.method);
    for (program, cell) in programs.iter().zip(cells) {
        let (Program::Ours(_), Cell::Measured(it)) = (program, cell) else { continue };
        let far = (it.first_loss - loss).abs() / loss.abs();
        if it.trainable != trainable {
            it.doubt =
                Some(format!("other work than torch's: {} parameters are trained, not {trainable}", it.trainable));
        } else if far.is_nan() || far > tolerance {
            it.doubt = Some(format!("other work than torch's: the first loss is {}, not {loss}", it.first_loss));
        }
    }
}

/// Why a program left, of what it said.
fn last_words(said: &str) -> Option<String> {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    let error = lines.iter().rev().find_map(|it| it.strip_prefix("error: "));
    // A panic names its place in one line and its reason in the next. The first one is the cause of the others.
    let panic = lines.iter().position(|it| it.contains("panicked at")).and_then(|at| lines.get(at + 1)).copied();
    let words = panic.or(error).or(lines.last().copied())?;
    // A table is no place for more.
    Some(words.chars().take(300).collect())
}

/// What the machine is, as it says itself.
fn machine(results: &Path) -> Vec<String> {
    let mut about = Vec::new();
    let ask = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    about.extend(ask(&["date", "-u", "+%d %B %Y, %H:%M UTC"]));
    let query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm",
        "--format=csv,noheader",
    ];
    match ask(&query) {
        Some(cards) => {
            about.extend(cards.lines().map(|it| format!("card: {it} (name, driver, memory, limit of power, clock)")))
        }
        None => about.push("card: none that nvidia-smi knows".to_owned()),
    }
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    about.push(format!("processor: {}, {threads} threads", processor.map_or("unknown", |it| it.1)));
    about.extend(ask(&["uname", "-srm"]));
    if let Some(all) = ask(&["nvidia-smi"]) {
        println!("{all}\n");
        // Kept for whoever wants to know more; the visit goes on without it.
        let _ = fs::write(results.join("logs").join("nvidia-smi.txt"), all);
    }
    about
}

/// The folder of the packages that were carried along.
fn unpack_wheels(
    options: &Visit,
    folder: &Path,
    work: &Path,
    logs: &Path,
    clock: &Clock,
    about: &mut Vec<String>,
) -> Option<PathBuf> {
    let (python, site) = (options.python.as_ref()?, work.join("site"));
    let mut wheels: Vec<PathBuf> =
        fs::read_dir(folder.join("wheels")).ok()?.filter_map(|it| Some(it.ok()?.path())).collect();
    wheels.sort();
    for wheel in wheels {
        let mut command = Command::new(python);
        command.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&site);
        if let Err(reason) = finish(&mut command, &logs.join("wheels.txt"), clock.until(60)) {
            about.push(format!("{} could not be unpacked: {reason}", wheel.display()));
        }
    }
    Some(site)
}

fn ask_torch(options: &Visit, folder: &Path, site: Option<&Path>, logs: &Path, clock: &Clock) -> Probe {
    let Some(python) = &options.python else { return Probe::without("torch was not asked for") };
    let mut command = Command::new(python);
    command.arg(folder.join("card_torch.py")).envs(site.map(|it| ("PYTHONPATH", it)));
    let log = logs.join("torch.txt");
    let ended = finish(&mut command, &log, clock.until(options.row_seconds));
    let mut probe = Probe::parse(&String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()));
    if let Err(reason) = ended {
        probe.troubles.push(format!("what torch can do: {reason}"));
    }
    probe
}

/// Runs a program to its end with all that it says in a file, or ends it in time.
fn finish(command: &mut Command, log: &Path, until: Instant) -> Result<(), String> {
    let cannot = |what: &str, error: &std::io::Error| format!("cannot {what}: {error}");
    let out = File::create(log).map_err(|error| cannot(&format!("write {}", log.display()), &error))?;
    let copy = out.try_clone().map_err(|error| cannot("write a log", &error))?;
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(out).stderr(copy).spawn();
    let mut child =
        child.map_err(|error| cannot(&format!("start {}", command.get_program().to_string_lossy()), &error))?;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                let said = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
                return Err(last_words(&said).unwrap_or_else(|| status.to_string()));
            }
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            _ => {
                // It may have ended by now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{NOT_DONE} {:.0} s", begun.elapsed().as_secs_f64()));
            }
        }
    }
}

/// A folder that looks like a toolkit where there is none, with the one file that kernels need. `None` if there is one, or
/// no such file.
fn cuda_path(torch: &Probe, work: &Path) -> Option<PathBuf> {
    let file = Path::new("nvvm").join("libdevice").join("libdevice.10.bc");
    let known = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"].map(PathBuf::from);
    let named = env::var_os("CUDA_PATH").map(PathBuf::from);
    let looked_at = named.map_or_else(|| known.to_vec(), |it| vec![it]);
    if looked_at.iter().any(|it| it.join(&file).is_file()) {
        return None;
    }
    let root = work.join("cuda");
    let copy = root.join(&file);
    fs::create_dir_all(copy.parent()?).ok()?;
    fs::copy(torch.libdevice.as_ref()?, &copy).ok()?;
    Some(root)
}

/// Listens to how much memory of the card is in use, whoever uses it.
struct CardMemory {
    child: Child,
    most: Arc<AtomicU64>,
    /// In use before anything of ours began.
    idle: u64,
}

impl CardMemory {
    /// `None` without a card that `nvidia-smi` knows.
    fn watch() -> Option<Self> {
        let mut command = Command::new("nvidia-smi");
        command.args(["-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "100"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let output = BufReader::new(child.stdout.take()?);
        let most = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&most);
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Ok(mebibytes) = line.trim().parse::<u64>() {
                    shared.fetch_max(mebibytes << 20, Ordering::Relaxed);
                }
            }
        });
        // Some readings.
        thread::sleep(Duration::from_secs(1));
        let idle = most.load(Ordering::Relaxed);
        Some(Self { child, most, idle })
    }

    fn reset(&self) {
        self.most.store(0, Ordering::Relaxed);
    }

    /// The most since the last reset, without what was in use before.
    fn taken(&self) -> u64 {
        self.most.load(Ordering::Relaxed).saturating_sub(self.idle)
    }
}

impl Drop for CardMemory {
    fn drop(&mut self) {
        // It runs until it is ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::options::Shapes;

    #[test]
    fn a_reason_is_what_a_program_said_last() {
        let rust = "warning: slow\nthread 'main' (7) panicked at src/a.rs:1:2:\nno driver\nnote: run with `RUST_BACKTRACE=1`\n\
            thread 'x' panicked at b.rs:1:1:\nRecvError\n";
        assert_eq!(last_words(rust).as_deref(), Some("no driver"));
        assert_eq!(last_words("error: `cuda` is not there\n").as_deref(), Some("`cuda` is not there"));
        let python = "Traceback (most recent call last):\n  File \"a.py\", line 1\nModuleNotFoundError: No module named 'peft'\n\n";
        assert_eq!(last_words(python).as_deref(), Some("ModuleNotFoundError: No module named 'peft'"));
        assert_eq!(last_words(" \n"), None);
    }

    #[test]
    fn losses_that_are_apart_are_seen() {
        let [exact, rounded] = [false, true].map(|bf16| tolerance("vulkan", bf16));
        let same = [4.6, 4.5, 4.4];
        assert!(agreement(&same, Some(&same), Some(4.6), exact).1);
        assert!(!agreement(&[4.6, 4.5, 4.41], Some(&same), Some(4.6), exact).1);
        assert!(!agreement(&same, Some(&same), Some(4.61), exact).1);
        assert!(agreement(&[4.602, 4.502, 4.402], Some(&same), Some(4.6), rounded).1);
        assert!(!agreement(&[4.602, 4.502, 4.402], Some(&same), Some(4.6), exact).1);
        let in_tf32 = [4.601, 4.501, 4.401];
        assert!(agreement(&in_tf32, Some(&same), None, tolerance("cuda:1", false)).1);
        assert!(!agreement(&in_tf32, Some(&same), None, exact).1);
        assert!(!agreement(&[f64::NAN, 4.5, 4.4], Some(&same), None, rounded).1);
        assert!(!agreement(&[f64::INFINITY], None, None, exact).1);
        assert_eq!(agreement(&same, None, None, exact).0, "compared with nothing");
    }

    fn table() -> Table {
        let programs = plan::programs(1, true);
        let names = ["cuda", "torch", "torch compiled"].map(str::to_owned);
        Table::new(plan::works(Shapes::Full), programs.into_iter().zip(names).collect())
    }

    fn measured(first_loss: f64) -> Cell {
        Cell::Measured(Measured {
            seconds: 1.0,
            steps: 3,
            host_bytes: 1,
            card_bytes: 0,
            seen_bytes: 0,
            cold_start: 1.0,
            first_loss,
            trainable: 10,
            flops: None,
            doubt: None,
        })
    }

    #[test]
    fn what_always_fails_for_the_same_reason_is_not_tried_again() {
        let compiled = Program::TorchCompiled;
        let failed = |reason: &str| Cell::Failed(reason.to_owned());
        // Lines 1, 2, 4 and 5 are in bf16: GPT-2, two of the largest, the other Llama.
        let mut it = table();
        *it.cell(1, compiled) = failed("no compiler");
        assert_eq!(hopeless(&it, compiled, true), None, "once is not always");
        *it.cell(2, compiled) = failed("no compiler");
        assert_eq!(hopeless(&it, compiled, true).as_deref(), Some("no compiler"));
        assert_eq!(hopeless(&it, compiled, false), None, "another type");
        assert_eq!(hopeless(&it, Program::Torch, true), None, "another program");
        *it.cell(4, compiled) = measured(1.0);
        assert_eq!(hopeless(&it, compiled, true), None, "it can");
        let mut it = table();
        *it.cell(2, compiled) = failed("no memory");
        *it.cell(4, compiled) = failed("no memory");
        assert_eq!(hopeless(&it, compiled, true), None, "one shape only");
    }

    #[test]
    fn other_work_than_torchs_is_marked() {
        let mut it = table();
        *it.cell(0, Program::Ours(0)) = measured(10.9);
        compare_work(&mut it, 0);
        *it.cell(0, Program::Torch) = measured(10.8);
        compare_work(&mut it, 0);
        assert!(
            matches!(it.cell(0, Program::Ours(0)), Cell::Measured(Measured { doubt: Some(why), .. }) if why.contains("10.8"))
        );
        if let Cell::Measured(torch) = it.cell(0, Program::Torch) {
            torch.trainable = 11;
        }
        compare_work(&mut it, 0);
        let doubt = match it.cell(0, Program::Ours(0)) {
            Cell::Measured(it) => it.doubt.clone().unwrap_or_default(),
            _ => String::new(),
        };
        assert!(doubt.contains("10 parameters are trained, not 11"), "{doubt}");
        // The same distance is within the rounding of bf16.
        *it.cell(1, Program::Ours(0)) = measured(10.9);
        *it.cell(1, Program::Torch) = measured(10.8);
        compare_work(&mut it, 1);
        assert!(matches!(it.cell(1, Program::Ours(0)), Cell::Measured(Measured { doubt: None, .. })));
    }

    #[test]
    fn the_time_ends() {
        let clock = |seconds| Clock { begun: Instant::now(), seconds };
        assert!(clock(1).is_over());
        assert!(!clock(100).is_over());
        assert!(clock(30).until(100) <= Instant::now() + Duration::from_secs(30));
        assert!(clock(100).until(30) <= Instant::now() + Duration::from_secs(30));
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let folder = TempFolder::new(env::temp_dir().join(format!("peft-card-test-{}", std::process::id()))).unwrap();
        let log = folder.0.join("log.txt");
        let sh = |script: &str, seconds| {
            finish(Command::new("sh").args(["-c", script]), &log, Instant::now() + Duration::from_millis(seconds))
        };
        assert_eq!(sh("echo fine", 60_000), Ok(()));
        assert_eq!(sh("echo because >&2; exit 3", 60_000), Err("because".to_owned()));
        assert!(sh("exec sleep 100", 100).unwrap_err().contains("not done"));
    }
}
