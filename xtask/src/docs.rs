//! `cargo xtask docs`: the book in `docs/` says what is true.
//!
//! `--check` is cheap and part of continuous integration: the command line of every `peft` command is understood, every
//! local link leads somewhere, every page is in the summary, and tables of measured numbers say where and when.
//! `--run` runs the blocks marked `sh,run` in the order of the summary, in the folder of the repository, with `peft` on
//! the path and these variables: `ASSETS`, the folder of models and data sets; `OUT`, a fresh folder for results; `ROWS`,
//! which makes the data recipe write few rows. A block marked `fails` must fail, and say what the `text` block behind it
//! shows. A block that needs what is not there is skipped, and with it what comes
//! after it on its page.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::{cargo, read, root};

const USAGE: &str = "\
usage: cargo xtask docs --check
       cargo xtask docs --run [--assets DIR] [--python PATH] [--page NAME]... [--full]

  --check        command lines, links, summary, and where numbers were measured
  --run          runs the commands of the book, shortened to two steps and a few rows
    --assets     folder of models and data, see docs/src/data.md; without it only what needs none of them is run
    --python     a Python with torch and transformers, for the recipes that pretrain a model
    --page       runs the page of this name only, behind the one that makes the data; may be repeated
    --full       runs the commands as they stand";

/// The page whose commands make the data that others train on.
const DATA_PAGE: &str = "data";
/// Rows of each data file, and steps of each training, where a run is shortened.
const SHORT_ROWS: &str = "24";
const SHORT_STEPS: &str = "2";

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    check: bool,
    run: bool,
    full: bool,
    assets: Option<PathBuf>,
    python: Option<PathBuf>,
    pages: Vec<String>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().cloned().ok_or_else(|| format!("`{word}` needs a value"));
            match word.as_str() {
                "--check" => options.check = true,
                "--run" => options.run = true,
                "--full" => options.full = true,
                "--assets" => options.assets = Some(PathBuf::from(value()?)),
                "--python" => options.python = Some(PathBuf::from(value()?)),
                "--page" => options.pages.push(value()?),
                other => return Err(format!("`{other}` is unknown")),
            }
        }
        if options.check == options.run { Err("give --check or --run".to_owned()) } else { Ok(options) }
    }
}

pub(crate) fn run(words: &[String]) -> Result<(), String> {
    let options = Options::parse(words).map_err(|reason| format!("{reason}\n\n{USAGE}"))?;
    if options.check { check() } else { run_pages(&options) }
}

/// One file of the book.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// A fenced block: what stands behind its backticks, the number of its first line, and its lines.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    info: String,
    line: usize,
    body: String,
}

impl Block {
    fn has(&self, mark: &str) -> bool {
        self.info.split(',').any(|it| it == mark)
    }

    /// Its `peft` commands, with lines that end in a backslash joined.
    fn commands(&self) -> Vec<String> {
        let joined = self.body.replace("\\\n", " ");
        joined.lines().map(str::trim).filter(|it| it.starts_with("peft ")).map(str::to_owned).collect()
    }
}

/// The pages in the order of the summary.
fn book() -> Result<Vec<Page>, String> {
    let folder = root().join("docs/src");
    let summary = read(&folder.join("SUMMARY.md"))?;
    let listed: Vec<String> = links(&summary).into_iter().filter(|it| it.ends_with(".md")).collect();
    let mut present = BTreeSet::new();
    find_pages(&folder, &mut present)?;
    let known: BTreeSet<PathBuf> = listed.iter().map(|it| folder.join(it)).collect();
    if let Some(lost) = present.iter().find(|it| !known.contains(*it) && !it.ends_with("SUMMARY.md")) {
        return Err(format!("{} is not in docs/src/SUMMARY.md", lost.display()));
    }
    listed
        .iter()
        .map(|it| {
            let path = folder.join(it);
            Ok(Page { text: read(&path)?, path })
        })
        .collect()
}

