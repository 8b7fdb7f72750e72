//! What the tokens of a window say of time.
//!
//! Source: `_retrieve_segment` of `transformers/models/whisper/generation_whisper.py` (5.23).

/// Seconds from one token of times to the next.
const TIME_STEP: f64 = 0.02;

/// Seconds of a frame of features.
const FRAME: f64 = 0.01;

/// Frames of features that become one position of the encoder.
const STRIDE: usize = 2;

/// A part of a recording that the model wrote a text for.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Seconds from the beginning of the recording.
    pub start: f64,
    /// The same of its end.
    pub end: f64,
    /// What was written, times included, prompt and end token not.
    pub tokens: Vec<u32>,
}

/// The segments of a window of `frames` frames that begins at frame `seek`, and how many frames on the next one begins.
///
/// Two times in a row end a segment and begin another; what follows the last pair is heard again in the next window. A
/// single time at the end says that nothing more is said.
pub(super) fn segments_of(tokens: &[u32], first_time: u32, seek: usize, frames: usize) -> (Vec<Segment>, usize) {
    let offset = seek as f64 * TIME_STEP / STRIDE as f64;
    let is_time = |it: usize| tokens[it] >= first_time;
    let seconds = |token: u32| offset + (f64::from(token) - f64::from(first_time)) * TIME_STEP;
    let ends_alone = tokens.len() >= 2 && !is_time(tokens.len() - 2) && is_time(tokens.len() - 1);
    let mut cuts: Vec<usize> = (1..tokens.len()).filter(|it| is_time(it - 1) && is_time(*it)).collect();
    let Some(last) = cuts.last_mut() else {
        let time = (0..tokens.len()).rfind(|it| is_time(*it)).map(|it| tokens[it]).filter(|it| *it != first_time);
        let end = match time {
            Some(time) => seconds(time),
            None => offset + (frames as f64 * FRAME / TIME_STEP).trunc() * TIME_STEP,
        };
        return (vec![Segment { start: offset, end, tokens: tokens.to_vec() }], frames);
    };
    if ends_alone {
        cuts.push(tokens.len());
    } else {
        // With both times of the last pair, by which it is known that more is to come.
        *last += 1;
    }
    let (mut segments, mut begin) = (Vec::new(), 0);
    for (at, cut) in cuts.iter().enumerate() {
        let part = &tokens[begin..*cut];
        let back = if at + 1 < cuts.len() || ends_alone { 1 } else { 2 };
        let end = part.len().checked_sub(back).map_or(part[0], |it| part[it]);
        segments.push(Segment { start: seconds(part[0]), end: seconds(end), tokens: part.to_vec() });
        begin = *cut;
    }
    let next = if ends_alone { frames } else { (tokens[begin - 2] - first_time) as usize * STRIDE };
    (segments, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `WhisperGenerationMixin._retrieve_segment` of transformers 5.23 with the first time at 100.
    #[test]
    fn pairs_of_times_cut() {
        let of = |tokens: &[u32]| {
            let (segments, next) = segments_of(tokens, 100, 50, 3000);
            let times: Vec<(u32, u32, usize)> = segments
                .iter()
                .map(|it| ((it.start * 100.0).round() as u32, (it.end * 100.0).round() as u32, it.tokens.len()))
                .collect();
            (times, next)
        };
        assert_eq!(of(&[1, 2]), (vec![(50, 3050, 2)], 3000));
        assert_eq!(of(&[100, 1, 110]), (vec![(50, 70, 3)], 3000));
        assert_eq!(of(&[100, 1, 110, 110, 2, 120]), (vec![(50, 70, 3), (70, 90, 3)], 3000));
        assert_eq!(of(&[100, 1, 110, 110, 2]), (vec![(50, 70, 4)], 20));
        assert_eq!(of(&[100, 1, 110, 110, 2, 120, 120]), (vec![(50, 70, 3), (70, 90, 4)], 40));
        assert_eq!(of(&[]), (vec![(50, 3050, 0)], 3000));
    }
}
