//! The support table of the book (`docs/src/support.md`), made from the tests that ran.
//!
//! A parity test is named after a recorded case. The files of the case say which cell it is about: the model's
//! `config.json` the row, `case.json` the column, `adapter_config.json` the letter. So a new row of a test table reaches
//! the page by itself, and a letter without a test that passed cannot stay there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{cargo, read, root, run_and_keep};

pub(crate) const USAGE: &str = "\
usage: cargo xtask support [--check] [--from FILE]

  writes the support table of docs/src/support.md; runs the parity tests for it
    --check      compares instead of writing
    --from FILE  takes what `cargo test --workspace` printed from a file instead of running it";

/// A column's task, its title, and its cells in PEFT's support tables (PEFT 0.6.2): model types with letters of
/// [`METHODS`].
type Column = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const TASKS: [Column; 12] = [
    (
        "causal-lm",
        "causal LM",
        &[
            ("gpt2", "LPTSI"),
            ("bloom", "LPTSI"),
            ("opt", "LPTSI"),
            ("gpt_neo", "LPTSI"),
            ("gptj", "LPTSI"),
            ("gpt_neox", "LPTSI"),
            ("llama", "LPTSI"),
            ("chatglm", "LPTSI"),
        ],
    ),
    ("seq2seq-lm", "sequence-to-sequence LM", &[("t5", "LPTSI"), ("bart", "LPTSI")]),
    (
        "seq-cls",
        "sequence classification",
        &[
            ("bert", "LPTSI"),
            ("roberta", "LPTSI"),
            ("gpt2", "LPTS"),
            ("bloom", "LPTS"),
            ("opt", "LPTS"),
            ("gpt_neo", "LPTS"),
            ("gptj", "LPTS"),
            ("deberta", "LTS"),
            ("deberta-v2", "LTS"),
        ],
    ),
    (
        "token-cls",
        "token classification",
        &[
            ("bert", "LP"),
            ("roberta", "LP"),
            ("gpt2", "LP"),
            ("bloom", "LP"),
            ("opt", "LP"),
            ("gpt_neo", "LP"),
            ("gptj", "LP"),
            ("deberta", "L"),
            ("deberta-v2", "L"),
        ],
    ),
    ("question-answering", "question answering", &[]),
    ("masked-lm", "masked LM", &[]),
    ("feature-extraction", "feature extraction", &[]),
    ("speech-to-text", "speech recognition", &[]),
    ("text-to-image", "text-to-image", &[("stable-diffusion", "L")]),
    ("image-cls", "image classification", &[("vit", "L"), ("swin", "L")]),
    ("image-to-text", "image-to-text", &[("blip-2", "L")]),
    ("semantic-seg", "semantic segmentation", &[("segformer", "L")]),
];

/// The methods that have a letter, in the order of the letters in a cell.
const METHODS: [(&str, char); 7] = [
    ("LORA", 'L'),
    ("PREFIX_TUNING", 'P'),
    ("P_TUNING", 'T'),
    ("PROMPT_TUNING", 'S'),
    ("IA3", 'I'),
    ("MULTITASK_PROMPT_TUNING", 'M'),
    ("ADAPTION_PROMPT", 'A'),
];

/// The page of the book that holds the table.
const PAGE: &str = "docs/src/support.md";
const BEGIN: &str = "<!-- from here on written by `cargo xtask support` -->";
const END: &str = "<!-- as far as here -->";

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let (mut check, mut from) = (false, None);
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--check" => check = true,
            "--from" => from = Some(words.next().ok_or("`--from` needs a file")?),
            other => return Err(format!("`{other}` is unknown\n\n{USAGE}")),
        }
    }
    let printed = match from {
        Some(file) => read(Path::new(file))?,
        None => {
            let arguments =
                ["test", "--workspace", "--no-fail-fast", "--test", "main", "--", "parity::", "reference::"];
            let (printed, status) = run_and_keep(&mut cargo(&arguments))?;
            // A test that failed is a blank; a test program that did not even start says nothing about its cells.
            if !status.success() && failed(&printed).is_empty() {
                return Err(format!("the tests did not run: {status}"));
            }
            printed
        }
    };
    if check {
        return compare(&printed);
    }
    let path = root().join(PAGE);
    let page = read(&path)?;
    let new = replaced(&page, &table(&printed)?)?;
    if new != page {
        fs::write(&path, new).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    let failed = failed(&printed);
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("written with blanks, for these failed: {}", failed.join(", ")))
    }
}