fn find_pages(folder: &Path, found: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            find_pages(&path, found)?;
        } else if path.extension().is_some_and(|it| it == "md") {
            found.insert(path);
        }
    }
    Ok(())
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(info) => {
                inside = true;
                found.push(Block { info: info.trim().to_owned(), line: number + 2, body: String::new() });
            }
            None if inside => {
                if let Some(block) = found.last_mut() {
                    block.body.push_str(line);
                    block.body.push('\n');
                }
            }
            None => {}
        }
    }
    found
}

/// The text without its fenced blocks; their lines are empty, so that line numbers stay.
fn prose(text: &str) -> String {
    let mut inside = false;
    let keep = |line: &str| {
        let fence = line.starts_with("```");
        inside ^= fence;
        if inside || fence { String::new() } else { line.to_owned() }
    };
    text.lines().map(keep).collect::<Vec<_>>().join("\n")
}

/// Where the links and images of a text lead.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let target = |it: &str| it.split_once(')').map(|(target, _)| target.to_owned());
    prose.split("](").skip(1).filter_map(target).collect()
}

/// The anchors of a page's headings, as mdBook writes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| {
        let heading = heading.trim().to_lowercase().replace(' ', "-");
        heading.chars().filter(|it| it.is_alphanumeric() || "-_".contains(*it)).collect()
    };
    prose(text).lines().filter(|it| it.starts_with('#')).map(|it| slug(it.trim_start_matches('#'))).collect()
}

/// Words of a table's head that announce measured numbers.
const MEASURED: [&str; 6] = ["before", "after", "seconds", "accuracy", "perplexity", "f1"];

/// Lines at which a table of measured numbers starts without a paragraph beside it that says where and when.
fn undated_tables(text: &str) -> Vec<usize> {
    let prose = prose(text);
    let lines: Vec<&str> = prose.lines().map(str::trim).collect();
    let starts =
        (0..lines.len()).filter(|at| lines[*at].starts_with('|') && (*at == 0 || !lines[at - 1].starts_with('|')));
    let is_dated =
        |paragraph: &str| paragraph.contains("Measured") && paragraph.contains("cores") && paragraph.contains(" 20");
    let undated = starts.filter(|start| {
        let head = lines[*start].to_lowercase();
        if !head.split('|').any(|cell| MEASURED.iter().any(|it| cell.split_whitespace().any(|word| word == *it))) {
            return false;
        }
        let before: Vec<&str> = lines[..*start]
            .iter()
            .rev()
            .skip_while(|it| it.is_empty())
            .take_while(|it| !it.is_empty())
            .copied()
            .collect();
        let after: Vec<&str> = lines[*start..]
            .iter()
            .skip_while(|it| it.starts_with('|'))
            .skip_while(|it| it.is_empty())
            .take_while(|it| !it.is_empty())
            .copied()
            .collect();
        let before: Vec<&str> = before.into_iter().rev().collect();
        !is_dated(&before.join(" ")) && !is_dated(&after.join(" "))
    });
    undated.map(|it| it + 1).collect()
}

