//! Encoders, and encoders with a decoder, under LoRA.

parity! {
    bart_all_linear, bart_bias_all, bart_lora, bert_qa_lora, bert_tokens_all_linear, bert_tokens_bias_all,
    bert_tokens_lora, deberta_absolute_all_linear, deberta_cls_all_linear, deberta_cls_lora, deberta_lora_features,
    deberta_qa_lora, deberta_tokens_all_linear, deberta_tokens_bias_all, deberta_tokens_lora,
    deberta_v2_cls_all_linear, deberta_v2_cls_lora, deberta_v2_conv_all_linear, deberta_v2_lora_features,
    deberta_v2_qa_lora, deberta_v2_tokens_all_linear, deberta_v2_tokens_bias_all, deberta_v2_tokens_lora,
    gpt2_qa_lora, gpt2_tokens_all_linear, gpt2_tokens_bias_all, gpt2_tokens_lora, mbart_all_linear, mbart_lora,
    modernbert_biased_all_linear, modernbert_cls_all_linear, modernbert_cls_lora, modernbert_lora_features,
    modernbert_qa_lora, modernbert_tokens_all_linear, modernbert_tokens_bias_all, modernbert_tokens_lora, mt5_lora,
    roberta_cls_all_linear, roberta_cls_lora, roberta_lora_features, roberta_qa_lora, roberta_tokens_all_linear,
    roberta_tokens_bias_all, roberta_tokens_lora, t5_all_linear, t5_bias_table, t5_gated_all_linear, t5_lora,
    t5_lora_head, xlm_roberta_lora,
}
