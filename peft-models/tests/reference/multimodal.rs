//! Models that read pictures and text.

cases! {
    blip2_base,
    blip2_base_bare,
    blip2_base_left,
    blip2_t5_base,
}
