//! What stands before the tokens or beside them.

parity! {
    bert_multitask, bert_p_tuning, bert_p_tuning_baked, bert_prefix, bert_prefix_features, bert_prefix_projection,
    bert_prompt_tuning, bert_prompt_tuning_features, gpt2_adaption, gpt2_cls_p_tuning, gpt2_cls_prefix,
    gpt2_cls_prompt_tuning, gpt2_multitask, gpt2_p_tuning, gpt2_p_tuning_baked, gpt2_prefix, gpt2_prefix_positions,
    gpt2_prefix_projection, gpt2_prefix_projection_baked, gpt2_prompt_tuning, gpt2_prompt_tuning_positions,
    llama_adaption, llama_adaption_top, llama_cls_prefix, llama_cls_prompt_tuning, llama_multitask,
    llama_p_tuning_lstm, llama_p_tuning_lstm_one, llama_prefix, llama_prefix_bare, llama_prefix_left,
    llama_prefix_projection, llama_prefix_wide_heads, llama_prompt_tuning, llama_prompt_tuning_bare,
    llama_prompt_tuning_vocabulary, mistral_adaption, mistral_prefix,
}
