//! Recordings to text, window by window.
//!
//! Source: `WhisperGenerationMixin.generate` of `transformers/models/whisper/generation_whisper.py` (5.23), without what it
//! does only when it is asked to: other temperatures for texts that look odd, and earlier text before a window.

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{Adaptable, PeftError, Result, nn};
use peft_models::{AudioInput, Seq2SeqLm};

use crate::data::audio::features::Features;
use crate::generate::logits;
use crate::generate::seq2seq::{Decoder, start_token, write_targets};
use crate::generate::speech::config::SpeechPlan;
use crate::generate::speech::segments::{Segment, segments_of};

/// The text of a recording.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// Its parts, in order.
    pub segments: Vec<Segment>,
    /// The token of the language that was heard, if it was not given.
    pub language: Option<u32>,
}

impl Transcript {
    /// All tokens, times included.
    pub fn tokens(&self) -> Vec<u32> {
        self.segments.iter().flat_map(|it| it.tokens.iter().copied()).collect()
    }

    /// All tokens of words: what a tokenizer decodes.
    pub fn words(&self, plan: &SpeechPlan) -> Vec<u32> {
        self.tokens().into_iter().filter(|it| *it < plan.first_time()).collect()
    }
}

/// Writes the transcripts of recordings: `window` frames of features are read at once, and a longer recording in windows
/// that follow each other, with times whether they are asked for or not.
///
/// `on_segment` sees each part as it comes, with the number of its recording.
///
/// # Errors
/// If the model reads other features, the plan asks for what its files do not have, or there is no room for a token.
pub fn transcribe<M: Seq2SeqLm<AudioInput> + Adaptable>(
    model: &M,
    recordings: &[Features],
    window: usize,
    plan: &SpeechPlan,
    device: &Device,
    mut on_segment: impl FnMut(usize, &Segment) -> Result<()>,
) -> Result<Vec<Transcript>> {
    let model = nn::eval(model);
    let is_long = recordings.iter().any(|it| it.frames > window);
    if is_long && plan.times.is_none() {
        let reason = "a recording is longer than the window, and the model's generation_config.json has no tokens of times, by \
                      which the next window is found: cut it into pieces";
        return Err(PeftError::Invalid(reason.to_owned()));
    }
    let timestamps = plan.timestamps || is_long;
    let start = start_token(&model, &plan.generation)?;
    let mut transcripts = vec![Transcript::default(); recordings.len()];
    let mut seeks = vec![0; recordings.len()];
    loop {
        let rows: Vec<usize> = (0..recordings.len()).filter(|it| seeks[*it] < recordings[*it].frames).collect();
        if rows.is_empty() {
            return Ok(transcripts);
        }
        let frames: Vec<usize> = rows.iter().map(|row| (recordings[*row].frames - seeks[*row]).min(window)).collect();
        let cut = |(row, frames): (&usize, &usize)| recordings[*row].slice(seeks[*row], *frames, window);
        let parts: Vec<Features> = rows.iter().zip(&frames).map(cut).collect();
        let source = batch_of(&parts, device)?;
        model.check_source(&source)?;
        let decoder = Decoder::new(&model, &source, device);
        // All recordings begin together.
        if plan.hears_language() && seeks.iter().all(|it| *it == 0) {
            let heard = languages(decoder.clone(), start, plan, rows.len())?;
            rows.iter().zip(heard).for_each(|(row, language)| transcripts[*row].language = Some(language));
        }
        let prompts: Vec<Vec<u32>> =
            rows.iter().map(|row| plan.prompt_for(start, transcripts[*row].language, timestamps)).collect();
        let generation = plan.for_window(prompts[0].len(), timestamps);
        let written = write_targets(decoder, &prompts, &generation, |_, _| Ok(()))?;
        for ((row, frames), mut tokens) in rows.into_iter().zip(frames).zip(written) {
            if tokens.last().is_some_and(|it| generation.eos.contains(it)) {
                tokens.pop();
            }
            let (segments, next) = segments_of(&tokens, plan.first_time(), seeks[row], frames);
            // Each pair of times lies behind the one before, or a window would be heard for ever.
            seeks[row] += next.max(1);
            segments.iter().try_for_each(|it| on_segment(row, it))?;
            transcripts[row].segments.extend(segments);
        }
    }
}

/// The features of a batch, which must all be of one size.
///
/// # Errors
/// If they are not.
pub(crate) fn batch_of(batch: &[Features], device: &Device) -> Result<AudioInput> {
    let size = |it: &Features| (it.mels, it.frames);
    let Some((mels, frames)) = batch.first().map(size).filter(|first| batch.iter().all(|it| size(it) == *first)) else {
        return Err(PeftError::Invalid("a batch of recordings must have features of one size".to_owned()));
    };
    let values: Vec<f32> = batch.iter().flat_map(|it| it.values.iter().copied()).collect();
    let data = TensorData::new(values, [batch.len(), mels, frames]);
    Ok(AudioInput { input_features: Tensor::from_data(data, device) })
}

/// The likeliest language of each recording, by the first token behind the start.
fn languages<M: Seq2SeqLm<AudioInput>>(
    mut decoder: Decoder<'_, AudioInput, M>,
    start: u32,
    plan: &SpeechPlan,
    rows: usize,
) -> Result<Vec<u32>> {
    let scores = decoder.step(&vec![[start].as_slice(); rows]);
    let likeliest = |scores: Vec<f32>| {
        logits::check(&scores, "the start of a transcript")?;
        let known = plan.languages.iter().filter(|it| (**it as usize) < scores.len());
        // Of equals the first token, as `argmax` has it.
        let best = known.copied().max_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]).then(b.cmp(a)));
        best.ok_or_else(|| PeftError::Invalid("the model has no row for any language of `lang_to_id`".to_owned()))
    };
    scores.into_iter().map(likeliest).collect()
}
