//! LoRA.

parity! {
    bert_bare_cls_lora, bert_bias_all, bert_bias_lora_only, bert_dora, bert_gelu_new_lora, bert_lora_all_linear,
    bert_lora_bias, bert_lora_default, bert_lora_embeddings, bert_lora_features, bert_multilabel_lora,
    bert_lora_replicated, bert_regression_lora, bert_save_pooler,
    gpt2_alora, gpt2_bias_all, gpt2_bias_lora_only, gpt2_cls_lora, gpt2_dora, gpt2_dora_wte, gpt2_features_replicated, gpt2_inverse_lora,
    gpt2_inverse_lora_all_linear, gpt2_lora_all_linear, gpt2_lora_bias, gpt2_lora_default, gpt2_lora_fan_in_fan_out,
    gpt2_lora_generate, gpt2_lora_layers, gpt2_lora_wte, gpt2_lora_wte_saved, gpt2_pissa, gpt2_prefixless_lora,
    gpt2_save_norm, gpt2_save_tied_head, gpt2_two_adapters,
    llama_alora_generate, llama_bf16_lora, llama_bias_all, llama_bias_lora_only, llama_cls_lora, llama_dora_all_linear, llama_dora_biased,
    llama_dora_rslora, llama_dora_then_lora, llama_lora_all_linear, llama_lora_bf16_file,
    llama_lora_bias_unmergeable, llama_lora_default, llama_lora_embed_and_head, llama_lora_embed_tokens,
    llama_lora_exclude, llama_lora_exclude_regex, llama_lora_generate, llama_lora_layers, llama_lora_lm_head,
    llama_lora_old_config, llama_lora_patterns, llama_lora_regex, llama_lora_replicated, llama_lora_suffix, llama_lora_then_dora,
    llama_olora, llama_olora_init, llama_pissa, llama_pissa_converted, llama_pissa_init, llama_rope_yarn_lora,
    llama_rslora, llama_rslora_patterns, llama_save_embedding, llama_save_lm_head, llama_save_norms,
    llama_sharded_lora, llama_two_adapters, llama_two_adapters_head, llama_two_doras,
    mistral_lora_default, mistral_lora_generate, mistral_lora_replicated, modernbert_features_replicated, phi3_lora_replicated, qwen2_lora_default, qwen2_lora_generate,
}
