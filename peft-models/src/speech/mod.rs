//! Models that read sound, one architecture per file.

pub mod whisper;
