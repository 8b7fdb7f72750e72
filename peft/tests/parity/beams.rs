//! Cases with beam search; the texts are compared in `generation`.

parity! {
    gpt2_lora_beams, llama_prefix_beams, llama_prompt_tuning_beams,
}
