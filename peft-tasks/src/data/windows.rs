//! Long contexts of questions in windows that overlap.

use std::ops::Range;

use peft_core::Result;

use crate::data::questions::Question;
use crate::data::sample::Sample;
use crate::data::tokenizer::Tokenizer;

/// A question with as much of its context as fits into a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// The tokens of both, without labels.
    pub sample: Sample,
    /// For every token of the context its bytes there; `None` for the question and special tokens, `[seq]`.
    pub places: Vec<Option<Range<usize>>>,
    /// First and last token of the answer.
    pub answer: (usize, usize),
}

/// Cuts a question and its context into windows of at most `max_length` tokens, of which `stride` are those of the window
/// before.
///
/// # Errors
/// The question leaves no room for more than `stride` tokens of the context.
pub fn windows(tokenizer: &Tokenizer, asked: &Question, max_length: usize, stride: usize) -> Result<Vec<Window>> {
    let encoded = tokenizer.encode_windows(&asked.question, &asked.context, max_length, stride)?;
    let windows = encoded.into_iter().map(|(encoded, of_context)| {
        let offsets = encoded.offsets.iter().zip(&of_context);
        let places: Vec<_> = offsets.map(|(place, inside)| inside.then(|| place.clone())).collect();
        let answer = match asked.answers.first().and_then(|it| tokens_of(it, &places)) {
            Some(tokens) => tokens,
            None => {
                let first = [tokenizer.role_id("cls_token"), tokenizer.bos_id()];
                let place = |id: &u32| encoded.ids.iter().position(|it| it == id);
                let first = first.iter().flatten().find_map(place).unwrap_or(0);
                (first, first)
            }
        };
        let sample = Sample { input_ids: encoded.ids, type_ids: Some(encoded.type_ids), ..Sample::default() };
        Window { sample, places, answer }
    });
    Ok(windows.collect())
}

/// The tokens that an answer starts and ends in, if the window has all of it.
fn tokens_of(answer: &Range<usize>, places: &[Option<Range<usize>>]) -> Option<(usize, usize)> {
    let inside = || places.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?)));
    let (first, last) = (inside().next()?.1, inside().next_back()?.1);
    if first.start > answer.start || last.end < answer.end {
        return None;
    }
    let start = inside().rfind(|(_, it)| it.start <= answer.start)?.0;
    let end = inside().find(|(_, it)| it.end >= answer.end)?.0;
    Some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::testing;

    fn asked(answer: Option<Range<usize>>) -> Question {
        Question { question: "q".into(), context: "0123456789".into(), answers: answer.into_iter().collect() }
    }

    /// A token a byte: `<s> q </s>` and 5 of the context, of which the window before has 2.
    #[test]
    fn windows_overlap_and_know_where_the_answer_is() {
        let tokenizer = testing::bytes();
        let windows = windows(&tokenizer, &asked(Some(4..7)), 8, 2).unwrap();
        let text = |it: &Window| tokenizer.decode(&it.sample.input_ids, false).unwrap();
        let texts: Vec<String> = windows.iter().map(text).collect();
        assert_eq!(texts, ["<s>q</s>01234", "<s>q</s>34567", "<s>q</s>6789"]);
        // The first lacks the end, the second has all of `456`, the third its end only.
        assert_eq!(windows.iter().map(|it| it.answer).collect::<Vec<_>>(), [(0, 0), (4, 6), (0, 0)]);
        assert_eq!(windows[1].places[..4], [None, None, None, Some(3..4)]);
        assert_eq!(windows[1].sample.type_ids.as_ref().unwrap()[..4], [0, 0, 0, 1]);
    }

    #[test]
    fn a_question_must_leave_room() {
        let error = windows(&testing::bytes(), &asked(None), 5, 2).unwrap_err().to_string();
        assert!(error.contains("leaves room for 2") && error.contains("doc_stride"), "{error}");
        assert!(windows(&testing::bytes(), &asked(None), 2, 0).is_err());
        // What fits needs no stride.
        assert_eq!(windows(&testing::bytes(), &asked(None), 13, 100).unwrap().len(), 1);
    }
}
