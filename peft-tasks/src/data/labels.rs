//! Labels: names or numbers in a file, class ids or values for a model.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use peft_core::{Labels, PeftError, Result, brief};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::dataset::{Dataset, Row, kind, quoted};
use crate::data::row::listed;

/// The target of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// One of the classes.
    Class(usize),
    /// Any number of the classes, ascending.
    Classes(Vec<usize>),
    /// A number to predict.
    Value(f32),
}

/// The targets of a batch, in the form that a loss takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Class ids, `[batch]`.
    Classes(Vec<i64>),
    /// 1 for every class that applies, `[batch, classes]` row by row.
    Flags(Vec<f32>),
    /// Numbers, `[batch]`.
    Values(Vec<f32>),
}

/// What the labels of a file are. The names are those of `problem_type` in a Hugging Face `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelKind {
    /// Exactly one class a row.
    #[serde(rename = "single_label_classification")]
    Single,
    /// Any number of classes a row.
    #[serde(rename = "multi_label_classification")]
    Multi,
    /// A number a row.
    #[serde(rename = "regression")]
    Regression,
}

impl LabelKind {
    /// The value of `problem_type`.
    pub fn problem_type(self) -> &'static str {
        match self {
            Self::Single => "single_label_classification",
            Self::Multi => "multi_label_classification",
            Self::Regression => "regression",
        }
    }
}

impl FromStr for LabelKind {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        let kinds = [Self::Single, Self::Multi, Self::Regression];
        kinds.into_iter().find(|it| it.problem_type() == name).ok_or_else(|| {
            let known = kinds.map(Self::problem_type).join(", ");
            PeftError::config("problem_type", format!("is `{name}`, expected one of {known}"))
        })
    }
}

/// The labels that a model knows. Learnt from the training rows and then used for every other file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabelSet {
    /// One class, many, or a number.
    pub kind: LabelKind,
    /// Class id → name; empty for regression.
    pub names: Vec<String>,
    /// The file that says so, for messages: `labels.json` of an adapter, `config.json` of a base. Nothing where they were
    /// learnt from the data.
    #[serde(skip)]
    pub source: Option<PathBuf>,
}

/// Where they come from makes no other labels of them.
impl PartialEq for LabelSet {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.names) == (other.kind, &other.names)
    }
}

impl Eq for LabelSet {}

impl LabelSet {
    /// A set of known names, in the order of their ids: those of `id2label` in a checkpoint's `config.json`.
    pub fn new(kind: LabelKind, names: Vec<String>) -> Self {
        Self { kind, names, source: None }
    }

    /// The same, with the file that says so.
    pub fn said_in(self, file: impl Into<PathBuf>) -> Self {
        Self { source: Some(file.into()), ..self }
    }

    /// The labels that an adapter brings.
    ///
    /// # Errors
    /// A `problem_type` that is unknown.
    pub fn from_labels(labels: &Labels) -> Result<Self> {
        let kind = labels.problem_type.as_deref().map_or(Ok(LabelKind::Single), str::parse)?;
        Ok(Self::new(kind, labels.names.clone()))
    }

    /// What an adapter brings that was trained on these.
    pub fn to_labels(&self) -> Labels {
        Labels { problem_type: Some(self.kind.problem_type().to_owned()), names: self.names.clone() }
    }

