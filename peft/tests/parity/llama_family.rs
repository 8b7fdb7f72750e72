//! LoRA and prompts on the models that follow LLaMA: Gemma, Phi-3, Qwen3.

parity! {
    gemma2_cls_lora, gemma2_lora_all_linear, gemma2_lora_default, gemma2_lora_generate, gemma2_lora_table,
    gemma2_prefix, gemma2_prompt_tuning, gemma2_tokens_lora, gemma2_uncapped_lora, gemma3_capped_lora,
    gemma3_cls_lora, gemma3_lora_all_linear, gemma3_lora_default, gemma3_lora_generate, gemma3_prefix,
    gemma3_prompt_tuning, llama_tokens_lora, phi3_cls_lora, phi3_long_lora, phi3_lora_all_linear, phi3_lora_default,
    phi3_lora_generate, phi3_prefix, phi3_short_lora, phi3_tokens_lora, qwen3_biased_lora, qwen3_cls_lora,
    qwen3_lora_all_linear, qwen3_lora_default, qwen3_lora_generate, qwen3_tokens_lora,
}
