//! Data files as their users have them: nothing of a row is passed over without a word.

use std::fs;
use std::path::Path;
use std::process::Command;

use peft::models::auto::{self, AutoCausalLm};
use peft::tasks::data::TextData;
use peft::tasks::data::batch::Batch;
use peft::tasks::data::sample::Truncation;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::labels::{at, data};
use super::texts::{path, refused, succeeded};
use crate::support::{base_with_words, device};

/// `role: content |` for every turn, and the tools in front.
const TEMPLATE: &str = "{% if tools %}{{ tools[0].name }} {% endif %}{% for m in messages %}{{ m.role }} : {{ m.content }} | {% endfor %}\
                        {% if add_generation_prompt %}assistant : {% endif %}";

/// LLaMA with 101 words, of which some have names.
fn base() -> TempDir {
    let words = ["user", "assistant", "system", "tool", ":", "|"];
    base_with_words("llama-tiny", 101, &words, &json!({"eos_token": "w2", "chat_template": TEMPLATE}))
}

fn model(base: &TempDir) -> AutoCausalLm {
    auto::load_causal_lm(base.path(), &device()).unwrap().0
}

/// The rows as the model reads them, and of each what is learned.
fn read(
    base: &TempDir,
    rows: &[Value],
    change: impl Fn(TextData) -> TextData,
) -> Result<Vec<(String, String)>, String> {
    let files = data(&[("rows.jsonl", rows)]);
    let task = change(TextData::file(at(&files, "rows.jsonl"))).causal_lm(base.path()).map_err(|it| it.to_string())?;
    Ok(shown(base, &task))
}

fn shown(base: &TempDir, task: &LanguageModelling) -> Vec<(String, String)> {
    let tokenizer = peft::tasks::data::Tokenizer::load(base.path()).unwrap();
    let model = model(base);
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    (0..task.len())
        .map(|row| {
            let Batch { input_ids, labels, .. } = task.batch(&model, &[row]).unwrap();
            let learned: Vec<u32> = labels.iter().filter(|it| **it >= 0).map(|it| *it as u32).collect();
            (text(&input_ids), text(&learned))
        })
        .collect()
}

fn one(base: &TempDir, row: Value) -> (String, String) {
    read(base, &[row], |it| it).unwrap().remove(0)
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn what_stands_beside_a_conversation_reaches_the_model() {
    let base = base();
    let talk = json!([{"from": "human", "value": "w11"}, {"from": "gpt", "value": "w12"}]);
    let (text, learned) = one(&base, json!({"conversations": talk, "system": "w10", "tools": "[{\"name\": \"w13\"}]"}));
    assert_eq!(text, "w13 system : w10 | user : w11 | assistant : w12 |");
    assert_eq!(learned, "w12 |");
    // OpenAI's weight.
    let mut first = turn("assistant", "w12");
    first["weight"] = 0.into();
    let (text, learned) =
        one(&base, json!({"messages": [turn("user", "w11"), first, turn("user", "w13"), turn("assistant", "w14")]}));
    assert!(text.contains("w12"));
    assert_eq!(learned, "w14 |");
    // TRL's prompts and completions.
    let prompt = [turn("user", "w11"), turn("assistant", "w12"), turn("user", "w13")];
    let row = json!({"prompt": &prompt, "completion": [turn("assistant", "w14")]});
    assert_eq!(one(&base, row.clone()).1, "w14 |");
    let all = read(&base, &[row], |it| it.train_on_prompt(true)).unwrap();
    assert!(all[0].1.contains("w11") && all[0].1.contains("w12"), "{all:?}");
    // The same in a file of cells, which hold lists as JSON.
    let quoted = |it: &Value| format!("\"{}\"", it.to_string().replace('"', "\"\""));
    let cells =
        format!("prompt,completion\n{},{}\n", quoted(&json!(prompt)), quoted(&json!([turn("assistant", "w14")])));
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("rows.csv"), cells).unwrap();
    let task = TextData::file(files.path().join("rows.csv")).causal_lm(base.path()).unwrap();
    assert_eq!(shown(&base, &task)[0].1, "w14 |");
    // Alpaca with a history, as LLaMA-Factory reads it.
    let alpaca =
        json!({"instruction": "w11", "input": "w12", "output": "w13", "system": "w10", "history": [["w14", "w15"]]});
    let (text, learned) = one(&base, alpaca);
    assert_eq!(text, "system : w10 | user : w14 | assistant : w15 | user : w11 w12 | assistant : w13 |");
    assert_eq!(learned, "w15 | w13 |");
    // Without them it stays a plain prompt.
    let plain = json!({"instruction": "w11", "input": "w12", "output": " w13", "system": "", "history": []});
    assert_eq!(one(&base, plain.clone()), ("w11 w12 w13 w2".into(), "w13 w2".into()));
    // A template of the user's own.
    let worded = read(&base, &[plain], |it| TextData {
        prompt_template: Some("w20 {{ input }} w21 {{ instruction }} ".into()),
        ..it
    });
    assert_eq!(worded.unwrap()[0].0, "w20 w12 w21 w11 w13 w2");
}

