//! What came out, as Markdown for people and JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::plan::{Program, Work};
use super::torch::Peaks;
use crate::bench::report::{self, Value};

/// A program at the work of a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    /// Median of the steps that count.
    pub(crate) seconds: f64,
    pub(crate) steps: usize,
    /// The process's own memory at its peak.
    pub(crate) host_bytes: u64,
    /// What the program had reserved on the card; 0 where it does not say.
    pub(crate) card_bytes: u64,
    /// What the driver saw in use on the card beyond what was in use before; 0 where it does not say.
    pub(crate) seen_bytes: u64,
    pub(crate) cold_start: f64,
    pub(crate) first_loss: f64,
    pub(crate) trainable: u64,
    /// Operations of a step.
    pub(crate) flops: Option<f64>,
    /// Something about it is doubtful.
    pub(crate) doubt: Option<String>,
}

impl Measured {
    /// On the card as its driver sees it, else as the program knows it, else of the processor.
    fn peak_bytes(&self) -> u64 {
        [self.seen_bytes, self.card_bytes, self.host_bytes].into_iter().find(|it| *it > 0).unwrap_or(0)
    }

    fn share(&self, peak: Option<f64>) -> Option<f64> {
        Some(self.flops? / self.seconds / peak?)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    /// The time was over before.
    Waiting,
    Measured(Measured),
    /// And why.
    Failed(String),
}

#[derive(Debug)]
pub(crate) struct Table {
    /// What the numbers were taken on, and what was found out first.
    pub(crate) about: Vec<String>,
    pub(crate) peaks: Peaks,
    /// Columns and their names.
    pub(crate) programs: Vec<(Program, String)>,
    pub(crate) lines: Vec<(Work, Vec<Cell>)>,
}

impl Table {
    pub(crate) fn new(works: Vec<Work>, programs: Vec<(Program, String)>) -> Self {
        let lines = works.into_iter().map(|it| (it, vec![Cell::Waiting; programs.len()])).collect();
        Self { about: Vec::new(), peaks: Peaks::default(), programs, lines }
    }

    fn column(&self, program: Program) -> Option<usize> {
        self.programs.iter().position(|it| it.0 == program)
    }

    pub(crate) fn cell(&mut self, line: usize, program: Program) -> &mut Cell {
        let column = self.column(program).unwrap_or_else(|| unreachable!("{program:?} has a column"));
        &mut self.lines[line].1[column]
    }

    /// How many of our own measurements there are.
    pub(crate) fn ours(&self) -> usize {
        let is_ours = |at: usize| matches!(self.programs[at].0, Program::Ours(_));
        let cells = self.lines.iter().flat_map(|it| it.1.iter().enumerate());
        cells.filter(|(at, cell)| is_ours(*at) && matches!(cell, Cell::Measured(_))).count()
    }

    /// `card.md` and `card.json` in the folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), String> {
        for (name, text) in [("card.md", self.markdown()), ("card.json", self.json())] {
            let path = folder.join(name);
            // Under another name first: whoever looks while it is written finds a whole one.
            let part = folder.join(format!("{name}.part"));
            let written = fs::write(&part, text).and_then(|()| fs::rename(&part, &path));
            written.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        Ok(())
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("# Measured on a card\n\n");
        for line in &self.about {
            let _ = writeln!(text, "- {line}");
        }
        for (name, peak) in [("bf16", self.peaks.bf16), ("tf32", self.peaks.tf32), ("f32", self.peaks.f32)] {
            if let Some(peak) = peak {
                let _ = writeln!(text, "- peak of torch's products in {name}: {:.2} TFLOP/s", peak / 1e12);
            }
        }
        text += "\nA cell has tokens a second, the peak of memory in GB, and the share of the measured peak of products: that of \
            bf16, or of tf32 where the type is f32. Dashes stand for what is not known, dots for what there was no time for. \
            Behind the numbers in brackets are reasons.\n\n";
        let mut notes = Notes::default();
        let mut head = vec!["shape", "batch", "LoRA", "type"];
        head.extend(self.programs.iter().map(|it| it.1.as_str()));
        let pairs = self.pairs();
        let versus: Vec<String> = pairs.iter().map(|it| format!("{} : torch", self.programs[it.0].1)).collect();
        head.extend(versus.iter().map(String::as_str));
        let _ = writeln!(text, "| {} |\n|{}", head.join(" | "), " --- |".repeat(head.len()));
        for (work, cells) in &self.lines {
            let (shape, bf16) = (&work.shape, work.method.bf16);
            let mut row = vec![
                shape.name.to_owned(),
                format!("{} × {}", shape.batch, shape.seq),
                work.method.name.to_owned(),
                if bf16 { "bf16" } else { "f32" }.to_owned(),
            ];
            row.extend(cells.iter().map(|cell| self.show(work, cell, &mut notes)));
            row.extend(pairs.iter().map(|(ours, torch)| versus_torch(&cells[*ours], &cells[*torch])));
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        if !pairs.is_empty() {
            text += "\nThe last columns: tokens a second of ours by those of torch, and memory by memory.\n";
        }
        for (at, note) in notes.0.iter().enumerate() {
            let _ = write!(text, "\n[{}] {note}\n", at + 1);
        }
        text
    }

    /// Columns of ours, each with that of torch.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let Some(torch) = self.column(Program::Torch) else { return Vec::new() };
        (0..self.programs.len())
            .filter(|it| matches!(self.programs[*it].0, Program::Ours(_)))
            .map(|it| (it, torch))
            .collect()
    }

