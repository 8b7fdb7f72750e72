//! MiSS, HiRA, SHiRA, OFT, BOFT, FourierFT, RandLoRA.

parity! {
    bert_boft, bert_fourierft, bert_hira, bert_miss, bert_oft, bert_randlora, bert_shira, gpt2_fourierft,
    gpt2_fourierft_default, gpt2_hira, gpt2_randlora, llama_boft, llama_boft_bias, llama_boft_blocks, llama_coft,
    llama_fourierft, llama_fourierft_pattern, llama_hira, llama_hira_embedding, llama_hira_saved, llama_miss,
    llama_miss_bat, llama_miss_bias, llama_miss_default, llama_miss_mini, llama_miss_ragged, llama_oft,
    llama_oft_bias, llama_oft_embedding, llama_oft_exact, llama_oft_shared, llama_oft_terms, llama_randlora,
    llama_randlora_sparse, llama_randlora_unsaved, llama_randlora_very_sparse, llama_shira, llama_shira_saved,
}
