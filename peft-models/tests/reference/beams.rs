//! Cases with beam search; the texts are compared in `generation` of `peft`.

cases! {
    bloom_beams,
    gemma2_beams,
    llama_beams,
    llama_beams_early,
    llama_beams_eos,
    llama_beams_long,
    llama_beams_never,
    llama_beams_short,
    phi3_beams,
}