    fn show(&self, work: &Work, cell: &Cell, notes: &mut Notes) -> String {
        match cell {
            Cell::Waiting => "…".to_owned(),
            Cell::Failed(reason) => format!("failed [{}]", notes.number(reason)),
            Cell::Measured(it) => {
                let tokens = (work.shape.batch * work.shape.seq) as f64 / it.seconds;
                let share = it.share(self.peaks.of(work.method.bf16));
                let share = share.map_or("–".to_owned(), |it| format!("{:.1} %", 100.0 * it));
                let doubt = it.doubt.as_ref().map(|it| format!(" [{}]", notes.number(it))).unwrap_or_default();
                format!("{}, {:.2} GB, {share}{doubt}", thousands(tokens), it.peak_bytes() as f64 / 1e9)
            }
        }
    }

    /// A cell an object.
    pub(crate) fn json(&self) -> String {
        let cells = self.lines.iter().flat_map(|(work, cells)| cells.iter().enumerate().map(move |it| (work, it)));
        report::json(cells.map(|(work, (at, cell))| {
            let text = |it: &str| Value::Text(it.to_owned());
            let mut fields = vec![
                ("shape", text(work.shape.name)),
                ("batch", Value::Count(work.shape.batch as u64)),
                ("seq", Value::Count(work.shape.seq as u64)),
                ("method", text(work.method.name)),
                ("type", text(if work.method.bf16 { "bf16" } else { "f32" })),
                ("program", text(&self.programs[at].1)),
            ];
            match cell {
                Cell::Waiting => fields.push(("outcome", text("no time"))),
                Cell::Failed(reason) => fields.extend([("outcome", text("failed")), ("reason", text(reason))]),
                Cell::Measured(it) => {
                    let peak = self.peaks.of(work.method.bf16);
                    let number = |it: Option<f64>| Value::Number(it.unwrap_or(f64::NAN));
                    fields.extend([
                        ("outcome", text("measured")),
                        ("tokens_per_second", Value::Number((work.shape.batch * work.shape.seq) as f64 / it.seconds)),
                        ("seconds", Value::Number(it.seconds)),
                        ("steps", Value::Count(it.steps as u64)),
                        ("peak_bytes", Value::Count(it.peak_bytes())),
                        ("seen_bytes", Value::Count(it.seen_bytes)),
                        ("card_bytes", Value::Count(it.card_bytes)),
                        ("host_bytes", Value::Count(it.host_bytes)),
                        ("flops", number(it.flops)),
                        ("share_of_peak", number(it.share(peak))),
                        ("cold_start_seconds", Value::Number(it.cold_start)),
                        ("first_loss", Value::Number(it.first_loss)),
                        ("trainable", Value::Count(it.trainable)),
                    ]);
                    fields.extend(it.doubt.iter().map(|it| ("doubt", text(it))));
                }
            }
            fields
        }))
    }
}

fn versus_torch(ours: &Cell, torch: &Cell) -> String {
    let (Cell::Measured(ours), Cell::Measured(torch)) = (ours, torch) else { return "–".to_owned() };
    let memory = ours.peak_bytes() as f64 / torch.peak_bytes() as f64;
    format!("{:.2} ×, {memory:.2} × memory", torch.seconds / ours.seconds)
}

/// Reasons, each once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn number(&mut self, note: &str) -> usize {
        let at = self.0.iter().position(|it| it == note).unwrap_or_else(|| {
            self.0.push(note.to_owned());
            self.0.len() - 1
        });
        at + 1
    }
}

