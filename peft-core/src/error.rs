//! One error type for everything that a user, a file or a network can cause.
//!
//! Every variant names the thing that is wrong and what to do next. Messages start in lower case and end without a
//! full stop, so that a caller can put them behind a colon.

use std::fmt;
use std::path::{Path, PathBuf};

/// Shorthand for results of this workspace.
pub type Result<T, E = PeftError> = std::result::Result<T, E>;

/// What can go wrong.
///
/// Its [`Debug`](fmt::Debug) form is the message, too: that is what a `main` prints which returns a [`Result`].
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PeftError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },

    /// A file is there, but its contents are not what they should be.
    #[error("{} is not usable: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the next step where there is one.
        reason: String,
    },

    /// A line of a data file is not usable.
    #[error("{}, line {line}: {reason}", path.display())]
    BadRow {
        /// The data file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },

    /// A configuration asks for something impossible, or for something that this version does not compute.
    #[error("`{field}` {reason}")]
    Config {
        /// The field, as it is spelled in the JSON file or on the command line.
        field: String,
        /// What is wrong with its value, and the next step where there is one.
        reason: String,
    },

    /// Targets that match no layer.
    #[error("{field} {targets} matches no layer of this model; {}", suggest(.nearest, .available))]
    NothingMatched {
        /// The configuration field: `target_modules`, `modules_to_save`, ….
        field: &'static str,
        /// The value of the field as written.
        targets: String,
        /// Existing names that are spelled almost like it.
        nearest: Vec<String>,
        /// Names that would match.
        available: Vec<String>,
    },

    /// Tensors of a file and parameters of a model do not go together.
    #[error("{what} does not fit the model\n{report}")]
    DoesNotFit {
        /// The thing that was read: `checkpoint DIR`, `adapter DIR`.
        what: String,
        /// Every key that is missing, unexpected or misshapen.
        report: LoadReport,
    },

    /// An adapter name that is not there, or is there already.
    #[error("{0}")]
    AdapterName(String),

    /// Training produced a number that is not one.
    #[error("{0}")]
    NotFinite(String),

    /// A card or its driver gave up on what it was told before.
    #[error("the device failed: {0}")]
    Device(String),

    /// The request is understood, but its inputs do not go together.
    #[error("{0}")]
    Invalid(String),

    /// Not there in this version.
    #[error("{what} is not supported yet: {reason}")]
    Unsupported {
        /// The thing asked for.
        what: String,
        /// Why, and what works instead.
        reason: String,
    },
}

impl PeftError {
    /// An [`PeftError::Io`] for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A [`PeftError::BadFile`].
    pub fn bad_file(path: impl AsRef<Path>, reason: impl fmt::Display) -> Self {
        Self::BadFile { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }

    /// A [`PeftError::BadRow`].
    pub fn bad_row(path: impl AsRef<Path>, line: usize, reason: impl fmt::Display) -> Self {
        Self::BadRow { path: path.as_ref().to_path_buf(), line, reason: reason.to_string() }
    }

    /// A [`PeftError::Config`].
    pub fn config(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Config { field: field.into(), reason: reason.to_string() }
    }

    /// The same error, said of the file that it comes from. One that names a file already stays as it is.
    pub fn in_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            Self::Config { .. } | Self::Invalid(_) | Self::NotFinite(_) | Self::NothingMatched { .. } => {
                Self::bad_file(path, self)
            }
            Self::Unsupported { what, reason } => {
                Self::Unsupported { what: format!("{what} of {}", path.as_ref().display()), reason }
            }
            other => other,
        }
    }

    /// A [`PeftError::Unsupported`].
    pub fn unsupported(what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Unsupported { what: what.into(), reason: reason.to_string() }
    }
}

impl fmt::Debug for PeftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Everything that keeps a file from fitting a model, collected before anything is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Keys that the model needs and the file lacks.
    pub missing: Vec<String>,
    /// Keys of the file that the model has no place for.
    pub unexpected: Vec<String>,
    /// Keys on both sides with unlike shapes: key, shape in the file, shape in the model.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl LoadReport {
    /// Whether file and model go together.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

