//! Models that read sound; what they write is compared in `generation` of `peft`.

use std::path::Path;

use burn::tensor::Tensor;
use peft_core::files::checkpoint::TensorFile;

use super::{
    AudioInput, ModelInput, Seq2SeqLm, assert_close, assert_loss, device, integers, load_speech_seq2seq,
    loss_of_every_position, still,
};

pub(super) fn check_pass(model: &Path, inputs: &TensorFile, expected: &TensorFile) {
    let model = still(load_speech_seq2seq(model, &device()).unwrap().0);
    // Recordings that are longer than the window have windows, and no pass of their own.
    let Some(labels) = integers::<2>(inputs, "labels") else { return };
    let source = AudioInput { input_features: Tensor::from_data(inputs.floats("input_features").unwrap(), &device()) };
    model.check_source(&source).unwrap();
    let read = match integers(inputs, "decoder_input_ids") {
        Some(ids) => ids,
        None => model.shift_right(labels.clone()).unwrap(),
    };
    let target = ModelInput { attention_mask: integers(inputs, "decoder_attention_mask"), ..ModelInput::ids(read) };
    let logits = model.logits(&source, &target);
    assert_close("logits", logits.to_data(), expected.floats("logits").unwrap());
    assert_loss(loss_of_every_position(logits, labels), expected);
}

cases! {
    whisper_base,
    whisper_base_beams,
    whisper_base_decoder,
    whisper_base_detect,
    whisper_base_times,
    whisper_base_times_beams,
    whisper_long,
    whisper_long_beams,
    whisper_untied_base,
}
