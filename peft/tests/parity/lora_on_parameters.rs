//! LoRA on parameters instead of layers.

parity! {
    gpt2_lora_parameters, gpt2_lora_parameters_tied, llama_lora_parameters, llama_lora_parameters_bias,
    llama_two_parameters,
}