    /// Finds out what `column` holds and which classes there are.
    ///
    /// - whole numbers (also as text, as in CSV) that count from 0 are class ids as they stand: the largest says how many
    ///   classes there are, and its name is its digits. Those that do not start with 0, or of which most are missing, are
    ///   names in the order of their size: 3 and 7 are two classes
    /// - other text: classes in alphabetical order; truth values: `false`, `true`
    /// - numbers with a fraction (also as text): regression
    /// - lists of names or of whole numbers: several classes a row; lists of numbers with a decimal point are a 0/1
    ///   flag for every class
    ///
    /// `wanted` overrules: it makes a regression of whole numbers, or names of numbers with a fraction.
    ///
    /// # Errors
    /// Rows of unlike kinds, an empty label, negative class ids, a missing column.
    pub fn learn(data: &Dataset, column: &str, wanted: Option<LabelKind>) -> Result<Self> {
        let mut values = Vec::with_capacity(data.rows.len());
        for row in &data.rows {
            values.push((row, cell(data, row, column)?));
        }
        let lists = values.iter().filter(|(_, it)| it.is_array()).count();
        if lists != 0 && lists != values.len() {
            let of_the_few = |it: &&(&Row, Cow<'_, Value>)| it.1.is_array() == (lists * 2 < values.len());
            let row = values.iter().find(of_the_few).map_or(&data.rows[0], |it| it.0);
            return Err(data.bad_row(row, format!("column `{column}` is a list in some rows and not in others")));
        }
        let flat: Vec<(&Row, &Value)> = values
            .iter()
            .flat_map(|(row, value)| match &**value {
                Value::Array(items) => items.iter().map(|it| (*row, it)).collect(),
                single => vec![(*row, single)],
            })
            .collect();
        let odd = |it: &&Value| !(it.is_string() || it.is_number() || it.is_boolean());
        if let Some((row, value)) = flat.iter().find(|(_, value)| odd(value)) {
            let reason = format!("column `{column}` is {}, expected a class or a number", kind(value));
            return Err(data.bad_row(row, reason));
        }
        if let Some((row, _)) = flat.iter().find(|(_, value)| value.as_str().is_some_and(|it| it.trim().is_empty())) {
            return Err(data.bad_row(row, format!("column `{column}` is empty: every row needs a label")));
        }
        // `true` beside 1 may or may not be the same class, and nobody but the user knows.
        let truths = flat.iter().filter(|(_, value)| value.is_boolean()).count();
        if truths > 0 && truths < flat.len() {
            let of_the_few = |it: &&(&Row, &Value)| it.1.is_boolean() == (truths * 2 < flat.len());
            let (row, value) = flat.iter().find(of_the_few).map_or((&data.rows[0], &Value::Null), |it| (it.0, it.1));
            let reason =
                format!("column `{column}` is {}, in other rows it is not: write all labels in one way", kind(value));
            return Err(data.bad_row(row, reason));
        }
        let all = |test: fn(&Value) -> bool| !flat.is_empty() && flat.iter().all(|(_, value)| test(value));
        let numeric = all(|it| number(it).is_some());
        // 1 and 1.0 are one class; where all are written as 1.0 they are numbers.
        let whole = all(|it| integral(it).is_some()) && flat.iter().any(|(_, value)| integer(value).is_some());

        if lists != 0 {
            refuse_flags(data, column, &values)?;
        }
        // One word among measurements is a slip, not a class beside a class for every number.
        let measured = |it: &Value| number(it).is_some() && integral(it).is_none();
        let fractions = flat.iter().filter(|(_, value)| measured(value)).count();
        if wanted.is_none() && !numeric && lists == 0 && fractions * 2 > flat.len() {
            let (row, value) =
                flat.iter().find(|(_, value)| number(value).is_none()).map_or((&data.rows[0], &Value::Null), |it| *it);
            let value = brief(&value.to_string());
            let reason = format!("column `{column}` is {value}, in other rows it is a number with a fraction");
            return Err(data.bad_row(row, reason));
        }
        let found = match wanted {
            Some(LabelKind::Multi) if lists == 0 => {
                return Err(data.bad(format!("column `{column}` holds no lists, so one class a row")));
            }
            Some(LabelKind::Single | LabelKind::Regression) if lists != 0 => {
                return Err(data.bad(format!("column `{column}` holds lists, so many classes a row")));
            }
            Some(LabelKind::Regression) if !numeric => {
                return Err(data.bad(format!("column `{column}` holds text, so it is no number")));
            }
            Some(wanted) => wanted,
            None if lists != 0 => LabelKind::Multi,
            None if numeric && !whole => LabelKind::Regression,
            None => LabelKind::Single,
        };
        let names = match found {
            LabelKind::Regression => Vec::new(),
            LabelKind::Multi if numeric && !whole => {
                let width = values.first().and_then(|it| it.1.as_array()).map_or(0, Vec::len);
                (0..width).map(|it| it.to_string()).collect()
            }
            _ if whole => {
                if let Some((row, value)) = flat.iter().find(|(_, value)| integral(value).is_some_and(|it| it < 0)) {
                    return Err(data.bad_row(row, format!("class {value} is negative; classes count from 0")));
                }
                let found: BTreeSet<i64> = flat.iter().filter_map(|(_, value)| integral(value)).collect();
                let largest = found.last().copied().unwrap_or(0);
                let ids = usize::try_from(largest).map_or(usize::MAX, |it| it.saturating_add(1));
                match found.contains(&0) && found.len() * 2 >= ids {
                    true => (0..=largest).map(|it| it.to_string()).collect(),
                    false => found.iter().map(ToString::to_string).collect(),
                }
            }
            _ => flat.iter().map(|(_, value)| name(value)).collect::<BTreeSet<_>>().into_iter().collect(),
        };
        if names.len() > MOST_CLASSES {
            let reason = format!("holds {} different labels; ask for regression if they are numbers", names.len());
            return Err(data.bad(format!("column `{column}` {reason}")));
        }
        if names.is_empty() && found != LabelKind::Regression {
            return Err(data.bad(format!("column `{column}` names no class in any row")));
        }
        Ok(Self::new(found, names))
    }

    /// How many outputs a model needs: the classes, or one for a regression.
    pub fn outputs(&self) -> usize {
        if self.kind == LabelKind::Regression { 1 } else { self.names.len() }
    }

    /// The label of a row.
    ///
    /// # Errors
    /// A class that is not in the set; the message lists those that are.
    pub fn label(&self, data: &Dataset, row: &Row, column: &str) -> Result<Label> {
        let value = cell(data, row, column)?;
        match (self.kind, &*value) {
            (LabelKind::Regression, value) => match number(value) {
                Some(number) => Ok(Label::Value(number as f32)),
                None => Err(data.bad_row(row, format!("column `{column}` is {}, expected a number", kind(value)))),
            },
            (LabelKind::Single, value) => self.class(data, row, value).map(Label::Class),
            (LabelKind::Multi, Value::Array(items)) => {
                let flags = !items.is_empty() && items.iter().all(Value::is_f64);
                if flags && items.len() != self.names.len() {
                    let reason = format!("{} flags for {} classes", items.len(), self.names.len());
                    return Err(data.bad_row(row, format!("column `{column}` has {reason}")));
                }
                let mut classes = if flags {
                    (0..items.len()).filter(|it| items[*it].as_f64().unwrap_or(0.0) >= 0.5).collect()
                } else {
                    items.iter().map(|item| self.class(data, row, item)).collect::<Result<Vec<_>>>()?
                };
                classes.sort_unstable();
                classes.dedup();
                Ok(Label::Classes(classes))
            }
            (LabelKind::Multi, other) => {
                Err(data.bad_row(row, format!("column `{column}` is {}, expected a list of classes", kind(other))))
            }
        }
    }

    /// The labels of a batch in one piece.
    ///
    /// # Errors
    /// A label of another kind, or a class outside the set.
    pub fn targets(&self, labels: &[Label]) -> Result<Targets> {
        let classes = self.names.len();
        let odd = |label: &Label| {
            PeftError::Invalid(format!("label {label:?} does not go with {:?} labels of {classes} classes", self.kind))
        };
        match self.kind {
            LabelKind::Single => {
                let class = |label: &Label| match label {
                    Label::Class(class) if *class < classes => Ok(*class as i64),
                    other => Err(odd(other)),
                };
                labels.iter().map(class).collect::<Result<_>>().map(Targets::Classes)
            }
            LabelKind::Regression => {
                let value = |label: &Label| match label {
                    Label::Value(value) => Ok(*value),
                    other => Err(odd(other)),
                };
                labels.iter().map(value).collect::<Result<_>>().map(Targets::Values)
            }
            LabelKind::Multi => {
                let mut flags = vec![0.0; labels.len() * classes];
                for (row, label) in labels.iter().enumerate() {
                    match label {
                        Label::Classes(these) if these.iter().all(|it| *it < classes) => {
                            these.iter().for_each(|it| flags[row * classes + it] = 1.0);
                        }
                        other => return Err(odd(other)),
                    }
                }
                Ok(Targets::Flags(flags))
            }
        }
    }

    fn class(&self, data: &Dataset, row: &Row, value: &Value) -> Result<usize> {
        let wanted = name(value);
        if let Some(class) = self.names.iter().position(|it| *it == wanted) {
            return Ok(class);
        }
        // Checkpoints name their classes, files number them. Numbers that are names do not number anything.
        let are_numbers = self.names.iter().all(|it| it.parse::<i64>().is_ok());
        if let Some(class) = integral(value)
            .filter(|_| !are_numbers)
            .and_then(|it| usize::try_from(it).ok())
            .filter(|it| *it < self.names.len())
        {
            return Ok(class);
        }
        let of = self.source.as_ref().map_or_else(String::new, |it| format!(" of {}", it.display()));
        let reason = format!("label `{}` is not one of the classes{of}: {}", brief(&wanted), quoted(&self.names));
        Err(data.bad_row(row, reason))
    }
}

/// A file of ids or prices must not ask for a head with millions of outputs.
const MOST_CLASSES: usize = 100_000;

/// The label of a row: a list also where a CSV file holds it as JSON.
fn cell<'a>(data: &Dataset, row: &'a Row, column: &str) -> Result<Cow<'a, Value>> {
    listed(data.value(row, column)?).map_err(|reason| data.bad_row(row, format!("column `{column}` {reason}")))
}

