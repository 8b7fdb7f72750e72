//! New tokens: the embedding matrix and the head are resized, and come with the adapter.

parity! {
    gpt2_resized_ia3, llama_resized_lora, llama_resized_saved, llama_resized_tokens, llama_tied_saved,
    llama_tied_saved_head,
}
