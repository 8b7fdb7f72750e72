//! Questions about texts, from file to measures.

use std::path::Path;
use std::sync::Arc;

use peft::tasks::data::TextData;
use peft::tasks::data::tokenizer::Tokenizer;
use peft::tasks::tasks::task::Task;
use serde_json::{Value, json};

use super::labels::{at, command, data};
use crate::support::device;

const TEXT: &str = "Élise lives in Rome, and her brother lives in Lyon with three cats.";

fn row(question: &str, answers: &[(&str, usize)]) -> Value {
    let texts: Vec<&str> = answers.iter().map(|it| it.0).collect();
    let starts: Vec<usize> = answers.iter().map(|it| it.1).collect();
    json!({"context": TEXT, "question": question, "answers": {"text": texts, "answer_start": starts}})
}

/// Starts count characters: the first letter of the text has two bytes.
#[test]
fn answers_are_learned_and_measured() {
    let rows = [row("Where does Élise live?", &[("Rome", 15)]), row(" Who has cats?", &[("her brother", 25)])];
    let files = data(&[("train.jsonl", &rows)]);
    let (file, output) = (at(&files, "train.jsonl"), at(&files, "adapter"));
    let task = ["--task", "question-answering", "--data", &file, "--max-length", "24", "--doc-stride", "4"];
    let train = ["--output", &output, "--steps", "2", "--batch-size", "2", "--eval-data", &file, "--lr", "1e-3"];
    let printed = command("train", &[&task[..], &train[..]].concat()).unwrap();
    assert!(printed.contains("exact_match") && printed.contains("2 steps"), "{printed}");
    let printed = command("eval", &[&task[..], &["--adapter", &output]].concat()).unwrap();
    assert!(printed.contains("f1"), "{printed}");
}

#[test]
fn rows_in_all_their_forms() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base");
    let tokenizer = Arc::new(Tokenizer::load(&base).unwrap());
    let (model, _) = peft::models::auto::load_question_answerer(&base, &device(), 0).unwrap();
    let read = |name: &str, contents: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, contents).unwrap();
        let data = TextData::file(file).max_length(24).tokenizer(tokenizer.clone());
        let task = data.question_answering(&base, true).map_err(|it| it.to_string())?;
        Ok::<_, String>(Task::evaluate(&task, &model, 4, &device()).unwrap().loss)
    };
    let whole = read("a.jsonl", &row("Who?", &[("Élise", 0)]).to_string()).unwrap();
    let list = json!({"Context": TEXT, "question": "Who?", "answers": [{"text": "Élise", "answer_start": 0}]});
    assert_eq!(read("a.jsonl", &list.to_string()).unwrap(), whole);
    let cell = r#""{""text"": [""Élise""], ""answer_start"": [0]}""#;
    assert_eq!(read("a.csv", &format!("context,question,answers\n\"{TEXT}\",Who?,{cell}\n")).unwrap(), whole);
    // As it is published.
    let asked = json!({"id": "1", "question": "Who?", "answers": [{"text": "Élise", "answer_start": 0}]});
    let squad = json!({"version": "1.1", "data": [{"title": "T", "paragraphs": [{"context": TEXT, "qas": [asked]}]}]});
    assert_eq!(read("a.json", &squad.to_string()).unwrap(), whole);
    // A question without an answer has the first token for one.
    assert_ne!(read("a.jsonl", &row("Who?", &[]).to_string()).unwrap(), whole);

    let error = read("a.jsonl", &row("Who?", &[("Elise", 0)]).to_string()).unwrap_err();
    assert!(error.contains("line 1") && error.contains("`Elise` does not stand at character 0"), "{error}");
    let error = read("a.jsonl", &json!({"context": TEXT, "question": "Who?"}).to_string()).unwrap_err();
    assert!(
        error.contains("a.jsonl is not usable: it has no column `answers`; it has `context`, `question`"),
        "{error}"
    );
    let error = read("a.jsonl", &json!({"context": "", "question": "", "answers": 3}).to_string()).unwrap_err();
    assert!(error.contains("it holds 3, expected"), "{error}");
    let long = "why ".repeat(40);
    let error = read("a.jsonl", &row(&long, &[("Rome", 15)]).to_string()).unwrap_err();
    assert!(error.contains("line 1") && error.contains("leaves room for 0 of the text"), "{error}");
}
