//! Stable Diffusion's noise predictors and text encoders.

parity! {
    clip_text_lora, clip_text_lora_everywhere, unet_sd15_boft, unet_sd15_dora, unet_sd15_ia3, unet_sd15_loha,
    unet_sd15_loha_effective, unet_sd15_lokr, unet_sd15_lokr_effective, unet_sd15_lora, unet_sd15_lora_conv,
    unet_sd15_lora_everywhere, unet_sd15_oft, unet_sd21_lora, unet_sdxl_lora, unet_two_lora,
}
