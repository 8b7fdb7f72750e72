//! Captions by the command: data, training, measuring, writing, merging, and files that are no pictures.

use std::fs;
use std::path::{Path, PathBuf};

use peft::tasks::data::image::Picture;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::texts::{path, refused, succeeded};
use crate::support::base_with_words;

/// A BLIP-2 with words for tokens, which reads pictures of 8 × 8 pixels.
fn base(model: &str) -> TempDir {
    let base = base_with_words(model, 101, &["<image>"], &json!({"eos_token": "w2", "pad_token": "w1"}));
    let settings = json!({"image_processor_type": "BlipImageProcessor", "size": {"height": 8, "width": 8}});
    fs::write(base.path().join("preprocessor_config.json"), settings.to_string()).unwrap();
    base
}

/// Four pictures, which differ in where they are bright and in their colour, and a table with what is to be said of them.
fn data() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = String::new();
    for item in 0..4u32 {
        let bright = |x: u32, y: u32| (x / 6 + 2 * (y / 6)) == item;
        let pixel =
            |at: u32| if bright(at % 12, at / 12) { [250, 60 * item as u8, 9] } else { [5, 5, 40 * item as u8] };
        let picture = Picture { width: 12, height: 12, rgb: (0..144).flat_map(pixel).collect() };
        picture.write(folder.path().join(format!("{item}.png"))).unwrap();
        let caption = format!("w{} w{} w{}", 20 + item, 30 + item % 2, 40);
        rows += &format!("{}\n", json!({"image": format!("{item}.png"), "text": caption}));
    }
    let file = folder.path().join("metadata.jsonl");
    fs::write(&file, rows).unwrap();
    (folder, file)
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A number that an evaluation printed.
fn number(printed: &str, what: &str) -> f64 {
    let line = printed.lines().find_map(|it| it.strip_prefix(&format!("{what} ")));
    line.unwrap_or_else(|| panic!("{what} is not in {printed}")).parse().unwrap()
}

/// Captions are learned, measured, and written as they were learned: by a language model that goes on, and by one that reads and
/// writes.
#[test]
fn captions_are_learned_measured_merged_and_written() {
    for model in ["blip2-tiny", "blip2-t5"] {
        let (base, (folder, rows), out) = (base(model), data(), tempfile::tempdir().unwrap());
        let (adapter, merged) = (out.path().join("adapter"), out.path().join("merged"));
        let train = ["train", "--task", "image-to-text", "--model", path(&base), "--data", name(&rows)];
        let settings = ["--output", name(&adapter), "--targets", "all-linear", "--r", "8", "--lr", "1e-2"];
        succeeded(&[&train[..], &settings, &["--steps", "600", "--batch-size", "4"]].concat());

        // The class of the base tells the task.
        let eval = ["eval", "--data", name(&rows), "--max-new-tokens", "6"];
        let measured = |more: &[&str]| succeeded(&[&eval[..], more].concat()).0;
        let before = measured(&["--model", path(&base)]);
        let after = measured(&["--model", path(&base), "--adapter", name(&adapter)]);
        assert!(number(&after, "loss") < 0.1 && number(&before, "loss") > 3.0, "{model}: {before}{after}");
        assert_eq!((number(&before, "exact_match"), number(&after, "exact_match")), (0.0, 1.0), "{model}: {after}");
        assert!(number(&after, "rougeL") > 0.99 && number(&after, "perplexity") < 1.2, "{model}: {after}");

        succeeded(&["merge", "--model", path(&base), "--adapter", name(&adapter), "--output", name(&merged)]);
        let config: Value = serde_json::from_str(&fs::read_to_string(merged.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"], json!(["Blip2ForConditionalGeneration"]));
        for item in 0..4 {
            let image = folder.path().join(format!("{item}.png"));
            for beams in ["1", "3"] {
                let write = ["generate", "--image", name(&image), "--max-new-tokens", "6", "--beams", beams];
                let live = succeeded(&[&write[..], &["--model", path(&base), "--adapter", name(&adapter)]].concat()).0;
                // The end is a word like others to this tokenizer.
                let said = live.trim().trim_end_matches(" w2");
                assert_eq!(said, format!("w{} w{} w40", 20 + item, 30 + item % 2), "{model}");
                assert_eq!(succeeded(&[&write[..], &["--model", name(&merged)]].concat()).0, live, "{model}");
            }
        }
    }
}

#[test]
fn what_cannot_be_written_about_is_refused_with_the_next_step() {
    let (base, (folder, rows), out) = (base("blip2-tiny"), data(), tempfile::tempdir().unwrap());
    let image = folder.path().join("2.png");
    let write = |more: &[&'static str]| -> Vec<String> {
        let usual = ["generate", "--model", path(&base), "--image", name(&image)];
        usual.iter().chain(more).map(|it| (*it).to_owned()).collect()
    };
    let run = |more: &[&'static str]| succeeded(&write(more).iter().map(String::as_str).collect::<Vec<_>>()).0;
    let refused_with = |more: &[&'static str]| refused(&write(more).iter().map(String::as_str).collect::<Vec<_>>());
    // A prompt is read behind the picture, and what is written is not repeated with it.
    let asked = run(&["--prompt", "w5 w6", "--max-new-tokens", "3"]);
    assert!(!asked.contains("w5 w6"), "{asked}");
    assert_ne!(asked, run(&["--max-new-tokens", "3"]));
    assert!(refused_with(&["--task", "causal-lm"]).contains("`--image` is for models that write about a picture"));
    assert!(refused(&["generate", "--model", path(&base), "--prompt", "w5"]).contains("--image FILE"));
    fs::write(&image, b"no picture").unwrap();
    assert!(refused_with(&[]).contains("2.png"));
    fs::remove_file(&image).unwrap();
    assert!(refused_with(&[]).contains("2.png"));
    // A picture that is missing ends a run before its first step.
    let output = out.path().join("adapter");
    let train =
        ["train", "--task", "image-to-text", "--model", path(&base), "--data", name(&rows), "--targets", "q_proj"];
    assert!(refused(&[&train[..], &["--output", name(&output), "--steps", "1"]].concat()).contains("2.png"));
    // Where nobody says which token stands for the picture, none is taken for it.
    let config = base.path().join("config.json");
    let text =
        fs::read_to_string(&config).unwrap().replace("\"image_token_index\": 100", "\"image_token_index\": null");
    fs::write(&config, text).unwrap();
    fs::copy(folder.path().join("1.png"), &image).unwrap();
    assert!(refused_with(&[]).contains("image_token_index"));
}