#[test]
fn the_role_that_answers_is_asked_for() {
    let base = base();
    let row = |role: &str| json!({"messages": [turn("user", "w11"), turn(role, "w12")]});
    let error = read(&base, &[row("tool"), row("tool")], |it| it).unwrap_err();
    assert!(error.contains("of 2 rows, 2 have no turn of the assistant (roles: `tool` 2, `user` 2)"), "{error}");
    assert!(error.contains("--assistant-role"), "{error}");
    // A role that answers, and nothing of it to be learned, is another reason.
    let mut silent = row("assistant");
    silent["messages"][1]["weight"] = 0.into();
    let error = read(&base, &[silent], |it| it).unwrap_err();
    assert!(error.contains("of 1 rows, 1 give every turn of the assistant the weight 0"), "{error}");
    assert!(error.contains("rows.jsonl is not usable") && !error.contains("--assistant-role"), "{error}");
    let named = read(&base, &[row("tool")], |it| TextData { assistant_role: Some("tool".into()), ..it }).unwrap();
    assert_eq!(named[0].1, "w12 |");
}

#[test]
fn rows_that_lose_their_answer_are_counted_and_can_keep_it() {
    let base = base();
    let row = |prompt: usize| json!({"prompt": "w11 ".repeat(prompt), "completion": "w12"});
    let rows = [row(3), row(9), row(20)];
    let files = data(&[("rows.jsonl", &rows), ("long.jsonl", &rows[1..])]);
    let run = |file: &str, more: &[&str]| {
        let file = at(&files, file);
        let arguments = ["eval", "--model", path(&base), "--data", &file, "--max-length", "8"];
        [&arguments[..], more].concat().iter().map(|it| (*it).to_owned()).collect::<Vec<String>>()
    };
    let strs = |it: &[String]| it.iter().map(|it| it.to_owned().leak() as &str).collect::<Vec<_>>();
    let (_, logged) = succeeded(&strs(&run("rows.jsonl", &[])));
    assert!(logged.contains("2 of 3 rows hold nothing to learn and are left out: 2 lost their answer"), "{logged}");
    assert!(logged.contains("--truncation left"), "{logged}");
    let error = refused(&strs(&run("long.jsonl", &[])));
    assert!(error.contains("no row holds a token to learn: of 2 rows, 2 lost their answer"), "{error}");
    let (_, logged) = succeeded(&strs(&run("rows.jsonl", &["--truncation", "left"])));
    assert!(!logged.contains("nothing to learn") && logged.contains("2 of 3 rows were cut to 8 tokens"), "{logged}");
    let error = refused(&strs(&run("rows.jsonl", &["--truncation", "refuse"])));
    assert!(error.contains("rows.jsonl, line 2: it has 11 tokens, more than `--max-length`, 8"), "{error}");
    let kept = read(&base, &rows, |it| it.max_length(8).truncation(Truncation::Left)).unwrap();
    assert!(kept.iter().all(|it| it.1 == "w12 w2"), "{kept:?}");
    // Columns that nobody reads are named.
    let odd = data(&[("odd.jsonl", &[json!({"prompt": "w11", "completion": "w12", "url": "x", "id": 3})])]);
    let (_, logged) = succeeded(&["eval", "--model", path(&base), "--data", &at(&odd, "odd.jsonl")]);
    assert!(logged.contains("columns that are not read: `url`, `id`"), "{logged}");
}

