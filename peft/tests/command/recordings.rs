//! Speech recognition by the command: data, training, transcripts, and files that are no recordings.

use std::f64::consts::TAU;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use super::texts::{path, refused, succeeded};
use crate::support::{base_with_words, fixtures};

/// Whisper with words for tokens, whose window is a second at 8000 samples: 20 frames of 6 bands.
fn base() -> TempDir {
    let base = base_with_words("whisper-tiny", 101, &[], &json!({"eos_token": "w79"}));
    let settings = json!({
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 6, "sampling_rate": 8000,
        "hop_length": 400, "chunk_length": 1, "n_fft": 400
    });
    fs::write(base.path().join("preprocessor_config.json"), settings.to_string()).unwrap();
    base
}

/// A tone of 16 bits a sample.
fn tone(hertz: f64, seconds: f64, rate: u32) -> Vec<u8> {
    let count = (seconds * f64::from(rate)) as u32;
    let sample = |it: u32| (9000.0 * (TAU * hertz * f64::from(it) / f64::from(rate)).sin()) as i16;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + 2 * count).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(rate.to_le_bytes());
    file.extend((2 * rate).to_le_bytes());
    file.extend(b"\x02\0\x10\0data");
    file.extend((2 * count).to_le_bytes());
    file.extend((0..count).flat_map(|it| sample(it).to_le_bytes()));
    file
}

/// Eight recordings in a folder of their own, some at another rate, and a table that names them.
fn data() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("wav")).unwrap();
    let mut rows = String::new();
    for item in 0..8u32 {
        let rate = if item % 3 == 0 { 16_000 } else { 8_000 };
        let name = format!("wav/{item}.wav");
        fs::write(folder.path().join(&name), tone(200.0 + 90.0 * f64::from(item), 0.7, rate)).unwrap();
        rows += &format!("{}\n", json!({"audio": name, "text": format!("w{} w{}", 20 + item, 30 + item)}));
    }
    let file = folder.path().join("metadata.jsonl");
    fs::write(&file, rows).unwrap();
    (folder, file)
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_adapter_is_trained_measured_merged_and_written_with() {
    let (base, (folder, rows), out) = (base(), data(), tempfile::tempdir().unwrap());
    let (adapter, merged) = (out.path().join("adapter"), out.path().join("merged"));
    // The folder of recordings is the data set as well: it holds one table.
    let train = ["train", "--task", "speech-to-text", "--model", path(&base), "--data", path(&folder)];
    let settings = ["--output", name(&adapter), "--targets", "q_proj,v_proj", "--language", "en", "--steps", "3"];
    let more = ["--lr", "1e-2", "--batch-size", "4", "--eval-data", name(&rows)];
    succeeded(&[&train[..], &settings, &more].concat());
    let config = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert!(config["task_type"].is_null(), "PEFT's wrapper of a type would ask for `input_ids`");

    let eval = ["eval", "--model", path(&base), "--data", name(&rows), "--language", "en", "--max-new-tokens", "4"];
    let measured = |adapted: &[&str]| succeeded(&[&eval[..], adapted].concat()).0;
    let before = measured(&[]);
    let after = measured(&["--adapter", name(&adapter)]);
    for what in ["loss", "perplexity", "wer", "cer", "normalized_wer"] {
        assert!(before.contains(&format!("\n{what} ")) || before.starts_with(what), "{before}");
    }
    assert_ne!(before, after);
    // An adapter of PEFT's type for text is one of this base, too.
    fs::write(
        adapter.join("adapter_config.json"),
        fs::read_to_string(adapter.join("adapter_config.json"))
            .unwrap()
            .replace(r#""task_type": null"#, r#""task_type": "SEQ_2_SEQ_LM""#),
    )
    .unwrap();
    assert_eq!(measured(&["--adapter", name(&adapter)]), after);

    let inspect = ["inspect", name(&adapter), "--model", path(&base)];
    let inspected = Command::new(env!("CARGO_BIN_EXE_peft")).args(inspect).output().unwrap();
    assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stdout));
    succeeded(&["merge", "--model", path(&base), "--adapter", name(&adapter), "--output", name(&merged)]);
    let config = fs::read_to_string(merged.join("config.json")).unwrap();
    assert!(config.contains("WhisperForConditionalGeneration") && merged.join("preprocessor_config.json").is_file());
    let audio = folder.path().join("wav/3.wav");
    let write = ["generate", "--audio", name(&audio), "--language", "en", "--max-new-tokens", "6"];
    let (live, _) = succeeded(&[&write[..], &["--model", path(&base), "--adapter", name(&adapter)]].concat());
    let (folded, _) = succeeded(&[&write[..], &["--model", name(&merged)]].concat());
    assert_eq!(live, folded);
    let measured = succeeded(&[&["eval", "--model", name(&merged)][..], &eval[3..]].concat()).0;
    assert_eq!(measured, after);
}

