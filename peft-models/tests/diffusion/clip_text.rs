//! The pooled text.

use burn::tensor::{Int, Tensor};
use peft_core::files::checkpoint::TensorFile;
use peft_models::ModelInput;
use peft_models::diffusion::folder::{load_clip_text, load_clip_text_with_projection};

use crate::support::{assert_close, device, fixtures, ids, integers, model_folder, still};

fn case(name: &str) -> (Tensor<2, Int>, TensorFile) {
    let folder = fixtures().join("cases").join(name);
    let inputs = TensorFile::open(folder.join("inputs.safetensors")).unwrap();
    (integers(&inputs, "input_ids").unwrap(), TensorFile::open(folder.join("expected.safetensors")).unwrap())
}

#[test]
fn the_greatest_id_stands_for_a_text_in_older_files() {
    let (ids, expected) = case("clip_text_base_bare");
    let model = still(load_clip_text(model_folder("clip-text-tiny"), &device()).unwrap()).text_model;
    let pooled = model.pool(model.forward(&ModelInput::ids(ids.clone())), ids);
    assert_close("pooler_output", pooled.into_data(), expected.floats("pooler_output").unwrap());
}

#[test]
fn the_token_at_the_end_stands_for_a_text() {
    let (ids, expected) = case("clip_text_projection_base");
    let model = still(load_clip_text_with_projection(model_folder("clip-text-projection"), &device()).unwrap());
    let hidden = model.text_model.forward(&ModelInput::ids(ids.clone()));
    let embeds = model.text_embeds(hidden, ids);
    assert_close("text_embeds", embeds.into_data(), expected.floats("text_embeds").unwrap());
}

#[test]
fn of_several_ends_the_first_counts_and_without_one_the_first_token() {
    let model = still(load_clip_text_with_projection(model_folder("clip-text-projection"), &device()).unwrap());
    let hidden = Tensor::<3>::from_floats([[[0.0], [1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0], [7.0]]], &device());
    let pooled = model.text_model.pool(hidden, ids([[5, 97, 97, 97], [5, 8, 9, 98]]));
    assert_eq!(pooled.into_data().try_to_vec::<f32>().unwrap(), [1.0, 4.0]);
}

#[test]
fn layers_at_the_end_can_be_left_out() {
    let model = still(load_clip_text(model_folder("clip-text-tiny"), &device()).unwrap()).text_model;
    let input = ModelInput::ids(ids([[5, 9, 2]]));
    let last = model.encoder.layers.last().unwrap();
    assert_eq!(model.encoder.layers.len(), 2);
    assert_eq!(model.hidden(&input, 2).to_data(), model.hidden(&input, 9).to_data());
    assert_ne!(model.hidden(&input, 1).to_data(), model.hidden(&input, 0).to_data());
    assert!(last.mlp.fc1.bias.is_some());
}
