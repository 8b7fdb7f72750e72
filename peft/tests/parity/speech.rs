//! Whisper with adapters.

parity! {
    whisper_all_linear,
    whisper_dora_conv,
    whisper_ia3,
    whisper_loha_conv,
    whisper_lora,
    whisper_lora_conv,
    whisper_lora_head,
    whisper_lora_table,
    whisper_untied_all_linear,
}