#[test]
fn other_tasks_say_what_they_cut() {
    let base = base_with_words("bert-tiny", 101, &[], &json!({}));
    let row = |words: usize, label: i64| json!({"text": "w11 ".repeat(words), "label": label});
    let files = data(&[("rows.jsonl", &[row(3, 0), row(20, 1)])]);
    let file = at(&files, "rows.jsonl");
    let arguments = ["eval", "--model", path(&base), "--data", &file, "--task", "seq-cls", "--max-length", "8"];
    let (_, logged) = succeeded(&arguments);
    assert!(logged.contains("1 of 2 rows were cut to 8 tokens"), "{logged}");
    let error = refused(&[&arguments[..], &["--truncation", "refuse"]].concat());
    assert!(error.contains("rows.jsonl, line 2: it has 20 tokens"), "{error}");
}

#[test]
fn files_of_many_kinds_and_places() {
    let base = base();
    let rows = [json!({"text": "w11 w12"}), json!({"text": "w13 w14 w15"})];
    let files = data(&[("a.jsonl", &rows[..1]), ("b.jsonl", &rows[1..]), ("whole.jsonl", &rows)]);
    let loss = |file: &str| {
        let (printed, _) = succeeded(&["eval", "--model", path(&base), "--data", file]);
        printed.lines().next().unwrap().to_owned()
    };
    let whole = loss(&at(&files, "whole.jsonl"));
    let folder = files.path().join("folder");
    fs::create_dir(&folder).unwrap();
    for (name, text) in [("1.json", json!([rows[0]]).to_string()), ("2.csv", "text\nw13 w14 w15\n".to_owned())] {
        fs::write(folder.join(name), text).unwrap();
    }
    assert_eq!(loss(folder.to_str().unwrap()), whole);
    assert_eq!(loss(&format!("{},{}", at(&files, "a.jsonl"), at(&files, "b.jsonl"))), whole);
    assert_eq!(loss(&at(&files, "whol*.jsonl")), whole);
    let wrapped = at(&files, "wrapped.json");
    fs::write(&wrapped, serde_json::to_string_pretty(&json!({"data": rows})).unwrap()).unwrap();
    assert_eq!(loss(&wrapped), whole);
    let error = refused(&["eval", "--model", path(&base), "--data", "/dev/zero"]);
    assert!(error.contains("/dev/zero is not usable: it is a device"), "{error}");

    let peft = env!("CARGO_BIN_EXE_peft");
    let line = format!("{peft} eval --model {} --device flex --data <(cat {})", path(&base), at(&files, "whole.jsonl"));
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(printed.lines().next().unwrap_or_default(), whole, "{}", String::from_utf8_lossy(&output.stderr));
}

/// A pipe is read once, though labels are learned before the rows are.
#[cfg(unix)]
#[test]
fn a_pipe_gives_labels_and_rows() {
    let base = base_with_words("bert-tiny", 101, &[], &json!({}));
    let rows = [json!({"text": "w11", "label": 3}), json!({"text": "w13", "label": 7})];
    let files = data(&[("rows.jsonl", &rows)]);
    let (peft, output) = (env!("CARGO_BIN_EXE_peft"), at(&files, "out"));
    let line = format!(
        "{peft} train --task seq-cls --model {} --device flex --output {output} --steps 1 --data <(cat {})",
        path(&base),
        at(&files, "rows.jsonl")
    );
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("labels: 3, 7"), "{printed}");
}