/// Whether the page says what the tests say that printed this.
pub(crate) fn compare(printed: &str) -> Result<(), String> {
    let page = read(&root().join(PAGE))?;
    let new = replaced(&page, &table(printed)?)?;
    let differences = differences(&page, &new);
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!("{PAGE} and the tests differ; run `cargo xtask support`\n{}", differences.join("\n")))
}

fn differences(old: &str, new: &str) -> Vec<String> {
    let only = |these: &str, those: &str, sign: char| {
        let those: BTreeSet<&str> = those.lines().collect();
        these.lines().filter(|it| !those.contains(it)).map(|it| format!("{sign} {it}")).collect::<Vec<_>>()
    };
    [only(old, new, '-'), only(new, old, '+')].concat()
}

/// The text with another table between the marks.
fn replaced(page: &str, table: &str) -> Result<String, String> {
    let parts = page.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = parts.ok_or_else(|| format!("{PAGE} lacks the lines `{BEGIN}` and `{END}`"))?;
    Ok(format!("{head}{BEGIN}\n\n{table}\n{END}{tail}"))
}

/// What is said of one model type and one task.
#[derive(Debug, Default)]
struct Cell {
    /// `peft_type` → whether a case compares all that counts, and whether no case of this cell is without a passed test.
    methods: BTreeMap<String, (bool, bool)>,
    /// The same of the model without an adapter.
    base: Option<bool>,
}

impl Cell {
    fn has(&self, letter: char) -> bool {
        let method = METHODS.iter().find(|it| it.1 == letter).and_then(|it| self.methods.get(it.0));
        method == Some(&(true, true))
    }

    /// Letters in order, and a dot for one that the reference's table has.
    fn show(&self, wanted: &str) -> String {
        let letter = |(_, letter): &(&str, char)| match (self.has(*letter), wanted.contains(*letter)) {
            (true, _) => Some(letter.to_string()),
            (false, true) => Some("·".to_owned()),
            (false, false) => None,
        };
        let letters: Vec<String> = METHODS.iter().filter_map(letter).collect();
        if letters.is_empty() && self.base == Some(true) { "base".to_owned() } else { letters.join(" ") }
    }
}

/// The cells that the recorded cases are about, by task and model type.
type Cells = BTreeMap<(String, String), Cell>;

fn table(printed: &str) -> Result<String, String> {
    Ok(show(&cells(&root().join("fixtures"), &passed(printed))?))
}

/// Names of the cases whose parity test passed, and did not fail elsewhere.
fn passed(printed: &str) -> BTreeSet<&str> {
    results(printed).filter(|(_, result)| *result == "ok").map(|(name, _)| case_of(name)).collect()
}

fn failed(printed: &str) -> Vec<&str> {
    results(printed).filter(|(_, result)| *result == "FAILED").map(|(name, _)| name).collect()
}

/// The tests that are named after cases, and how they ended.
fn results(printed: &str) -> impl Iterator<Item = (&str, &str)> {
    let results = printed.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
    results.filter(|(name, _)| name.starts_with("parity::") || name.starts_with("reference::"))
}

