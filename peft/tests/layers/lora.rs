//! LoRA and DoRA.

use super::check;

layers! {
    conv1d_dora, conv1d_lora, conv1d_lora_1x1, conv1d_lora_parameter, conv2d_dora, conv2d_dora_1x1,
    conv2d_dora_no_bias, conv2d_lora, conv2d_lora_1x1, conv2d_lora_dilation, conv2d_lora_uneven, embedding_dora,
    embedding_lora, linear_dora, linear_dora_no_bias, linear_dora_square, linear_lora, linear_lora_square,
    linear_rslora,
}
