//! `peft generate --audio`: what is said in a recording.

use std::path::{Path, PathBuf};

use peft_core::files::checkpoint::Placement;
use peft_core::{Adaptable, PeftError, Result};
use peft_tasks::data::audio::{FeatureExtractor, recordings};
use peft_tasks::data::tokenizer::Tokenizer;
use peft_tasks::generate::speech::{Segment, SpeechConfig, SpeechPlan, SpeechRequest, SpeechTask, transcribe};

use super::generation::{Args, blame_the_weights, end_of};
use super::terminal::{part, say};
use crate::load::adapters::{AdapterSource, with_adapters};
use crate::load::text::{fitted, load_tokenizer, rows_with};
use crate::run::registry::Registry;

pub(super) fn run(
    args: &Args,
    audio: &Path,
    (folder, adapters, place): (&PathBuf, &[AdapterSource], &Placement),
    registry: &Registry,
) -> Result<()> {
    let task = registry.tasks.chosen(args.task.as_deref(), adapters, folder)?;
    if task.name() != "speech-to-text" {
        let reason = format!("is for models that write what they hear; this one is for {}", task.name());
        return Err(PeftError::config("--audio", reason));
    }
    let tokenizer = load_tokenizer(folder, adapters)?;
    let mut config = SpeechConfig::load(folder)?;
    args.fill(&mut config.generation);
    let request = SpeechRequest {
        language: args.language.clone(),
        task: args.translate.then_some(SpeechTask::Translate),
        timestamps: args.timestamps.then_some(true),
    };
    let mut plan = config.plan(&config.transcribing(request))?;
    end_of(&mut plan.generation, &tokenizer);
    // Before the weights: a file that cannot be read is the likeliest mistake.
    let extractor = FeatureExtractor::load(folder)?;
    let features = recordings::load(audio, &extractor)?;
    let (base, _) = registry.architectures.load_speech_seq2seq(folder, place)?;
    let own = rows_with(&base.spec(), &[])?;
    let peft = with_adapters(base, adapters, &registry.methods)?;
    let tokenizer = fitted(tokenizer, own, rows_with(peft.spec(), &[])?)?;
    let frames = extractor.config().frames();
    let mut stream = tokenizer.stream(true);
    let mut has_begun = false;
    let transcripts = transcribe(peft.model(), &[features], frames, &plan, &place.device, |_, segment| {
        if args.timestamps {
            return line(segment, &tokenizer, &plan);
        }
        for token in segment.tokens.iter().filter(|it| **it < plan.first_time()) {
            if let Some(text) = stream.push(*token)? {
                // What is written begins with a space.
                let text = if has_begun { text.as_str() } else { text.trim_start() };
                has_begun |= !text.is_empty();
                part(text)?;
            }
        }
        Ok(())
    })
    .map_err(|error| blame_the_weights(error, peft.model(), folder, adapters))?;
    if let Some(language) = transcripts[0].language.and_then(|it| tokenizer.token(it)) {
        tracing::info!("the language was taken to be {language}");
    }
    if args.timestamps { Ok(()) } else { say!("") }
}

/// A part of a recording, with the seconds that it begins and ends at.
fn line(segment: &Segment, tokenizer: &Tokenizer, plan: &SpeechPlan) -> Result<()> {
    let words: Vec<u32> = segment.tokens.iter().copied().filter(|it| *it < plan.first_time()).collect();
    let text = tokenizer.decode(&words, true)?;
    say!("[{} --> {}] {}", clock(segment.start), clock(segment.end), text.trim())
}

/// Minutes and seconds, and hours where there are any.
fn clock(seconds: f64) -> String {
    let hundredths = (seconds * 100.0).round() as u64;
    let (minutes, rest) = (hundredths / 6000, hundredths % 6000);
    let clock = format!("{:02}:{:02}.{:02}", minutes % 60, rest / 100, rest % 100);
    if minutes < 60 { clock } else { format!("{:02}:{clock}", minutes / 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        assert_eq!(clock(0.0), "00:00.00");
        assert_eq!(clock(59.98), "00:59.98");
        assert_eq!(clock(3661.5), "01:01:01.50");
    }
}