/// A whole number with commas.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::options::Shapes;
    use crate::card::plan;

    fn measured(seconds: f64, seen_bytes: u64) -> Measured {
        Measured {
            seconds,
            steps: 3,
            host_bytes: 5_000_000_000,
            card_bytes: 0,
            seen_bytes,
            cold_start: 1.0,
            first_loss: 4.6,
            trainable: 10,
            flops: Some(1e12),
            doubt: None,
        }
    }

    fn table() -> Table {
        let programs = plan::programs(1, true);
        let names = ["cuda", "torch", "torch compiled"].map(str::to_owned);
        let works = plan::works(Shapes::Full).into_iter().take(2).collect();
        let mut table = Table::new(works, programs.into_iter().zip(names).collect());
        table.about.push("a card".to_owned());
        table.peaks = Peaks { bf16: Some(8e12), f32: Some(1e12), tf32: Some(4e12) };
        table
    }

    fn line(table: &Table, at: usize) -> String {
        let text = table.markdown();
        text.lines().filter(|it| it.starts_with("| gpt2-124m")).nth(at).expect("a line").to_owned()
    }

    #[test]
    fn a_line_has_what_was_measured_what_failed_and_what_waits() {
        let mut table = table();
        assert_eq!(line(&table, 0), "| gpt2-124m | 4 × 512 | r 8 | f32 | … | … | … | – |");
        *table.cell(0, Program::Ours(0)) = Cell::Measured(measured(0.5, 2_000_000_000));
        *table.cell(0, Program::Torch) = Cell::Measured(measured(1.0, 0));
        *table.cell(0, Program::TorchCompiled) = Cell::Failed("no compiler".to_owned());
        *table.cell(1, Program::TorchCompiled) = Cell::Failed("no compiler".to_owned());
        let doubtful = Measured { doubt: Some("another loss".to_owned()), ..measured(0.5, 1_000_000_000) };
        *table.cell(1, Program::Ours(0)) = Cell::Measured(doubtful);
        // 1e12 operations in half a second, of 4e12 in tf32 and 8e12 in bf16.
        assert_eq!(
            line(&table, 0),
            "| gpt2-124m | 4 × 512 | r 8 | f32 | 4,096, 2.00 GB, 50.0 % | 2,048, 5.00 GB, 25.0 % | failed [1] | 2.00 ×, 0.40 × memory |"
        );
        assert_eq!(
            line(&table, 1),
            "| gpt2-124m | 4 × 512 | r 8 | bf16 | 4,096, 1.00 GB, 25.0 % [2] | … | failed [1] | – |"
        );
        let text = table.markdown();
        assert!(text.contains("- a card\n- peak of torch's products in bf16: 8.00 TFLOP/s\n"), "{text}");
        assert!(text.ends_with("\n[1] no compiler\n\n[2] another loss\n"), "{text}");
        assert_eq!(table.ours(), 2);
    }

    #[test]
    fn without_a_peak_there_is_no_share() {
        let mut table = table();
        table.peaks = Peaks::default();
        *table.cell(0, Program::Ours(0)) = Cell::Measured(measured(0.5, 0));
        assert!(line(&table, 0).contains("| 4,096, 5.00 GB, – |"));
        assert!(table.json().contains("\"share_of_peak\": null"));
    }

    #[test]
    fn every_cell_is_an_object() {
        let mut table = table();
        *table.cell(0, Program::Torch) = Cell::Failed("it said \"no\"".to_owned());
        *table.cell(0, Program::Ours(0)) = Cell::Measured(measured(0.5, 7));
        let json = table.json();
        assert_eq!(json.lines().count(), 2 + 6);
        assert!(json.contains(r#""program": "torch", "outcome": "failed", "reason": "it said \"no\"""#), "{json}");
        assert!(
            json.contains(r#""tokens_per_second": 4096.000000, "seconds": 0.500000, "steps": 3, "peak_bytes": 7"#),
            "{json}"
        );
        assert!(json.contains(r#""outcome": "no time""#), "{json}");
    }

    #[test]
    fn numbers_have_commas() {
        assert_eq!([0.4, 999.0, 1000.0, 1234567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
