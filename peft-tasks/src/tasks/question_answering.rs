//! Extractive question answering: the answer to a question is a span of a context.
//!
//! Follows transformers' `examples/pytorch/question-answering/run_qa.py`: long contexts in windows that overlap, an answer
//! outside a window is the first token, and the best span over all windows of a context is its answer.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::{Device, Tensor};
use peft_core::{PeftError, Result};
use peft_models::{Pretrained, QuestionAnswerer};
use serde_json::Map;

use crate::data::batch::{Batch, Padding, collate};
use crate::data::dataset::Row;
use crate::data::questions::Question;
use crate::data::tensors::line;
use crate::data::text_data::TextData;
use crate::data::windows::{Window, windows};
use crate::eval::squad;
use crate::tasks::in_batches::in_batches;
use crate::tasks::loss;
use crate::tasks::task::{Evaluation, Task, scalar};

/// The task of extractive question answering.
#[derive(Debug, Clone)]
pub struct QuestionAnswering {
    questions: Vec<Question>,
    windows: Vec<Window>,
    /// Window → question.
    of: Vec<usize>,
    padding: Padding,
    /// Longest answer in tokens.
    pub max_answer_length: usize,
    /// Best starts and ends of a window that are put together.
    pub n_best: usize,
}

impl QuestionAnswering {
    /// Questions and the windows of each.
    ///
    /// # Errors
    /// If there are none, or not as many of one as of the other.
    pub fn new(questions: Vec<Question>, windows: Vec<Vec<Window>>, padding: Padding) -> Result<Self> {
        if questions.is_empty() || questions.len() != windows.len() {
            let counts = format!("{} questions and windows of {}", questions.len(), windows.len());
            return Err(PeftError::Invalid(format!(
                "every question needs its windows, and there must be some: {counts}"
            )));
        }
        let of = windows.iter().enumerate().flat_map(|(at, windows)| vec![at; windows.len()]).collect();
        let windows = windows.into_iter().flatten().collect();
        Ok(Self { questions, windows, of, padding, max_answer_length: 30, n_best: 20 })
    }

    fn batch(&self, items: &[usize]) -> Result<Batch> {
        collate(&items.iter().map(|it| &self.windows[*it].sample).collect::<Vec<_>>(), &self.padding)
    }

    /// Behind virtual tokens the places are counted from the first of those, as in the reference: its adapters have
    /// learned that.
    fn loss_of(&self, logits: Tensor<3>, items: &[usize], device: &Device) -> Tensor<1> {
        let places = |place: fn(&Window) -> usize| {
            line(&items.iter().map(|it| place(&self.windows[*it]) as i64).collect::<Vec<_>>(), device)
        };
        let loss = loss::question_answering(logits, places(|it| it.answer.0), places(|it| it.answer.1));
        loss.mul_scalar(items.len() as f64)
    }

    /// Exact match and F1 in per cent, of answers in the order of the questions.
    fn measure(&self, found: &[String]) -> (f64, f64) {
        let (mut exact, mut f1) = (0.0, 0.0);
        for (asked, found) in self.questions.iter().zip(found) {
            let references: Vec<String> = asked.answers.iter().map(|it| asked.context[it.clone()].to_owned()).collect();
            exact += squad::exact_match(&references, found);
            f1 += squad::f1(&references, found);
        }
        let share = 100.0 / self.questions.len() as f64;
        (exact * share, f1 * share)
    }

    /// The answer to every question. `scores` has, for every window, that of each token to start and to end an answer.
    fn answers(&self, scores: &[Vec<[f32; 2]>]) -> Vec<String> {
        let silent = self.questions.iter().any(|it| it.answers.is_empty());
        let mut of: HashMap<usize, Vec<usize>> = HashMap::new();
        for (window, question) in self.of.iter().enumerate() {
            of.entry(*question).or_default().push(window);
        }
        let answer = |(at, asked): (usize, &Question)| {
            let windows = of.get(&at).map_or(&[][..], Vec::as_slice);
            let rows = windows.iter().map(|it| (&self.windows[*it], scores[*it].as_slice()));
            let (best, none) = best(rows, self.n_best, self.max_answer_length);
            match best {
                // Only data with questions that have no answer teaches a model to say so.
                Some((score, place)) if !silent || score >= none => asked.context[place].to_owned(),
                _ => String::new(),
            }
        };
        self.questions.iter().enumerate().map(answer).collect()
    }
}

