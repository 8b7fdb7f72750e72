//! Transcripts of recordings, as Whisper writes them.

mod config;
mod languages;
mod segments;
mod transcribe;

pub use config::{SpeechConfig, SpeechPlan, SpeechRequest, SpeechTask};
pub use languages::language_token;
pub use segments::Segment;
pub(crate) use transcribe::batch_of;
pub use transcribe::{Transcript, transcribe};