#[test]
fn transcripts_are_asked_for_in_many_ways() {
    let base = base();
    let audio = fixtures().join("audio/tone.ogg");
    let write = |more: &[&str]| {
        let usual = ["generate", "--model", path(&base), "--audio", name(&audio), "--max-new-tokens", "5"];
        succeeded(&[&usual[..], more].concat()).0
    };
    // Nobody names the language, so that it is heard.
    assert!(!write(&[]).trim().is_empty());
    assert_ne!(write(&["--language", "de", "--translate"]), write(&["--language", "en"]));
    assert!(!write(&["--task", "speech-to-text", "--beams", "3", "--language", "german"]).is_empty());
    let times = write(&["--timestamps", "--language", "en"]);
    assert!(times.lines().all(|it| it.starts_with("[00:00.") && it.contains(" --> 00:00.")), "{times}");
    let refused_with =
        |more: &[&str]| refused(&[&["generate", "--model", path(&base), "--audio", name(&audio)], more].concat());
    assert!(
        refused_with(&["--language", "klingon"]).contains("--language"),
        "{}",
        refused_with(&["--language", "klingon"])
    );
    assert!(refused_with(&["--language", "es"]).contains("this model knows de, en, fr"));
    assert!(refused_with(&["--task", "causal-lm"]).contains("`--audio` is for models that write what they hear"));
    assert!(refused(&["generate", "--model", path(&base), "--prompt", "w5"]).contains("--audio FILE"));
}

#[test]
fn a_recording_that_is_longer_than_the_window_is_written_window_by_window() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let audio = folder.path().join("long.wav");
    fs::write(&audio, tone(440.0, 3.3, 8000)).unwrap();
    let write = ["generate", "--model", path(&base), "--audio", name(&audio), "--language", "en", "--timestamps"];
    let (written, _) = succeeded(&[&write[..], &["--max-new-tokens", "12"]].concat());
    // The tiny model believes that its window is a fifth of a second.
    assert!(written.lines().count() > 1, "{written}");
    let rows = folder.path().join("rows.csv");
    fs::write(&rows, "file,sentence\nlong.wav,w5 w6\n").unwrap();
    let eval = ["eval", "--model", path(&base), "--data", name(&rows), "--max-new-tokens", "4"];
    let (_, logged) = succeeded(&eval);
    assert!(logged.contains("1 of 1 recordings are longer than 1 seconds"), "{logged}");
    assert!(refused(&[&eval[..], &["--truncation", "refuse"]].concat()).contains("nothing may be cut"));
}

#[test]
fn files_that_are_no_recordings_end_a_run_before_its_first_step() {
    let (base, (folder, rows), out) = (base(), data(), tempfile::tempdir().unwrap());
    let output = out.path().join("adapter");
    let train = || {
        refused(&[
            "train",
            "--task",
            "speech-to-text",
            "--model",
            path(&base),
            "--data",
            name(&rows),
            "--output",
            name(&output),
            "--targets",
            "q_proj",
            "--steps",
            "1",
            "--overwrite-output",
        ])
    };
    let third = folder.path().join("wav/2.wav");
    let whole = fs::read(&third).unwrap();
    fs::write(&third, b"no sound").unwrap();
    assert!(train().contains("wav/2.wav"));
    fs::write(&third, b"").unwrap();
    assert!(train().contains("it is empty"));
    fs::remove_file(&third).unwrap();
    assert!(train().contains("wav/2.wav"));
    // A header that promises more than there is shows when the recording is decoded.
    fs::write(&third, &whole[..whole.len() / 2]).unwrap();
    assert!(train().contains("it breaks off"));
    let write = |text: &str| fs::write(&rows, text).unwrap();
    write(r#"{"sound": "wav/0.wav", "text": "w5"}"#);
    assert!(train().contains("`audio` names no column"));
    write(r#"{"audio": 5, "text": "w5"}"#);
    assert!(train().contains("expected the name of a recording"));
    write(r#"{"audio": "wav/0.wav", "text": "w5", "language": "xx"}"#);
    assert!(train().contains("line 1") && train().contains("`xx`"));
}
