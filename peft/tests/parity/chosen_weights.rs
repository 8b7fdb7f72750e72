//! Methods that train some of the base's own weights: SHiRA, norms, token rows.

parity! {
    bert_lora_tokens, bert_norms, bert_norms_features, bert_norms_some, bert_shira, bert_tokens, bert_tokens_types,
    gpt2_lora_tokens, gpt2_norms_default, gpt2_tokens, llama_lora_tokens, llama_norms_default, llama_norms_regex,
    llama_shira, llama_shira_saved, llama_tied_lora_tokens, llama_tied_tokens, llama_tokens,
}
