//! VeRA, RandLoRA and FourierFT: trained coefficients of a fixed random basis.

parity! {
    bert_fourierft, bert_randlora, bert_vera_default, gpt2_fourierft, gpt2_fourierft_default, gpt2_randlora,
    gpt2_vera_bias, gpt2_vera_default, llama_fourierft, llama_fourierft_pattern, llama_randlora,
    llama_randlora_sparse, llama_randlora_unsaved, llama_randlora_very_sparse, llama_vera_default, llama_vera_drawn,
}
