//! A tied head gets a weight of its own when an adapter names it, and only then.

use burn::tensor::{Int, Tensor, TensorData};
use peft::core::laws::distance;
use peft::core::{Adaptable, PeftModel, REFERENCE_VERSION};
use peft::lora::{LoraConfig, TokenIndices};
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, ModelInput};

use crate::support::{device, fixtures};

fn base() -> AutoCausalLm {
    auto::load_causal_lm(fixtures().join("models/gpt2-tiny"), &device()).unwrap().0
}

fn is_tied(model: &PeftModel<AutoCausalLm>) -> bool {
    Adaptable::is_tied(model.model())
}

fn logits(model: &AutoCausalLm) -> TensorData {
    let ids = Tensor::<2, Int>::from_data(TensorData::from([[5i64, 17, 3, 88]]), &device());
    peft::core::nn::set_training(model.clone(), false).logits(&ModelInput::ids(ids), None).into_data()
}

#[test]
fn a_fresh_adapter_unties_the_head_that_it_names() {
    let mut model = PeftModel::new(base());
    let before = logits(model.model());
    let plan = model.add_adapter(LoraConfig::new(2, 4.0).targets(["lm_head"])).unwrap();
    assert_eq!(plan.rows.iter().map(|it| it.param.path()).collect::<Vec<_>>(), ["lm_head.weight"]);
    assert!(!is_tied(&model));
    assert!(model.spec().get("lm_head.weight").is_some());
    assert!(distance(&logits(model.model()), &before) < 1e-6, "a fresh adapter changes nothing");
}

#[test]
fn a_folder_unties_the_head_that_it_names() {
    let folder = fixtures().join("cases/gpt2_save_tied_head/default");
    let mut model = PeftModel::new(base());
    model.load_adapter(folder, "default", &peft::methods()).unwrap();
    assert!(!is_tied(&model));
    let saved = tempfile::tempdir().unwrap();
    model.save(saved.path()).unwrap();
    let mut again = PeftModel::new(base());
    again.load_adapter(saved.path(), "default", &peft::methods()).unwrap();
    assert_eq!(logits(again.model()), logits(model.model()));
}

#[test]
fn other_adapters_leave_the_head_tied() {
    for config in [LoraConfig::new(2, 4.0), LoraConfig::new(2, 4.0).all_linear()] {
        let mut model = PeftModel::new(base());
        model.add_adapter(config).unwrap();
        assert!(is_tied(&model));
    }
    let rows = [("wte".to_owned(), vec![3, 5]), ("lm_head".to_owned(), vec![3, 5])];
    let rows = Some(TokenIndices::ByLayer(rows.into_iter().collect()));
    let mut model = PeftModel::new(base());
    model.add_adapter(LoraConfig { trainable_token_indices: rows, ..LoraConfig::new(2, 4.0) }).unwrap();
    assert!(is_tied(&model));
}

#[test]
fn nothing_is_untied_on_error() {
    let mut model = PeftModel::new(base());
    let wrong = LoraConfig::new(2, 4.0).targets(["lm_head", "c_atn"]);
    let error = model.add_adapter(wrong).unwrap_err().to_string();
    assert!(error.contains("c_attn"), "{error}");
    assert!(is_tied(&model) && model.adapters().is_empty());
    let of_another = fixtures().join("cases/llama_lora_lm_head/default");
    assert!(model.load_adapter(of_another, "default", &peft::methods()).is_err());
    assert!(is_tied(&model) && model.adapters().is_empty());
}

#[test]
fn a_fresh_adapter_takes_the_task_of_the_model_and_a_folder_names_the_base() {
    let mut model = PeftModel::new(base());
    model.set_base_name("models/gpt2-tiny");
    model.set_task_type("CAUSAL_LM");
    assert!(model.save("nowhere").unwrap_err().to_string().contains("no adapter"));
    model.add_adapter_as("one", LoraConfig::new(2, 4.0), 1).unwrap();
    model.add_adapter_as("two", LoraConfig::new(2, 4.0), 2).unwrap();
    assert!(model.save("nowhere").unwrap_err().to_string().contains("save_adapter"));
    let config = model.adapter_config("one").unwrap();
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["base_model_name_or_path"], "models/gpt2-tiny");
    assert_eq!(config["peft_version"], REFERENCE_VERSION);
    assert_eq!(model.adapters()["one"].config.to_json().unwrap()["task_type"], "CAUSAL_LM");
}
