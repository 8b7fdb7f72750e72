//! Models that read pictures and text.

parity! {
    blip2_all_linear,
    blip2_lora,
    blip2_t5_ia3,
    blip2_t5_lora,
    blip2_tower,
}
