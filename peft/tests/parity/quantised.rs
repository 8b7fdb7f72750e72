//! Adapters on bases whose linear layers bitsandbytes, GPTQ or AWQ store in 4 or 8 bits.

parity! {
    bert_fp4_lora, bert_int8_lora, bert_nf4_double_lora, bert_nf4_lora,
    gpt2_fp4_lora, gpt2_int8_lora, gpt2_nf4_double_lora, gpt2_nf4_lora,
    gpt2_gptq_lora, llama_awq_dora, llama_awq_lora, llama_gptq_8bit_lora, llama_gptq_ia3, llama_gptq_lora,
    llama_fp4_lora, llama_int8_dora, llama_int8_ia3, llama_int8_lora, llama_nf4_double_dora, llama_nf4_double_lora,
    llama_nf4_ia3, llama_nf4_lora, llama_nf4_steps,
    t5_fp4_lora, t5_int8_lora, t5_nf4_double_lora, t5_nf4_lora,
}
