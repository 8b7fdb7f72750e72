//! Published pipelines are counted, never allocated.

use peft_core::Adaptable;
use peft_models::architecture::ModelConfig;
use peft_models::auto::AutoDenoiser;
use peft_models::common::config::RawConfig;
use peft_models::diffusion::clip_text::{ClipTextConfig, ClipTextModel, ClipTextModelWithProjection};
use peft_models::diffusion::vae::{AutoencoderKl, AutoencoderKlConfig};

use crate::support::device;

fn unet(json: &str) -> AutoDenoiser {
    AutoDenoiser::from_config(&RawConfig::parse_text(json).unwrap(), &device()).unwrap()
}

#[test]
fn stable_diffusion_1_5() {
    let model = unet(
        r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
            "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
            "cross_attention_dim": 768, "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
            "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
            "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#,
    );
    let spec = model.spec();
    assert_eq!(spec.parameters(), 859_520_964);
    // What LoRA of rank 4 trains of the guide's targets: 797,184.
    let names = ["to_q", "to_k", "to_v", "to_out.0"];
    let targets = spec.layers().filter(|it| names.iter().any(|name| it.module.ends_with(name)));
    assert_eq!(targets.map(|it| 4 * (it.shape[0] + it.shape[1])).sum::<usize>(), 797_184);
}

#[test]
fn stable_diffusion_2_1() {
    let model = unet(
        r#"{"_class_name": "UNet2DConditionModel", "attention_head_dim": [5, 10, 20, 20],
            "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024, "dual_cross_attention": false,
            "only_cross_attention": false, "sample_size": 96, "upcast_attention": true, "use_linear_projection": true,
            "num_class_embeds": null}"#,
    );
    assert_eq!(model.spec().parameters(), 865_910_724);
}

#[test]
fn stable_diffusion_xl() {
    let model = unet(
        r#"{"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time",
            "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
            "attention_type": "default", "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "mid_block_type": "UNetMidBlock2DCrossAttn", "projection_class_embeddings_input_dim": 2816,
            "resnet_time_scale_shift": "default", "sample_size": 128, "time_embedding_type": "positional",
            "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true}"#,
    );
    assert_eq!(model.spec().parameters(), 2_567_463_684);
}

#[test]
fn text_encoders_and_the_autoencoder() {
    let first = r#"{"model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072,
        "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768, "eos_token_id": 2}"#;
    let config = ClipTextConfig::from_raw(&RawConfig::parse_text(first).unwrap()).unwrap();
    assert_eq!(ClipTextModel::new(&config, &device()).spec().parameters(), 123_060_480);

    let second = r#"{"model_type": "clip_text_model", "hidden_act": "gelu", "hidden_size": 1280,
        "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280}"#;
    let config = ClipTextConfig::from_raw(&RawConfig::parse_text(second).unwrap()).unwrap();
    assert_eq!(ClipTextModelWithProjection::new(&config, &device()).unwrap().spec().parameters(), 694_659_840);

    let vae = r#"{"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        "sample_size": 512}"#;
    let config = AutoencoderKlConfig::from_raw(&RawConfig::parse_text(vae).unwrap()).unwrap();
    let vae = AutoencoderKl::new(&config, &device());
    assert_eq!((vae.spec().parameters(), vae.scale()), (83_653_863, 8));
}

#[test]
fn settings_that_change_numbers_are_refused() {
    for (setting, word) in [
        (r#""class_embed_type": "timestep""#, "class_embed_type"),
        (r#""dual_cross_attention": true"#, "dual_cross_attention"),
        (r#""encoder_hid_dim": 8"#, "encoder_hid_dim"),
        (r#""attention_type": "gated""#, "attention_type"),
        (r#""addition_embed_type": "text_image""#, "text_image"),
        (r#""resnet_time_scale_shift": "scale_shift""#, "scale_shift"),
        (r#""time_embedding_type": "fourier""#, "fourier"),
        (r#""act_fn": "mish""#, "mish"),
        (r#""down_block_types": ["AttnDownBlock2D"]"#, "AttnDownBlock2D"),
        (r#""up_block_types": ["UpBlock2D"]"#, "up_block_types"),
        (r#""attention_head_dim": [8, 8]"#, "attention_head_dim"),
        (r#""attention_head_dim": 7"#, "attention_head_dim"),
        (r#""norm_num_groups": 7"#, "norm_num_groups"),
        (r#""norm_num_groups": 0"#, "norm_num_groups"),
        (r#""transformer_layers_per_block": [[1, 1], [1, 1], [1, 1], [1, 1]]"#, "reverse_transformer_layers_per_block"),
        (r#""addition_embed_type": "text_time""#, "addition_time_embed_dim"),
        (r#""conv_in_kernel": 4"#, "conv_in_kernel"),
    ] {
        let json = format!("{{\"_class_name\": \"UNet2DConditionModel\", {setting}}}");
        let raw = RawConfig::parse_text(&json).unwrap();
        let error = AutoDenoiser::from_config(&raw, &device()).unwrap_err().to_string();
        assert!(error.contains(word), "{setting}: {error}");
    }
}