/// What a class is called: 1, 1.0 and the texts of both are `1`.
fn name(value: &Value) -> String {
    match (integral(value), value) {
        (Some(number), _) => number.to_string(),
        (None, Value::String(text)) => text.trim().to_owned(),
        (None, other) => other.to_string(),
    }
}

fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok()?,
        other => other.as_f64()?,
    };
    f64::is_finite(number).then_some(number)
}

/// A whole number, however it is written.
fn integral(value: &Value) -> Option<i64> {
    let whole = |it: f64| (it.fract() == 0.0 && it.abs() < 1e15).then_some(it as i64);
    integer(value).or_else(|| number(value).and_then(whole))
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_i64(),
    }
}

/// Refuses lists of 0 and 1 that are flags of all classes and not numbers of classes: they hold a class twice, or all rows
/// hold both.
fn refuse_flags(data: &Dataset, column: &str, values: &[(&Row, Cow<'_, Value>)]) -> Result<()> {
    let items = |value: &Value| value.as_array().map(|it| it.iter().filter_map(integer).collect::<Vec<i64>>());
    let twice = |ids: &[i64]| ids.iter().enumerate().any(|(at, id)| ids[..at].contains(id));
    let rows: Vec<(&Row, Vec<i64>)> = values.iter().filter_map(|(row, value)| Some((*row, items(value)?))).collect();
    let is_binary = rows.iter().all(|(_, ids)| !ids.is_empty() && ids.iter().all(|it| [0, 1].contains(it)));
    let both_everywhere = rows.len() > 1 && rows.iter().all(|(_, ids)| ids.len() == 2 && !twice(ids));
    let found = rows.iter().find(|(_, ids)| twice(ids)).or(rows.first().filter(|_| both_everywhere));
    match found.filter(|_| is_binary && rows.len() == values.len()) {
        Some((row, ids)) => {
            let reason = format!(
                "column `{column}` is {ids:?}, which is no list of classes; flags for all classes are written with a \
                 decimal point, as [1.0, 0.0]"
            );
            Err(data.bad_row(row, reason))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::TextRows;

    fn data(labels: &[&str]) -> Dataset {
        let rows: String = labels.iter().map(|it| format!("{{\"label\":{it}}}\n")).collect();
        Dataset::parse("a.jsonl", &rows, TextRows::Lines).unwrap()
    }

    fn learnt(labels: &[&str]) -> (LabelSet, Vec<Label>) {
        let data = data(labels);
        let set = LabelSet::learn(&data, "label", None).unwrap();
        let labels = data.rows.iter().map(|row| set.label(&data, row, "label").unwrap()).collect();
        (set, labels)
    }

    #[test]
    fn names_are_sorted_and_numbers_stay() {
        let (set, labels) = learnt(&["\"spam\"", "\"ham\"", "\"spam\""]);
        assert_eq!(set.names, ["ham", "spam"]);
        assert_eq!(labels, [Label::Class(1), Label::Class(0), Label::Class(1)]);
        let (set, labels) = learnt(&["2", "0"]);
        assert_eq!((set.outputs(), labels), (3, vec![Label::Class(2), Label::Class(0)]));
        let (set, labels) = learnt(&["\"10\"", "\"2\""]);
        assert_eq!(
            (set.names, labels),
            (vec!["2".to_owned(), "10".to_owned()], vec![Label::Class(1), Label::Class(0)])
        );
        assert_eq!(learnt(&["true", "false"]).1, [Label::Class(1), Label::Class(0)]);
    }

    #[test]
    fn numbers_that_do_not_count_from_zero_are_names() {
        let (set, labels) = learnt(&["7", "3", "7"]);
        assert_eq!((set.names.join(" "), set.outputs()), ("3 7".to_owned(), 2));
        assert_eq!(labels, [Label::Class(1), Label::Class(0), Label::Class(1)]);
        assert_eq!(learnt(&["1", "2", "5"]).0.names, ["1", "2", "5"]);
        assert_eq!(learnt(&["0", "9000"]).0.names, ["0", "9000"]);
        // A class that a file lacks keeps its place.
        assert_eq!(learnt(&["0", "1", "3"]).0.names, ["0", "1", "2", "3"]);
        let set = LabelSet::new(LabelKind::Single, vec!["3".into(), "7".into()]);
        let other = data(&["1"]);
        assert!(set.label(&other, &other.rows[0], "label").unwrap_err().to_string().contains("`1` is not one of"));
    }

    #[test]
    fn one_class_in_several_spellings_is_one() {
        let (set, labels) = learnt(&["1", "\"1\"", "1.0", "0"]);
        assert_eq!((set.kind, set.outputs()), (LabelKind::Single, 2));
        assert_eq!(labels[..3], [Label::Class(1), Label::Class(1), Label::Class(1)]);
        assert_eq!(learnt(&["\"a\"", "1", "1.0", "\" 1 \""]).0.names, ["1", "a"]);
        assert_eq!(learnt(&["1.0", "2.0"]).0.kind, LabelKind::Regression);
    }

    #[test]
    fn fractions_are_a_regression() {
        let (set, labels) = learnt(&["1", "2.5", "\"3\""]);
        assert_eq!((set.kind, set.outputs()), (LabelKind::Regression, 1));
        assert_eq!(labels, [Label::Value(1.0), Label::Value(2.5), Label::Value(3.0)]);
        let set = LabelSet::learn(&data(&["1", "2"]), "label", Some(LabelKind::Regression)).unwrap();
        assert_eq!(set.kind, LabelKind::Regression);
    }

    #[test]
    fn lists_are_several_classes() {
        let (set, labels) = learnt(&["[\"b\",\"a\"]", "[]", "[\"c\"]"]);
        assert_eq!((set.kind, set.names.join("")), (LabelKind::Multi, "abc".to_owned()));
        assert_eq!(labels, [Label::Classes(vec![0, 1]), Label::Classes(vec![]), Label::Classes(vec![2])]);
        let (set, labels) = learnt(&["[0.0,1.0,1.0]", "[0.0,0.0,0.0]"]);
        assert_eq!(set.outputs(), 3);
        assert_eq!(labels, [Label::Classes(vec![1, 2]), Label::Classes(vec![])]);
        assert_eq!(learnt(&["[2]", "[0, 1]"]).0.outputs(), 3);
    }

    #[test]
    fn lists_in_cells_are_lists() {
        let read = |cells: &str| {
            let data = Dataset::parse("a.csv", &format!("label\n{cells}"), TextRows::Lines).unwrap();
            let set = LabelSet::learn(&data, "label", None)?;
            let labels = data.rows.iter().map(|row| set.label(&data, row, "label")).collect::<Result<Vec<_>>>()?;
            Ok::<_, PeftError>((set.names.join(""), labels))
        };
        let (names, labels) = read("\"[\"\"b\"\", \"\"a\"\"]\"\n[]\n").unwrap();
        assert_eq!((names.as_str(), labels), ("ab", vec![Label::Classes(vec![0, 1]), Label::Classes(vec![])]));
        assert_eq!(read("\"[0, 2]\"\n\"[1]\"\n").unwrap().0, "012");
        let error = read("\"['b', 'a']\"\n").unwrap_err().to_string();
        assert!(error.contains("a.csv, line 2: column `label` is a list as Python prints it"), "{error}");
    }

    #[test]
    fn targets_are_flat() {
        let targets = |kind, labels: &[Label]| {
            LabelSet::new(kind, vec!["a".into(), "b".into(), "c".into()]).targets(labels).map_err(|it| it.to_string())
        };
        let several = [Label::Classes(vec![0, 2]), Label::Classes(vec![])];
        assert_eq!(targets(LabelKind::Multi, &several), Ok(Targets::Flags(vec![1.0, 0.0, 1.0, 0.0, 0.0, 0.0])));
        assert_eq!(targets(LabelKind::Single, &[Label::Class(2)]), Ok(Targets::Classes(vec![2])));
        assert_eq!(targets(LabelKind::Regression, &[Label::Value(0.5)]), Ok(Targets::Values(vec![0.5])));
        assert!(targets(LabelKind::Single, &[Label::Class(3)]).unwrap_err().contains("Class(3)"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let learn = |labels: &[&str]| LabelSet::learn(&data(labels), "label", None).unwrap_err().to_string();
        assert_eq!(learn(&["0", "-1"]), "a.jsonl, line 2: class -1 is negative; classes count from 0");
        assert_eq!(learn(&["\"a\"", "null"]), "a.jsonl, line 2: column `label` is null, expected a class or a number");
        assert!(learn(&["[1]", "2", "[3]"]).starts_with("a.jsonl, line 2: column `label` is a list in some rows"));
        assert_eq!(learn(&["\"a\"", "\" \""]), "a.jsonl, line 2: column `label` is empty: every row needs a label");
        let mixed = learn(&["1", "\"1\"", "true"]);
        assert_eq!(
            mixed,
            "a.jsonl, line 3: column `label` is a truth value, in other rows it is not: write all labels in one way"
        );
        let many: Vec<String> = (0..100_001).map(|it| (it * 7).to_string()).collect();
        assert!(learn(&many.iter().map(String::as_str).collect::<Vec<_>>()).contains("ask for regression"));

        let set = LabelSet::new(LabelKind::Single, vec!["no".into(), "yes".into()]);
        let other = data(&["\"maybe\"", "1"]);
        let error = set.label(&other, &other.rows[0], "label").unwrap_err().to_string();
        assert_eq!(error, "a.jsonl, line 1: label `maybe` is not one of the classes: `no`, `yes`");
        let error = set.clone().said_in("tuned/labels.json").label(&other, &other.rows[0], "label").unwrap_err();
        assert!(error.to_string().ends_with("the classes of tuned/labels.json: `no`, `yes`"), "{error}");
        assert_eq!(set.label(&other, &other.rows[1], "label").unwrap(), Label::Class(1));
    }

    #[test]
    fn flags_that_look_like_classes_and_words_among_measurements_are_named() {
        let learn = |rows: &[&str]| {
            let text: String = rows.iter().map(|it| format!("{{\"label\": {it}}}\n")).collect();
            let data = Dataset::parse("a.jsonl", &text, crate::data::dataset::TextRows::Lines).unwrap();
            LabelSet::learn(&data, "label", None).map(|it| (it.kind, it.names.len())).map_err(|it| it.to_string())
        };
        assert!(learn(&["[0, 1]", "[1, 0, 1]"]).unwrap_err().contains("line 2: column `label` is [1, 0, 1]"));
        assert!(learn(&["[1, 0]", "[0, 1]"]).unwrap_err().contains("with a decimal point"));
        assert_eq!(learn(&["[1.0, 0.0, 1.0]", "[0.0, 0.0, 1.0]"]), Ok((LabelKind::Multi, 3)));
        assert_eq!(learn(&["[0, 1]", "[1]", "[2]"]), Ok((LabelKind::Multi, 3)));
        let word = learn(&["0.5", "1.25", "\"n/a\"", "2.75"]).unwrap_err();
        assert!(word.contains("line 3") && word.contains("n/a"), "{word}");
    }
}