/// A model of 101 rows beside a tokenizer of 105 tokens: only what is read of them matters, and whoever gets the folder is told.
#[test]
fn a_merged_folder_says_that_its_tokenizer_knows_more() {
    let base = base_with_words("llama-tiny", 105, &["user"], &json!({"eos_token": "w2"}));
    let files = data(&[("rows.jsonl", &[json!({"text": "w11 w12"})])]);
    let (file, adapter, merged) = (at(&files, "rows.jsonl"), at(&files, "adapter"), at(&files, "merged"));
    succeeded(&["train", "--model", path(&base), "--data", &file, "--output", &adapter, "--steps", "1"]);
    let (_, logged) = succeeded(&["merge", "--model", path(&base), "--adapter", &adapter, "--output", &merged]);
    assert!(logged.contains("knows 105 tokens, and the embedding matrix has 101 rows"), "{logged}");
}

/// The fixture's head has two outputs.
#[test]
fn a_head_of_other_classes_starts_anew() {
    let base = base_with_words("llama-cls", 101, &[], &json!({"pad_token": "w0"}));
    let rows: Vec<Value> =
        (0..5).map(|it| json!({"text": format!("w{}", it + 11), "label": format!("class {it}")})).collect();
    let files = data(&[("rows.jsonl", &rows)]);
    let (file, output) = (at(&files, "rows.jsonl"), at(&files, "adapter"));
    let arguments = ["--model", path(&base), "--task", "seq-cls", "--data", &file];
    let (_, logged) = succeeded(&[&["train", "--steps", "1", "--output", &output], &arguments[..]].concat());
    assert!(logged.contains("the head of the base has 2 outputs, and 5 are asked for"), "{logged}");
    succeeded(&[&["eval", "--adapter", &output], &arguments[..]].concat());
}

#[test]
fn new_tokens_are_learned_saved_and_read_again() {
    let base = base();
    let rows = [json!({"text": "w11 <a> w12"}), json!({"text": "<b> w13 <a>"})];
    let files = data(&[("rows.jsonl", &rows)]);
    let (file, output) = (at(&files, "rows.jsonl"), at(&files, "adapter"));
    let data = ["--model", path(&base), "--data", &file];
    let train = ["train", "--output", &output, "--steps", "2", "--lr", "1e-2", "--new-tokens", "<a>,<b>"];
    let (printed, _) = succeeded(&[&train[..], &data[..]].concat());
    assert!(printed.contains("2 rows"), "{printed}");
    let folder = Path::new(&output);
    let json = |name: &str| -> Value { serde_json::from_str(&fs::read_to_string(folder.join(name)).unwrap()).unwrap() };
    assert_eq!(
        json("adapter_config.json")["trainable_token_indices"],
        json!({"embed_tokens": [101, 102], "lm_head": [101, 102]})
    );
    assert!(json("tokenizer.json")["added_tokens"].to_string().contains("<b>"));
    assert_eq!(json("tokenizer_config.json")["chat_template"], TEMPLATE);

    let adapted = [&["eval", "--adapter", &output], &data[..]].concat();
    let (first, _) = succeeded(&adapted);
    let prompt =
        ["generate", "--model", path(&base), "--adapter", &output, "--prompt", "w11 <a>", "--max-new-tokens", "2"];
    succeeded(&prompt);
    // The same run from its own run file gives the same adapter.
    let (config, again) = (folder.join("run.yaml"), at(&files, "again"));
    succeeded(&["train", "--config", config.to_str().unwrap(), "--output", &again]);
    let (second, _) = succeeded(&[&["eval", "--adapter", &again], &data[..]].concat());
    assert_eq!(first, second);
    // Without its tokenizer the table has grown and nobody knows for what.
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert!(refused(&adapted).contains("103 rows where the base has 101"));
    let ia3 = refused(
        &[&["train", "--output", &at(&files, "ia3"), "--method", "IA3", "--new-tokens", "<a>"], &data[..]].concat(),
    );
    assert!(ia3.contains("goes with LoRA and trainable tokens"), "{ia3}");
}
