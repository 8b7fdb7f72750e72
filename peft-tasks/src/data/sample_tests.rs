//! The tokenizer of these tests has a token for every byte, so ids can be read off the text.

use super::*;
use crate::data::tokenizer::{SpecialTokens, testing};

const BOS: u32 = 256;
const EOS: u32 = 257;

/// The predicted tokens as text, with `_` where nothing is predicted.
fn shown(tokenizer: &Tokenizer, sample: &Sample) -> String {
    let label = |it: &i64| match u32::try_from(*it) {
        Ok(id) => tokenizer.decode(&[id], false).unwrap(),
        Err(_) => "_".to_owned(),
    };
    sample.labels.iter().map(label).collect()
}

#[test]
fn text_ends_with_the_end_token_unless_it_is_cut() {
    let tokenizer = testing::bytes();
    let mut builder = Preprocessor::new(&tokenizer);
    let sample = builder.text("hey").unwrap();
    assert_eq!((sample.input_ids[0], *sample.input_ids.last().unwrap()), (BOS, EOS));
    assert_eq!((shown(&tokenizer, &sample).as_str(), sample.targets()), ("<s>hey</s>", 4));
    assert_eq!(builder.text("hey</s>").unwrap(), sample);
    builder.max_length = Some(3);
    assert_eq!(shown(&tokenizer, &builder.text("hey").unwrap()), "<s>he");
    builder.truncation = Truncation::Left;
    assert_eq!(shown(&tokenizer, &builder.text("hey").unwrap()), "ey</s>");
}

#[test]
fn only_the_completion_is_predicted() {
    let tokenizer = testing::bytes();
    let mut builder = Preprocessor::new(&tokenizer);
    assert_eq!(shown(&tokenizer, &builder.completion("1+1=", "2").unwrap()), "_____2</s>");
    builder.train_on_prompt = true;
    assert_eq!(shown(&tokenizer, &builder.completion("1+1=", "2").unwrap()), "<s>1+1=2</s>");
    builder.train_on_prompt = false;
    builder.append_eos = false;
    assert_eq!(builder.completion("é", "").unwrap().targets(), 0);
}

#[test]
fn only_the_assistant_is_predicted() {
    let tokenizer = testing::bytes();
    let source = "{% for m in messages %}<|im_start|>{{ m.role[0] }}:{{ m.content }}<|im_end|>{% endfor %}\
                  {% if add_generation_prompt %}<|im_start|>a:{% endif %}";
    let template = ChatTemplate::new(source, SpecialTokens::default()).unwrap();
    let talk = [Message::new("user", "Hi"), Message::new("assistant", "Yo 🦀"), Message::new("user", "?")];
    let mut builder = Preprocessor::new(&tokenizer);
    let sample = builder.chat(&template, &talk).unwrap();
    let predicted: Vec<u32> = sample.labels.iter().filter_map(|it| u32::try_from(*it).ok()).collect();
    assert_eq!(tokenizer.decode(&predicted, false).unwrap(), "Yo 🦀<|im_end|>");
    assert!(sample.labels.ends_with(&[IGNORED; 4]));
    builder.train_on_prompt = true;
    assert_eq!(builder.chat(&template, &talk).unwrap().targets(), sample.len() - 1);
}

#[test]
fn pairs_and_words() {
    let tokenizer = testing::bytes();
    let mut builder = Preprocessor::new(&tokenizer);
    let pair = builder.sequence("ab", Some("c")).unwrap();
    assert_eq!((pair.type_ids, pair.labels.len()), (Some(vec![0, 0, 0, 0, 1]), 0));
    builder.max_length = Some(3);
    assert_eq!(builder.sequence("abcdef", None).unwrap().len(), 3);
    builder.max_length = None;
    let words = builder.words(&["ab", "", "c"], &[7, 8, 9]).unwrap();
    // <s> a b space space c: an empty word has no token to carry its label.
    assert_eq!(words.labels, [IGNORED, 7, IGNORED, IGNORED, IGNORED, 9]);
    assert!(builder.words(&["ab"], &[]).is_err());
}

#[test]
fn trimmed_white_space_belongs_where_it_stands() {
    assert!(overlap(&(5..5), &(3..5)));
    assert!(!overlap(&(3..3), &(3..5)));
    assert!(!overlap(&(6..6), &(3..5)));
    assert!(overlap(&(4..6), &(5..9)));
    assert!(!overlap(&(4..5), &(5..9)));
}

#[test]
fn chunks_put_together_are_the_document() {
    let document = Sample { type_ids: Some(vec![0; 10]), ..Sample::language((0..10).collect()) };
    for max_length in 1..12 {
        let chunks = document.chunks(max_length);
        let ids: Vec<u32> = chunks.iter().flat_map(|it| it.input_ids.clone()).collect();
        assert_eq!(ids, document.input_ids);
        assert!(chunks.iter().all(|it| it.len() <= max_length && it.labels.len() == it.len()));
    }
}