/// The words of a command line, without the marks that a shell takes off. What it would fill in stays as it is.
fn words(line: &str) -> Vec<String> {
    let (mut found, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match quote {
            Some(mark) if letter == mark => quote = None,
            None if letter == '"' || letter == '\'' => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            None if letter.is_whitespace() => found.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    found.extend(word);
    // What is behind a pipe or goes to a file is not the command's.
    let end = found.iter().position(|it| [";", "|", ">", "2>&1", "&&"].contains(&it.as_str())).unwrap_or(found.len());
    found.truncate(end);
    found
}

/// `$rate`: what a loop of the shell fills in, where a number may be wanted.
fn is_loop_variable(word: &str) -> bool {
    word.strip_prefix('$').is_some_and(|it| !it.is_empty() && it.chars().all(|it| it.is_ascii_lowercase()))
}

pub(crate) fn check() -> Result<(), String> {
    let pages = book()?;
    let status = cargo(&["build", "-q", "--workspace", "--bin", "peft"]).status();
    if !status.is_ok_and(|it| it.success()) {
        return Err("the command does not build".to_owned());
    }
    let binary = beside_this("peft")?;
    let (mut wrong, mut commands, mut targets) = (Vec::new(), 0, 0);
    for page in &pages {
        let folder = page.path.parent().unwrap_or(Path::new(""));
        let mut complain = |what: String| wrong.push(format!("{}: {what}", page.path.display()));
        for block in blocks(&page.text) {
            for command in if block.has("sh") { block.commands() } else { Vec::new() } {
                commands += 1;
                // Options are parsed before help is given, so an unknown one or a bad value is an error.
                let given =
                    words(&command).into_iter().skip(1).map(|it| if is_loop_variable(&it) { "1".into() } else { it });
                let output = Command::new(&binary).args(given).arg("--help").output();
                let output = output.map_err(|error| format!("cannot start {}: {error}", binary.display()))?;
                if !output.status.success() {
                    let reason = String::from_utf8_lossy(&output.stderr);
                    complain(format!(
                        "line {}: `{command}`: {}",
                        block.line,
                        reason.lines().next().unwrap_or_default()
                    ));
                }
            }
            for included in block.body.split("{{#include ").skip(1).filter_map(|it| it.split_once("}}")) {
                targets += 1;
                let file = included.0.split(':').next().unwrap_or_default();
                if !folder.join(file).is_file() {
                    complain(format!("line {}: there is no {file} to include", block.line));
                }
            }
        }
        for link in links(&page.text).iter().filter(|it| !it.contains("://")) {
            targets += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if file.is_empty() { page.path.clone() } else { folder.join(file) };
            if !path.exists() {
                complain(format!("the link {link} leads nowhere"));
            } else if !anchor.is_empty() && !anchors(&read(&path)?).contains(anchor) {
                complain(format!("the link {link} names a heading that is not there"));
            }
        }
        for line in undated_tables(&page.text) {
            complain(format!("line {line}: the table does not say `Measured on N cores …` with a date"));
        }
    }
    println!("{} pages, {commands} commands, {targets} links", pages.len());
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// A program of the same profile as this one.
fn beside_this(name: &str) -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|error| format!("cannot tell where xtask lies: {error}"))?;
    Ok(own.with_file_name(format!("{name}{}", env::consts::EXE_SUFFIX)))
}

fn run_pages(options: &Options) -> Result<(), String> {
    let mut pages = book()?;
    if !options.pages.is_empty() {
        if let Some(lost) = options.pages.iter().find(|it| !pages.iter().any(|page| page.name() == **it)) {
            return Err(format!("there is no page `{lost}`"));
        }
        pages.retain(|page| page.name() == DATA_PAGE || options.pages.contains(&page.name()));
    }
    if !cargo(&["build", "--release", "-p", "peft"]).status().is_ok_and(|it| it.success()) {
        return Err("the command does not build".to_owned());
    }
    // `xtask` is built in the dev profile; the release folder lies beside that one.
    let programs = beside_this("peft")?;
    let programs = programs.parent().and_then(Path::parent).ok_or("xtask lies in no target folder")?.join("release");
    let out = env::temp_dir().join(format!("peft-book-{}", std::process::id()));
    fs::create_dir_all(&out).map_err(|error| format!("cannot make {}: {error}", out.display()))?;
    println!("results go to {}", out.display());

    let (mut done, mut skipped, mut failed) = (0, 0, Vec::new());
    for page in &pages {
        let blocks = blocks(&page.text);
        for (at, block) in blocks.iter().enumerate().filter(|(_, it)| it.has("run")) {
            let place = format!("{}.md line {}", page.name(), block.line);
            let missing = if block.body.contains("$ASSETS") && options.assets.is_none() {
                Some("--assets")
            } else if block.has("torch") && options.python.is_none() {
                Some("--python")
            } else {
                None
            };
            if let Some(missing) = missing {
                println!("skipped: {place} and what follows on its page, without {missing}");
                skipped += 1;
                break;
            }
            let script = if options.full { block.body.clone() } else { shortened(&block.body) };
            println!("\n=== {place}\n{script}");
            let started = Instant::now();
            let mut command = shell(&script, &programs, &out, options);
            let outcome = if block.has("fails") {
                must_fail(&mut command, blocks.get(at + 1).filter(|it| it.has("text")))
            } else {
                let status = command.status().map_err(|error| format!("cannot start bash: {error}"))?;
                if status.success() { Ok(()) } else { Err(status.to_string()) }
            };
            println!("{:.1} s", started.elapsed().as_secs_f64());
            done += 1;
            if let Err(reason) = outcome {
                failed.push(format!("{place}: {reason}"));
                break;
            }
        }
    }
    println!("\n{done} blocks run, {skipped} skipped, {} failed", failed.len());
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    fs::remove_dir_all(&out).map_err(|error| format!("cannot remove {}: {error}", out.display()))
}

/// Whether a command fails, and says what the block behind it shows.
fn must_fail(command: &mut Command, shown: Option<&Block>) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("cannot start bash: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    if output.status.success() {
        return Err("it was to fail".to_owned());
    }
    let mut lines = shown.map_or("", |it| it.body.as_str()).lines();
    lines.find(|line| !said.contains(line.trim())).map_or(Ok(()), |line| Err(format!("it does not say `{line}`")))
}

