//! What stands before the tokens or beside them.

parity! {
    bart_multitask, bart_p_tuning, bart_prefix, bart_prefix_decoder, bart_prefix_projection, bart_prompt_tuning,
    bart_prompt_tuning_decoder, bert_multitask, bert_p_tuning, bert_p_tuning_baked, bert_prefix, bert_prefix_features,
    bert_prefix_projection, bert_prompt_tuning, bert_prompt_tuning_features, bert_qa_prefix, bert_qa_prompt_tuning,
    bert_tokens_prefix, deberta_cls_p_tuning, deberta_cls_prompt_tuning, deberta_v2_cls_p_tuning,
    deberta_v2_cls_prompt_tuning, gpt2_adaption, gpt2_cls_p_tuning, gpt2_cls_prefix, gpt2_cls_prompt_tuning,
    gpt2_multitask, gpt2_p_tuning, gpt2_p_tuning_baked, gpt2_prefix, gpt2_prefix_positions, gpt2_prefix_projection,
    gpt2_prefix_projection_baked, gpt2_prompt_tuning, gpt2_prompt_tuning_positions, gpt2_tokens_prefix,
    llama_adaption, llama_adaption_top, llama_cls_prefix, llama_cls_prompt_tuning, llama_multitask,
    llama_p_tuning_lstm, llama_p_tuning_lstm_one, llama_prefix, llama_prefix_bare, llama_prefix_left,
    llama_prefix_projection, llama_prefix_wide_heads, llama_prompt_tuning, llama_prompt_tuning_bare,
    llama_prompt_tuning_vocabulary, mistral_adaption, mistral_prefix, roberta_cls_p_tuning, roberta_cls_prefix,
    roberta_cls_prompt_tuning, roberta_tokens_prefix, t5_multitask, t5_p_tuning, t5_prefix, t5_prefix_decoder,
    t5_prefix_projection, t5_prompt_tuning, t5_prompt_tuning_decoder,
}