/// The best answer over the windows of a context with its score, and the score of there being none.
fn best<'a>(
    rows: impl Iterator<Item = (&'a Window, &'a [[f32; 2]])>,
    n_best: usize,
    longest: usize,
) -> (Option<(f32, Range<usize>)>, f32) {
    let (mut best, mut none): (Option<(f32, Range<usize>)>, f32) = (None, f32::INFINITY);
    for (window, scores) in rows {
        none = none.min(scores.first().map_or(f32::INFINITY, |it| it[0] + it[1]));
        let top = |which: usize| {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b][which].total_cmp(&scores[*a][which]));
            order.truncate(n_best);
            order
        };
        let ends = top(1);
        for start in top(0) {
            for end in ends.iter().copied().filter(|end| (start..start + longest).contains(end)) {
                let (Some(first), Some(last)) = (&window.places[start], &window.places[end]) else { continue };
                let score = scores[start][0] + scores[end][1];
                if best.as_ref().is_none_or(|it| score > it.0) {
                    best = Some((score, first.start..last.end));
                }
            }
        }
    }
    (best, none)
}

impl TextData {
    /// The task of extractive question answering, in SQuAD's columns or those that were given for text, prompt and label.
    ///
    /// With an adapter, the reference does not give the model token type ids (`PeftModelForQuestionAnswering.forward`), so
    /// `adapted` leaves them out too.
    ///
    /// # Errors
    /// If the file cannot be read, a column is missing, an answer is not where it should be, or a question leaves no room
    /// for its context.
    pub fn question_answering(&self, base: &(impl Pretrained + ?Sized), adapted: bool) -> Result<QuestionAnswering> {
        let folder = base.folder()?;
        let tokenizer = self.tokenizer_of(folder)?;
        let (data, questions) = self.questions()?;
        let max_length = self.row_length(folder)?;
        let stride = self.doc_stride.unwrap_or(max_length / 3);
        let cut = |(row, asked): (&Row, &Question)| {
            let mut windows =
                windows(&tokenizer, asked, max_length, stride).map_err(|error| data.bad_row(row, error))?;
            if adapted {
                windows.iter_mut().for_each(|it| it.sample.type_ids = None);
            }
            Ok(windows)
        };
        let windows = data.rows.iter().zip(&questions).map(cut).collect::<Result<Vec<_>>>()?;
        QuestionAnswering::new(questions, windows, Padding::right(tokenizer.fill_id())).map_err(|error| data.bad(error))
    }
}

impl<M: QuestionAnswerer> Task<M> for QuestionAnswering {
    fn lengths(&self) -> Vec<usize> {
        self.windows.iter().map(|it| it.sample.len()).collect()
    }

    fn tokens(&self, items: &[usize]) -> usize {
        items.iter().map(|it| self.windows[*it].sample.len()).sum()
    }

    fn targets(&self, _virtual_tokens: usize, items: &[usize]) -> usize {
        items.len()
    }

    fn loss_sum(&self, model: &M, items: &[usize], device: &Device) -> Result<Tensor<1>> {
        Ok(self.loss_of(model.logits(&self.batch(items)?.input(device)), items, device))
    }

    fn places(&self, _model: &M, items: &[usize], labelled: bool) -> Result<Option<Vec<usize>>> {
        Ok(Some(self.batch(items)?.places(labelled)))
    }

