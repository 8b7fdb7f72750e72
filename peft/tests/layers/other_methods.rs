//! IA3, and the relatives of LoRA that update a layer in other forms.

use super::check;

layers! {
    conv1d_hira, conv1d_loha, conv1d_loha_effective, conv1d_lokr, conv1d_lokr_whole, conv2d_adalora, conv2d_boft,
    conv2d_hira, conv2d_ia3, conv2d_ia3_dilation, conv2d_ia3_groups, conv2d_ia3_input, conv2d_loha, conv2d_loha_1x1,
    conv2d_loha_effective, conv2d_loha_groups, conv2d_lokr, conv2d_lokr_1x1, conv2d_lokr_effective,
    conv2d_lokr_groups, conv2d_lokr_whole, conv2d_oft, conv2d_oft_1x1, linear_adalora, linear_boft_butterfly,
    linear_ia3, linear_ia3_input, linear_ia3_no_bias, linear_loha, linear_lokr, linear_lokr_both, linear_vera,
}
