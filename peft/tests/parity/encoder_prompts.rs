//! More prompts on encoders, and IA3.

parity! {
    bart_ia3, roberta_ia3, t5_ia3,
    bert_prefix_answers, bert_prefix_tokens,
    deberta_p_tuning, deberta_prompt_tuning, deberta_prompt_tuning_features, deberta_v2_p_tuning,
    deberta_v2_prompt_tuning, deberta_v2_prompt_tuning_features, gpt2_prefix_tokens, modernbert_p_tuning,
    modernbert_prompt_tuning, modernbert_prompt_tuning_features, roberta_p_tuning, roberta_prefix,
    roberta_prefix_tokens, roberta_prompt_tuning, roberta_prompt_tuning_features,
}
