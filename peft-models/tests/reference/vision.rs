//! Models that read pictures.

cases! {
    segformer_base,
    segformer_base_bare,
    segformer_cls_base,
    segformer_one_base,
    segformer_ragged_base,
    swin_absolute_base,
    swin_absolute_resized,
    swin_base,
    swin_base_bare,
    swin_ragged_base,
    vit_base,
    vit_base_bare,
    vit_resized_base,
    vit_wide_base,
}
