//! The autoencoder, there and back.

use burn::tensor::Tensor;
use peft_core::files::checkpoint::{FloatType, Stored, TensorFile, write_tensors};
use peft_models::diffusion::folder::load_vae;
use peft_models::diffusion::vae::AutoencoderKl;

use crate::support::{assert_close, device, fixtures, still};

fn recorded(name: &str) -> (AutoencoderKl, TensorFile) {
    let folder = fixtures().join("diffusion").join(name);
    let file = TensorFile::open(folder.join("expected.safetensors")).unwrap();
    (still(load_vae(folder, &device()).unwrap()), file)
}

fn pictures(file: &TensorFile, key: &str) -> Tensor<4> {
    Tensor::from_data(file.floats(key).unwrap(), &device())
}

fn check(name: &str) {
    let (vae, file) = recorded(name);
    let posterior = vae.encode(pictures(&file, "pictures"));
    assert_close("mean", posterior.mean.to_data(), file.floats("mean").unwrap());
    assert_close("std", posterior.std.to_data(), file.floats("std").unwrap());
    let sampled = posterior.sample(pictures(&file, "noise"));
    assert_close("sampled", sampled.into_data(), file.floats("sampled").unwrap());
    let decoded = vae.decode(pictures(&file, "latents"));
    assert_close("decoded", decoded.into_data(), file.floats("decoded").unwrap());

    let mean = vae.encode_tiled(pictures(&file, "large")).mode();
    assert_close("large.mean", mean.into_data(), file.floats("large.mean").unwrap());
    let decoded = vae.decode_tiled(pictures(&file, "wide"));
    assert_close("wide.decoded", decoded.into_data(), file.floats("wide.decoded").unwrap());
    // What fits into a tile is not cut.
    let whole = vae.decode_tiled(pictures(&file, "latents"));
    assert_close("latents within a tile", whole.into_data(), file.floats("decoded").unwrap());
}

#[test]
fn vae_tiny() {
    check("vae-tiny");
}

#[test]
fn vae_bare() {
    check("vae-bare");
}

#[test]
fn latents_are_shifted_and_scaled_for_the_noise_predictor() {
    let (vae, file) = recorded("vae-bare");
    let latents = pictures(&file, "latents");
    let scaled = vae.scaled(latents.clone());
    let wanted = (latents.clone() - 0.1) * 0.36;
    assert_close("scaled", scaled.to_data(), wanted.into_data());
    assert_close("and back", vae.unscaled(scaled).into_data(), latents.into_data());
}

/// As published autoencoders are stored, in half precision besides.
#[test]
fn old_names_of_attention_are_read() {
    let old = tempfile::tempdir().unwrap();
    let folder = fixtures().join("diffusion/vae-tiny");
    std::fs::copy(folder.join("config.json"), old.path().join("config.json")).unwrap();
    let file = TensorFile::open(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    let renamed = file.keys().into_iter().map(|key| {
        let data = file.floats(&key).unwrap();
        let old = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
        Stored { key: old.iter().fold(key, |key, (new, old)| key.replace(new, old)), data }
    });
    let path = old.path().join("diffusion_pytorch_model.fp16.safetensors");
    write_tensors(path, renamed.collect(), FloatType::F32).unwrap();
    let (vae, expected) = recorded("vae-tiny");
    let read = still(load_vae(old.path(), &device()).unwrap());
    let latents = pictures(&expected, "latents");
    assert_eq!(read.decode(latents.clone()).into_data(), vae.decode(latents).into_data());
}

#[test]
fn a_configuration_that_leaves_out_a_part_is_refused() {
    let other = tempfile::tempdir().unwrap();
    let folder = fixtures().join("diffusion/vae-tiny");
    let weights = "diffusion_pytorch_model.safetensors";
    std::fs::copy(folder.join(weights), other.path().join(weights)).unwrap();
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = config.replace("\"use_quant_conv\": true", "\"use_quant_conv\": false");
    std::fs::write(other.path().join("config.json"), config).unwrap();
    let error = load_vae(other.path(), &device()).unwrap_err().to_string();
    assert!(error.contains("quant_conv"), "{error}");
}
