//! IA3.

parity! {
    bert_ia3_default, bert_ia3_saved, gpt2_ia3_default, gpt2_ia3_regex, gpt2_two_ia3, llama_ia3_all_linear,
    llama_ia3_biased, llama_ia3_default, llama_ia3_ends,
}