fn shell(script: &str, programs: &Path, out: &Path, options: &Options) -> Command {
    let mut path = vec![programs.to_path_buf()];
    path.extend(options.python.as_deref().and_then(Path::parent).map(Path::to_path_buf));
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(root()).env("OUT", out);
    command.env("PATH", env::join_paths(path).unwrap_or_default());
    if let Some(assets) = &options.assets {
        command.env("ASSETS", assets);
    }
    if !options.full {
        command.env("ROWS", SHORT_ROWS);
    }
    command
}

/// A block that takes seconds: two steps, and the quick demo.
fn shortened(body: &str) -> String {
    let mut parts = body.split("--steps ");
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        short.push_str("--steps ");
        short.push_str(SHORT_STEPS);
        short.push_str(part.trim_start_matches(|it: char| it.is_ascii_digit()));
    }
    short.replace("peft demo", "peft demo --quick")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A page\n\nSee [this](other.md#a-b) and ![curve](c.svg).\n\n```sh,run\npeft train --data \"a b\" \\\n    \
        --steps 250 | tail\necho hi\n```\n\n```text\n[no](link)\n```\n";

    #[test]
    fn a_page_is_taken_apart() {
        let found = blocks(PAGE);
        assert_eq!(found.len(), 2);
        assert!(found[0].has("sh") && found[0].has("run") && !found[1].has("run"));
        assert_eq!(found[0].line, 6);
        assert_eq!(links(PAGE), ["other.md#a-b", "c.svg"]);
        assert!(anchors("# A page\n## What `x` is, then\n").contains("what-x-is-then"));
        assert_eq!(words(&found[0].commands()[0]), ["peft", "train", "--data", "a b", "--steps", "250"]);
    }

    #[test]
    fn a_shortened_block_takes_two_steps() {
        assert_eq!(shortened("peft demo\nx --steps 250 --lr 1\n"), "peft demo --quick\nx --steps 2 --lr 1\n");
    }

    #[test]
    fn numbers_want_a_machine_and_a_date() {
        let table = "| method | after |\n| --- | --- |\n| a | 1 |\n";
        assert_eq!(undated_tables(table), [1]);
        assert_eq!(undated_tables(&format!("Measured on two cores, 24 November 2026.\n\n{table}")), [0; 0]);
        assert_eq!(undated_tables(&format!("{table}\nMeasured on two\ncores, 24 November 2026.\n")), [0; 0]);
        assert_eq!(undated_tables("| field | meaning |\n| --- | --- |\n"), [0; 0]);
    }

    #[test]
    fn one_of_two_things_is_done() {
        let parse = |line: &str| Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(parse("--check").is_ok_and(|it| it.check));
        let run = parse("--run --assets a --page lora --page data").unwrap();
        assert_eq!((run.assets, run.pages.len()), (Some(PathBuf::from("a")), 2));
        assert!(parse("").is_err() && parse("--check --run").is_err() && parse("--run --assets").is_err());
    }
}
