//! Rows as tables and as JSON.

use std::fs;

use super::runner::Outcome;
use super::shapes::{Peer, Shape, Tuner};

/// A field of a row.
#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(f64),
    Count(u64),
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

/// A list of objects, one a line.
pub(crate) fn json(rows: impl Iterator<Item = Vec<(&'static str, Value)>>) -> String {
    let object = |fields: Vec<(&'static str, Value)>| {
        let fields = fields.into_iter().map(|(name, value)| {
            let value = match value {
                Value::Text(text) => quoted(&text),
                Value::Number(number) if number.is_finite() => format!("{number:.6}"),
                Value::Number(_) => "null".to_owned(),
                Value::Count(count) => count.to_string(),
            };
            format!("\"{name}\": {value}")
        });
        format!("  {{{}}}", fields.collect::<Vec<_>>().join(", "))
    };
    format!("[\n{}\n]\n", rows.map(object).collect::<Vec<_>>().join(",\n"))
}

/// Text as JSON has it; what a program said in its last moments may hold anything.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char < ' ' => quoted += &format!("\\u{:04x}", u32::from(char)),
            char => quoted.push(char),
        }
    }
    quoted + "\""
}

/// One program alone.
#[derive(Debug)]
pub(crate) struct Measured {
    shape: &'static str,
    method: &'static str,
    backend: String,
    tokens_per_second: f64,
    seconds: f64,
    min_seconds: f64,
    peak_bytes: u64,
    load_seconds: f64,
    cold_start_seconds: f64,
}

impl Measured {
    pub(crate) fn new(shape: &Shape, method: &Tuner, backend: &str, outcome: &Outcome) -> Self {
        let seconds = median(&outcome.seconds);
        Self {
            shape: shape.name,
            method: method.name,
            backend: backend.to_owned(),
            tokens_per_second: (shape.batch * shape.seq) as f64 / seconds,
            seconds,
            min_seconds: least(&outcome.seconds),
            peak_bytes: outcome.peak_bytes,
            load_seconds: outcome.load,
            cold_start_seconds: outcome.cold_start,
        }
    }

    pub(crate) fn print_head() {
        println!(
            "{:14} {:13} {:>9} {:>10} {:>10} {:>9} {:>8} {:>12}",
            "shape", "method", "tokens/s", "s/step", "least", "peak GB", "load s", "cold start s"
        );
    }

    pub(crate) fn print(&self) {
        println!(
            "{:14} {:13} {:9.0} {:10.4} {:10.4} {:9.3} {:8.3} {:12.3}",
            self.shape,
            self.method,
            self.tokens_per_second,
            self.seconds,
            self.min_seconds,
            gigabytes(self.peak_bytes),
            self.load_seconds,
            self.cold_start_seconds
        );
    }

    pub(crate) fn fields(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("shape", text(self.shape)),
            ("backend", text(&self.backend)),
            ("method", text(self.method)),
            ("tokens_per_second", Value::Number(self.tokens_per_second)),
            ("seconds", Value::Number(self.seconds)),
            ("min_seconds", Value::Number(self.min_seconds)),
            ("peak_bytes", Value::Count(self.peak_bytes)),
            ("load_seconds", Value::Number(self.load_seconds)),
            ("cold_start_seconds", Value::Number(self.cold_start_seconds)),
        ]
    }
}

/// Two programs in turn. Seconds are medians of the same rounds.
#[derive(Debug)]
pub(crate) struct Compared {
    shape: &'static str,
    backend: String,
    method: &'static str,
    ours_seconds: f64,
    peer: &'static str,
    peer_seconds: f64,
    ratio: f64,
    /// Ratio of the quickest steps: what is left when nothing else runs.
    least_ratio: f64,
    ours_peak_bytes: u64,
    peer_peak_bytes: u64,
    cold_starts: [f64; 2],
}

impl Compared {
    pub(crate) fn new(
        shape: &Shape,
        method: &Tuner,
        backend: &str,
        peer: Peer,
        ours: &Outcome,
        theirs: &Outcome,
    ) -> Self {
        let (ours_seconds, peer_seconds) = (median(&ours.seconds), median(&theirs.seconds));
        Self {
            shape: shape.name,
            backend: backend.to_owned(),
            method: method.name,
            ours_seconds,
            peer: peer.name(),
            peer_seconds,
            ratio: ours_seconds / peer_seconds,
            least_ratio: least(&ours.seconds) / least(&theirs.seconds),
            ours_peak_bytes: ours.peak_bytes,
            peer_peak_bytes: theirs.peak_bytes,
            cold_starts: [ours.cold_start, theirs.cold_start],
        }
    }

    pub(crate) fn print_head() {
        println!(
            "{:13} {:12} {:11} {:>8} {:>8} {:>6} {:>6} {:>8} {:>8} {:>6} {:>6} {:>6}",
            "shape",
            "method",
            "peer",
            "ours s",
            "peer s",
            "ratio",
            "least",
            "ours GB",
            "peer GB",
            "ratio",
            "cold",
            "peer"
        );
    }

    pub(crate) fn print(&self) {
        println!(
            "{:13} {:12} {:11} {:8.4} {:8.4} {:6.2} {:6.2} {:8.3} {:8.3} {:6.2} {:6.1} {:6.1}",
            self.shape,
            self.method,
            self.peer,
            self.ours_seconds,
            self.peer_seconds,
            self.ratio,
            self.least_ratio,
            gigabytes(self.ours_peak_bytes),
            gigabytes(self.peer_peak_bytes),
            self.ours_peak_bytes as f64 / self.peer_peak_bytes as f64,
            self.cold_starts[0],
            self.cold_starts[1],
        );
    }

    pub(crate) fn fields(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("shape", text(self.shape)),
            ("backend", text(&self.backend)),
            ("method", text(self.method)),
            ("ours_seconds", Value::Number(self.ours_seconds)),
            ("peer", text(self.peer)),
            ("peer_seconds", Value::Number(self.peer_seconds)),
            ("ratio", Value::Number(self.ratio)),
            ("ours_peak_bytes", Value::Count(self.ours_peak_bytes)),
            ("peer_peak_bytes", Value::Count(self.peer_peak_bytes)),
        ]
    }
}

/// What the numbers were taken on.
pub(crate) fn machine(threads: usize) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let information = read("/proc/cpuinfo");
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |it| it.1);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().filter(|it| !it.is_empty()).unwrap_or("unknown");
    println!("{model}, {threads} threads each, load of the machine {load} before the start\n");
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::{METHODS, SHAPES};

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(quoted("a \"b\" c\\d\n"), r#""a \"b\" c\\d\u000a""#);
    }

    #[test]
    fn a_comparison_has_these_fields_and_no_others() {
        let outcome = |seconds: f64, peak_bytes| Outcome {
            load: 0.1,
            cold_start: 1.0,
            seconds: vec![seconds],
            peak_bytes,
            card_bytes: 0,
        };
        let row = Compared::new(&SHAPES[0], &METHODS[0], "flex", Peer::Full, &outcome(1.5, 10), &outcome(2.0, 20));
        let expected = concat!(
            "[\n  {\"shape\": \"gpt2-124m\", \"backend\": \"flex\", \"method\": \"lora-r8\", \"ours_seconds\": 1.500000, ",
            "\"peer\": \"full\", \"peer_seconds\": 2.000000, \"ratio\": 0.750000, \"ours_peak_bytes\": 10, ",
            "\"peer_peak_bytes\": 20}\n]\n"
        );
        assert_eq!(json([row.fields()].into_iter()), expected);
    }
}