fn case_of(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

fn cells(fixtures: &Path, passed: &BTreeSet<&str>) -> Result<Cells, String> {
    let mut cells = Cells::new();
    for folder in folders(&fixtures.join("cases"))? {
        let passed = folder.file_name().and_then(|it| it.to_str()).is_some_and(|it| passed.contains(it));
        let case = read(&folder.join("case.json"))?;
        let config = fixtures.join("models").join(field(&case, "model", &folder)?).join("config.json");
        let (mut task, config_json) = (field(&case, "task", &folder)?, read(&config)?);
        let counts = is_whole(&folder, &task)?;
        // Models of diffusers name a class. PEFT's table counts pictures by the pipeline that the noise predictor is of.
        let class = field(&config_json, "_class_name", &config);
        let mut model_type = field(&config_json, "model_type", &config).or(class)?;
        if model_type == "UNet2DConditionModel" {
            (task, model_type) = ("text-to-image".to_owned(), "stable-diffusion".to_owned());
        }
        let cell = cells.entry((task, model_type)).or_default();
        let adapters = folders(&folder)?;
        if adapters.is_empty() {
            cell.base = Some(passed && cell.base.unwrap_or(true));
        }
        for adapter in adapters {
            let method = field(&read(&adapter.join("adapter_config.json"))?, "peft_type", &adapter)?;
            let (whole, all) = cell.methods.entry(method).or_insert((false, true));
            *whole |= counts;
            *all &= passed;
        }
    }
    Ok(cells)
}

/// Whether a case compares loss and gradients; features have none.
fn is_whole(folder: &Path, task: &str) -> Result<bool, String> {
    let path = folder.join("expected.safetensors");
    let bytes = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    // The header of a safetensors file: its length, then JSON with the names of the tensors.
    let length = bytes.first_chunk().map(|it| u64::from_le_bytes(*it) as usize);
    let header = length.and_then(|it| bytes.get(8..8 + it)).ok_or_else(|| format!("{} is cut off", path.display()))?;
    let header = String::from_utf8_lossy(header);
    Ok(task == "feature-extraction" || (header.contains("\"loss\"") && header.contains("\"grad.")))
}

fn folders(path: &Path) -> Result<Vec<std::path::PathBuf>, String> {
    let entries = fs::read_dir(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut folders: Vec<_> = entries.filter_map(|it| Some(it.ok()?.path())).filter(|it| it.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

/// A text of the outermost object. The files are written by our recorder and by Python's libraries, with a field a line.
fn field(json: &str, name: &str, path: &Path) -> Result<String, String> {
    let start = format!("  \"{name}\": \"");
    let value = json.lines().find_map(|line| line.strip_prefix(&start)?.split('"').next());
    value.map(str::to_owned).ok_or_else(|| format!("{}: no `{name}`", path.display()))
}

fn line(name: &str, row: &[String]) -> String {
    format!("| {name} | {} |\n", row.join(" | ")).replace("  ", " ")
}

fn show(cells: &Cells) -> String {
    let nothing = Cell::default();
    let cell = |task: &str, model: &str| cells.get(&(task.to_owned(), model.to_owned())).unwrap_or(&nothing);
    let wanted = |task: usize, model: &str| TASKS[task].2.iter().find(|it| it.0 == model).map_or("", |it| it.1);
    let known = |task: &str| cells.keys().any(|it| it.0 == task);

    let columns: Vec<usize> = (0..TASKS.len()).filter(|it| known(TASKS[*it].0)).collect();
    let (mut reached, mut all, mut counts, mut absent) = (0, 0, Vec::new(), Vec::new());
    for (task, title, models) in TASKS {
        let of: usize = models.iter().map(|it| it.1.len()).sum();
        let have: usize =
            models.iter().map(|(model, it)| it.chars().filter(|it| cell(task, model).has(*it)).count()).sum();
        (reached, all) = (reached + have, all + of);
        match known(task) {
            true => counts.push(if of > 0 { format!("{have} of {of}") } else { String::new() }),
            false => absent.push(format!("{title} ({of})")),
        }
    }
    let mut text = format!("{reached} of the {all} cells of PEFT's support tables.");
    if !absent.is_empty() {
        text += &format!(" Not started: {}.", absent.join(", "));
    }
    text += "\n\n";

    // The models of PEFT's tables first, in their order, then the others by name.
    let mut models: Vec<&str> = Vec::new();
    let theirs = columns.iter().flat_map(|it| TASKS[*it].2.iter().map(|it| it.0));
    for model in theirs.chain(cells.keys().map(|it| it.1.as_str()).collect::<BTreeSet<_>>()) {
        if !models.contains(&model) {
            models.push(model);
        }
    }
    let titles: Vec<&str> = columns.iter().map(|it| TASKS[*it].1).collect();
    text += &format!("| model type | {} |\n|{}\n", titles.join(" | "), " --- |".repeat(columns.len() + 1));
    for model in models {
        let row: Vec<String> = columns.iter().map(|it| cell(TASKS[*it].0, model).show(wanted(*it, model))).collect();
        text += &line(&format!("`{model}`"), &row);
    }
    text + &line("cells reached", &counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
running 4 tests
test parity::decoders::opt_lora ... ok
test parity::decoders::opt_prefix ... FAILED
test laws::lora::opt_ia3 ... ok
test reference::decoders::opt_base ... ok
test reference::decoders::opt_features ... ignored
test peft-core/src/lib.rs - parity (line 3) ... ok
";

    fn cell(methods: &[(&str, bool, bool)]) -> Cell {
        let methods = methods.iter().map(|(name, whole, all)| ((*name).to_owned(), (*whole, *all))).collect();
        Cell { methods, base: None }
    }

    #[test]
    fn results_are_those_of_tests_named_after_cases() {
        assert_eq!(passed(PRINTED), BTreeSet::from(["opt_lora", "opt_base"]));
        assert_eq!(failed(PRINTED), ["parity::decoders::opt_prefix"]);
    }

    /// A case without loss and gradients is not enough, and one that failed takes the letter away.
    #[test]
    fn a_letter_needs_a_whole_case_and_no_failure() {
        let methods =
            [("LORA", true, true), ("IA3", false, true), ("PREFIX_TUNING", true, false), ("LOHA", true, true)];
        assert_eq!(cell(&methods).show("LPTSI"), "L · · · ·");
        assert_eq!(cell(&methods).show(""), "L");
        assert_eq!(Cell { base: Some(true), ..Cell::default() }.show(""), "base");
        assert_eq!(Cell { base: Some(false), ..Cell::default() }.show("LP"), "· ·");
    }

    #[test]
    fn cells_are_counted_and_new_models_come_last() {
        let mut cells = Cells::new();
        for model in ["qwen9", "gpt2"] {
            cells.insert(("causal-lm".to_owned(), model.to_owned()), cell(&[("LORA", true, true)]));
        }
        let text = show(&cells);
        let start = "1 of the 107 cells of PEFT's support tables. Not started: sequence-to-sequence LM (";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains("| model type | causal LM |\n| --- | --- |\n| `gpt2` | L · · · · |\n"), "{text}");
        let end = "| `chatglm` | · · · · · |\n| `qwen9` | L |\n| cells reached | 1 of 40 |\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn every_recorded_case_says_its_cell() {
        let none = cells(&root().join("fixtures"), &BTreeSet::new()).unwrap();
        assert!(none.len() > 30 && none.values().all(|it| it.show("").is_empty()));
        let known = |task: &str| TASKS.iter().any(|it| it.0 == task);
        assert!(none.keys().all(|(task, _)| known(task)), "a task without a column");
    }

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(replaced(&page, "new\n").unwrap(), format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert!(replaced("a", "new").unwrap_err().contains("lacks"));
        assert_eq!(differences("a\nb\n", "a\nc\n"), ["- b", "+ c"]);
    }
}
