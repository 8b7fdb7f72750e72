use super::*;

const FILE: &str = r#"{"is_multilingual": true, "no_timestamps_token_id": 9, "max_initial_timestamp_index": 50,
    "lang_to_id": {"<|en|>": 3, "<|de|>": 4}, "task_to_id": {"transcribe": 5, "translate": 6}"#;

fn config(more: &str) -> SpeechConfig {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("generation_config.json"), format!("{FILE}{more}}}")).unwrap();
    SpeechConfig::load(folder.path()).unwrap()
}

fn request(language: Option<&str>, task: Option<SpeechTask>) -> SpeechRequest {
    SpeechRequest { language: language.map(str::to_owned), task, timestamps: None }
}

/// `_retrieve_init_tokens` of transformers 5.23.
#[test]
fn prompts_are_those_of_the_reference() {
    let prompt = |more: &str, language, task, timestamps| {
        config(more).plan(&request(language, task)).unwrap().prompt_for(1, Some(4), timestamps)
    };
    let translate = Some(SpeechTask::Translate);
    assert_eq!(prompt("", Some("en"), None, false), [1, 3, 5, 9]);
    assert_eq!(prompt("", Some("en"), None, true), [1, 3, 5]);
    assert_eq!(prompt("", Some("german"), translate, false), [1, 4, 6, 9]);
    // A language that is heard brings no task, unless the file forces one.
    assert_eq!(prompt("", None, None, false), [1, 4, 9]);
    assert_eq!(prompt("", None, translate, false), [1, 4, 6, 9]);
    let forced = r#", "forced_decoder_ids": [[1, null], [2, 5], [3, 9]]"#;
    assert_eq!(prompt(forced, None, None, false), [1, 4, 5, 9]);
    assert_eq!(prompt(forced, None, None, true), [1, 4, 5]);
    assert_eq!(prompt(forced, Some("en"), translate, false), [1, 3, 6, 9]);
    let forced = r#", "forced_decoder_ids": [[1, 3], [2, 6]]"#;
    assert_eq!(prompt(forced, None, None, false), [1, 3, 6, 9]);
    assert_eq!(prompt(r#", "language": "de", "task": "translate""#, None, None, false), [1, 4, 6, 9]);
}

#[test]
fn a_command_transcribes_unless_it_is_told_otherwise() {
    let prompt = |more: &str, task| {
        let config = config(more);
        config.plan(&config.transcribing(request(None, task))).unwrap().prompt_for(1, Some(4), false)
    };
    assert_eq!(prompt("", None), [1, 4, 5, 9]);
    assert_eq!(prompt("", Some(SpeechTask::Translate)), [1, 4, 6, 9]);
    assert_eq!(prompt(r#", "forced_decoder_ids": [[1, null], [2, 6]]"#, None), [1, 4, 6, 9]);
    assert_eq!(prompt(r#", "is_multilingual": false"#, None), [1, 4, 9]);
}

#[test]
fn labels_begin_as_the_tokenizer_writes_them() {
    let prefix = |language, task| config("").label_prefix(&request(language, task)).unwrap();
    assert_eq!(prefix(Some("en"), None), [3, 5, 9]);
    assert_eq!(prefix(Some("de"), Some(SpeechTask::Translate)), [4, 6, 9]);
    assert_eq!(prefix(None, None), [9]);
    let forced = config(r#", "forced_decoder_ids": [[1, 3], [2, 6]]"#);
    assert_eq!(forced.label_prefix(&SpeechRequest::default()).unwrap(), [9]);
}

#[test]
fn what_a_model_cannot_do_is_refused() {
    let refusal = |config: SpeechConfig, request: &SpeechRequest| config.plan(request).unwrap_err().to_string();
    let english = config(r#", "is_multilingual": false"#);
    assert!(refusal(english, &request(Some("en"), None)).contains("English only"));
    assert!(refusal(config(""), &request(Some("fr"), None)).ends_with("this model knows de, en"));
    let folder = tempfile::tempdir().unwrap();
    let plain = || SpeechConfig::load(folder.path()).unwrap();
    assert!(refusal(plain(), &request(Some("fr"), None)).contains("generation_config.json has no tokens"));
    let times = SpeechRequest { timestamps: Some(true), ..SpeechRequest::default() };
    assert!(refusal(plain(), &times).contains("`no_timestamps_token_id`"));
    assert!(
        refusal(config(r#", "forced_decoder_ids": [[1, 3], [3, 6]]"#), &SpeechRequest::default()).contains("place 2")
    );
    std::fs::write(folder.path().join("generation_config.json"), r#"{"no_speech_threshold": 0.6}"#).unwrap();
    assert!(SpeechConfig::load(folder.path()).unwrap_err().to_string().contains("`no_speech_threshold`"));
}
