//! OFT and BOFT.

parity! {
    bert_boft, bert_oft, llama_boft, llama_boft_bias, llama_boft_blocks, llama_coft, llama_oft, llama_oft_bias,
    llama_oft_embedding, llama_oft_exact, llama_oft_shared, llama_oft_terms,
}
