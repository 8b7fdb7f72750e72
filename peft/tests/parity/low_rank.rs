//! LoRA's nearest relatives: AdaLoRA, LoHa, LoKr, HiRA, MiSS; LoRA with the optimizers LoRA+ and LoRA-FA.

parity! {
    bert_adalora_bias, bert_adalora_default, bert_hira, bert_loha_all_linear, bert_loha_default, bert_lokr_default,
    bert_lokr_prime, bert_miss, gpt2_adalora_all_linear, gpt2_adalora_default, gpt2_hira, gpt2_lora_fa, gpt2_loraplus,
    llama_adalora_default, llama_adalora_pruned, llama_hira, llama_hira_embedding, llama_hira_saved,
    llama_loha_default, llama_loha_patterns, llama_lokr_both, llama_lokr_default, llama_lokr_factor, llama_lora_fa,
    llama_loraplus_dora, llama_miss, llama_miss_bat, llama_miss_bias, llama_miss_default, llama_miss_mini,
    llama_miss_ragged,
}