    fn evaluate(&self, model: &M, batch_size: usize, device: &Device) -> Result<Evaluation> {
        let parts = in_batches(self.windows.len(), batch_size, |items, _| {
            let logits = model.logits(&self.batch(items)?.input(device));
            let seq = logits.dims()[1];
            let sum = scalar(&self.loss_of(logits.clone(), items, device));
            let data = logits.into_data().convert::<f32>();
            let rows = data.as_slice::<f32>().unwrap_or(&[]).chunks(2 * seq);
            let scores = rows.zip(items).map(|(row, item)| {
                let tokens = self.windows[*item].sample.len();
                row.chunks(2).take(tokens).map(|it| [it[0], it[1]]).collect::<Vec<_>>()
            });
            Ok((sum, scores.collect::<Vec<_>>()))
        })?;
        let (sums, scores): (Vec<f64>, Vec<_>) = parts.into_iter().unzip();
        let (exact, f1) = self.measure(&self.answers(&scores.concat()));
        let mut metrics = Map::new();
        metrics.insert("exact_match".into(), exact.into());
        metrics.insert("f1".into(), f1.into());
        Ok(Evaluation { loss: sums.iter().sum::<f64>() / self.windows.len() as f64, metrics })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::testing;

    fn asked(answer: Option<Range<usize>>) -> Question {
        Question { question: "q".into(), context: "0123456789".into(), answers: answer.into_iter().collect() }
    }

    fn task(questions: Vec<Question>) -> QuestionAnswering {
        let windows = questions.iter().map(|it| windows(&testing::bytes(), it, 8, 2).unwrap()).collect();
        QuestionAnswering::new(questions, windows, Padding::right(0)).unwrap()
    }

    fn scores(windows: &[Window], set: &[(usize, usize, [f32; 2])]) -> Vec<Vec<[f32; 2]>> {
        let mut scores: Vec<_> = windows.iter().map(|it| vec![[-9.0, -9.0]; it.places.len()]).collect();
        set.iter().for_each(|(window, token, score)| scores[*window][*token] = *score);
        scores
    }

    #[test]
    fn the_best_pair_of_all_windows_is_the_answer() {
        let mut task = task(vec![asked(Some(4..7))]);
        // `1` to `3` in the first window, `4` to `5` in the second with a higher sum; a pair that ends before it starts,
        // and one that starts in the question, count for nothing.
        let mut set = vec![(0, 4, [3.0, -9.0]), (0, 6, [-9.0, 3.0]), (1, 4, [4.0, -9.0]), (1, 5, [-9.0, 3.0])];
        set.extend([(2, 5, [9.0, -9.0]), (2, 4, [-9.0, 9.0]), (2, 1, [9.0, -9.0])]);
        let scores = scores(&task.windows, &set);
        // The last window: `8` starts with 9, `7` ends with 9; the best that is left is `8` to itself: 9 − 9 = 0.
        assert_eq!(task.answers(&scores), ["45"]);
        task.max_answer_length = 1;
        assert_eq!(task.answers(&scores), ["8"]);
        // Word by word nothing is shared, and letter by letter does not count.
        assert_eq!(task.measure(&["45".into()]), (0.0, 0.0));
        assert_eq!(task.measure(&["The 456!".into()]), (100.0, 100.0));
    }

    /// The first token's score is that of no answer; the least sure window decides.
    #[test]
    fn nothing_is_said_only_where_the_data_has_such_questions() {
        let set = [(0, 0, [5.0, 5.0]), (1, 0, [1.0, 1.0]), (2, 0, [6.0, 6.0]), (0, 3, [0.5, 0.4])];
        let known = task(vec![asked(Some(0..1))]);
        assert_eq!(known.answers(&scores(&known.windows, &set)), ["0"]);
        let mixed = task(vec![asked(Some(0..1)), asked(None)]);
        let mut set = set.to_vec();
        set.extend([(3, 3, [2.0, 2.0]), (3, 0, [1.0, 1.0])]);
        assert_eq!(mixed.answers(&scores(&mixed.windows, &set)), ["", "0"]);
        assert_eq!(mixed.measure(&["".into(), "0".into()]), (0.0, 0.0));
        assert_eq!(mixed.measure(&["0".into(), "".into()]), (100.0, 100.0));
    }
}
