//! IA3, and the relatives of LoRA that update a layer in other forms.

parity! {
    gpt2_lora_fa, gpt2_loraplus, llama_lora_fa, llama_loraplus_dora,
    bert_ia3_default, bert_ia3_saved, gpt2_ia3_default, gpt2_ia3_regex, gpt2_two_ia3, llama_ia3_all_linear,
    llama_ia3_biased, llama_ia3_default, llama_ia3_ends,
    bert_adalora_bias, bert_adalora_default, gpt2_adalora_all_linear, gpt2_adalora_default, llama_adalora_default,
    llama_adalora_pruned,
    bert_loha_all_linear, bert_loha_default, llama_loha_default, llama_loha_patterns,
    bert_lokr_default, bert_lokr_prime, llama_lokr_both, llama_lokr_default, llama_lokr_factor,
    bert_norms, bert_norms_features, bert_norms_some, gpt2_norms_default, llama_norms_default, llama_norms_regex,
    bert_lora_tokens, bert_tokens, bert_tokens_types, gpt2_lora_tokens, gpt2_tokens, llama_lora_tokens,
    llama_tied_lora_tokens, llama_tied_tokens, llama_tokens,
    bert_vera_default, gpt2_vera_bias, gpt2_vera_default, llama_vera_default, llama_vera_drawn,
}