/// Lists of a report are cut here: the first rows say what is wrong, and a model has thousands.
const REPORT_ROWS: usize = 12;

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<String> = Vec::new();
        let cut = |label: &str, list: Vec<String>, rows: &mut Vec<String>| {
            let more = list.len().saturating_sub(REPORT_ROWS);
            rows.extend(list.into_iter().take(REPORT_ROWS).map(|it| format!("  {label:<12}{it}")));
            if more > 0 {
                rows.push(format!("  {:<12}… and {more} more", ""));
            }
        };
        let misshapen =
            self.misshapen.iter().map(|(key, file, model)| format!("{key}: file {file:?}, model {model:?}")).collect();
        cut("wrong shape", misshapen, &mut rows);
        cut("missing", self.missing.clone(), &mut rows);
        let unexpected = self
            .unexpected
            .iter()
            .map(|key| match nearest(key, self.missing.iter().map(String::as_str)).first() {
                Some(near) => format!("{key}: did you mean {near}?"),
                None => key.clone(),
            })
            .collect();
        cut("unexpected", unexpected, &mut rows);
        f.write_str(&rows.join("\n"))
    }
}

/// A text from elsewhere as it may be shown on a terminal: control characters, by which a file or a server could move the
/// cursor or rewrite what is there, are spelled out. Lines and tabs stay.
pub fn printable(text: &str) -> String {
    // Beside the controls proper, those that turn the direction of writing.
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if c.is_control() || turns(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// A name from a file as a message shows it: a few words long, in one line, control characters spelled out.
pub fn brief(name: &str) -> String {
    const LONGEST: usize = 40;
    let spelled = |c: char| match c {
        '\n' | '\t' => c.escape_default().to_string(),
        c => c.to_string(),
    };
    let mut shown: String = name.chars().take(LONGEST).map(spelled).collect();
    if name.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    printable(&shown)
}

/// The names of `candidates` that are spelled almost like `name`, best first.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> = candidates
        .into_iter()
        .map(|it| (edit_distance(name, it), it))
        .filter(|(distance, it)| *distance <= name.len().max(it.len()) / 3)
        .collect();
    scored.sort();
    scored.dedup();
    scored.into_iter().take(3).map(|(_, it)| it.to_owned()).collect()
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn suggest(nearest: &[String], available: &[String]) -> String {
    if !nearest.is_empty() {
        // Two names may be near to one.
        let unlike = nearest.iter().enumerate().filter(|(at, it)| !nearest[..*at].contains(it));
        let unlike: Vec<&str> = unlike.map(|(_, it)| it.as_str()).collect();
        return format!("did you mean {}?", unlike.join(", "));
    }
    let shown: Vec<&str> = available.iter().take(REPORT_ROWS).map(String::as_str).collect();
    match available.len() {
        0 => "it has no layer that can be adapted".to_owned(),
        n if n > shown.len() => format!("it has {} and {} more", shown.join(", "), n - shown.len()),
        _ => format!("it has {}", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_the_misspelt_name_and_nothing_far() {
        let names = ["q_proj", "k_proj", "o_proj", "gate_proj"];
        assert_eq!(nearest("qproj", names)[0], "q_proj");
        assert!(nearest("attention", names).is_empty());
    }

    /// What the standard library prints of the error that `main` returns.
    #[test]
    fn a_main_that_returns_an_error_prints_its_message() {
        let error = PeftError::io("read", "a/b")(std::io::Error::from(std::io::ErrorKind::NotFound));
        assert_eq!(format!("{error:?}"), "cannot read a/b: entity not found");
    }

    #[test]
    fn what_moves_a_cursor_is_spelled_out() {
        assert_eq!(printable("a\u{1b}[2Jb\r\u{9b}\u{202e}ü\n\t"), "a\\u{1b}[2Jb\\r\\u{9b}\\u{202e}ü\n\t");
    }

    #[test]
    fn a_name_from_a_file_is_short_and_one_line() {
        assert_eq!(brief("text"), "text");
        assert_eq!(brief("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(brief(&"é".repeat(200)), "é".repeat(40) + "…");
    }

    #[test]
    fn an_error_is_said_of_its_file_once() {
        let of = |error: PeftError| error.in_file("a/b.json").in_file("c").to_string();
        assert_eq!(of(PeftError::config("r", "is 0")), "a/b.json is not usable: `r` is 0");
        assert_eq!(of(PeftError::NotFinite("the loss is NaN".into())), "a/b.json is not usable: the loss is NaN");
        assert_eq!(of(PeftError::unsupported("DoRA", "no")), "DoRA of a/b.json of c is not supported yet: no");
    }

    #[test]
    fn a_report_names_every_kind_of_misfit() {
        let report = LoadReport {
            missing: vec!["layers.0.q_proj.lora_A.weight".into()],
            unexpected: vec!["layers.0.qproj.lora_A.weight".into()],
            misshapen: vec![("head.weight".into(), vec![2, 3], vec![3, 2])],
        };
        let text = report.to_string();
        assert!(text.contains("did you mean layers.0.q_proj.lora_A.weight?"), "{text}");
        assert!(text.contains("file [2, 3], model [3, 2]"), "{text}");
        assert!(!report.is_clean());
    }
}
