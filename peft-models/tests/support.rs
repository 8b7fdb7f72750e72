//! What the tests share: fixtures, comparisons, small inputs.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::files::checkpoint::TensorFile;
use peft_core::nn::set_training;
use peft_models::auto::{AutoCausalLm, load_causal_lm};
use peft_models::{CausalLm, KvCache, ModelInput};

pub(crate) fn device() -> Device {
    Device::flex()
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

pub(crate) fn model_folder(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// The model as the reference's `eval()` has it.
pub(crate) fn still<M: Module>(model: M) -> M {
    set_training(model, false)
}

pub(crate) fn causal_lm(name: &str) -> AutoCausalLm {
    still(load_causal_lm(model_folder(name), &device()).unwrap().0)
}

pub(crate) fn ids<const R: usize, const C: usize>(rows: [[i64; C]; R]) -> Tensor<2, Int> {
    Tensor::from_ints(rows, &device())
}

pub(crate) fn integers<const D: usize>(file: &TensorFile, key: &str) -> Option<Tensor<D, Int>> {
    file.shape(key)?;
    Some(Tensor::from_data(file.integers(key).unwrap(), &device()))
}

/// Asserts that two tensors agree within 1e-4 of the larger one's highest value.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: TensorData, want: TensorData) {
    assert_eq!(got.shape(), want.shape(), "{what}: shapes");
    let (got, want) = (got.convert::<f32>(), want.convert::<f32>());
    let (got, want) = (got.as_slice::<f32>().unwrap(), want.as_slice::<f32>().unwrap());
    assert!(got.iter().chain(want).all(|it| it.is_finite()), "{what}: not finite");
    let highest = want.iter().fold(0f32, |highest, it| highest.max(it.abs()));
    let worst = got.iter().zip(want).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= 1e-4 * highest, "{what}: off by {worst}, where the highest value is {highest}");
}

pub(crate) fn logits(model: &AutoCausalLm, input: &ModelInput, cache: Option<&mut KvCache>) -> Tensor<3> {
    model.logits(input, cache)
}
