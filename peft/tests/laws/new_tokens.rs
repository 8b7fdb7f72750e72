//! New tokens with every method that changes weights: tables that are trained whole, and tables that a folder brings.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft::core::{AdapterFolder, DEFAULT_ADAPTER, PeftConfig, PeftModel, laws};
use peft::lora::{LoraConfig, TokenIndices, TrainableTokensConfig};
use peft::models::auto::AutoCausalLm;
use peft::models::{CausalLm, ModelInput};
use serde_json::{Map, Value};

use super::{MODELS, Names, base, distance, numbers, weight_methods};
use crate::support::device;

const OLD: usize = 101;
const NEW: usize = 105;

fn resized(names: &Names) -> PeftModel<AutoCausalLm> {
    let mut peft = base(names.model);
    peft.resize_vocabulary(NEW).unwrap();
    peft
}

/// With the last of the new tokens among the ids.
fn logits<M: CausalLm>(model: &M) -> TensorData {
    let ids = Tensor::from_data(TensorData::from([[5i64, 102, 3, 88], [104, 101, 77, 103]]), &device());
    peft::core::nn::set_training(model.clone(), false).logits(&ModelInput::ids(ids), None).into_data()
}

fn json(tuner: &dyn PeftConfig) -> Map<String, Value> {
    let mut json = tuner.to_json().unwrap();
    json.insert("peft_type".into(), tuner.peft_type().into());
    json
}

/// Whether the method adapts the tables itself.
fn has_table(tuner: &dyn PeftConfig, peft: &PeftModel<AutoCausalLm>, names: &Names) -> bool {
    let rows = tuner.plan(peft.spec()).unwrap().rows;
    rows.iter().any(|it| names.tables.iter().any(|table| it.param.module.ends_with(table)))
}

/// A table, and a head of its own, that are trained whole beside the method.
#[test]
fn resized_tables_are_trained_whole_beside_every_method() {
    let mut count = 0;
    for names in &MODELS {
        for row in weight_methods() {
            let what = format!("{} on {}", row.name, names.model);
            let mut peft = resized(names);
            let tuner = (row.config)(names);
            let mut json = json(&tuner);
            if has_table(&tuner, &peft, names) || tuner.peft_type() == "TRAINABLE_TOKENS" {
                continue;
            }
            let mut whole: Vec<Value> = json["modules_to_save"].as_array().cloned().unwrap_or_default();
            whole.push(names.tables[0].into());
            whole.extend((!names.is_tied).then(|| "lm_head".into()));
            json.insert("modules_to_save".into(), whole.into());
            let untouched = logits(&peft.model().valid());
            assert_eq!(untouched.shape().as_slice(), [2, 4, NEW]);

            peft.add_adapter_as(DEFAULT_ADAPTER, peft::methods().parse(json).unwrap(), 3).unwrap();
            laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
            let ids = Tensor::from_data(TensorData::from([[5i64, 102, 3, 104]]), &device());
            let output = peft::core::nn::set_training(peft.model().clone(), false).logits(&ModelInput::ids(ids), None);
            let gradients = (output.clone() * output).sum().backward();
            laws::all_of_it_is_trained(&what, &peft, DEFAULT_ADAPTER, &gradients);
            if !names.is_tied {
                laws::merged_is_live(&what, &peft, &untouched, logits);
            }
            let folder = tempfile::tempdir().unwrap();
            let fresh = resized(names);
            laws::saved_is_loaded(&what, &peft, DEFAULT_ADAPTER, fresh, &peft::methods(), folder.path(), logits);
            let tables: Vec<Vec<usize>> = peft
                .adapter_tensors(DEFAULT_ADAPTER)
                .unwrap()
                .iter()
                .filter(|it| it.key.ends_with(&format!("{}.weight", names.tables[0])) || it.key.contains("lm_head"))
                .map(|it| it.data.shape().as_slice().to_vec())
                .collect();
            assert_eq!(tables, vec![vec![NEW, 32]; if names.is_tied { 1 } else { 2 }], "{what}");
            laws::disabled_is_base(&what, peft, &untouched, logits);
            count += 1;
        }
    }
    assert!(count > 60, "{count} rows");
}

/// Tables that nobody trains but that are larger than the checkpoint's: the folder holds them, and a base of the old
/// size takes them.
#[test]
fn resized_tables_come_with_the_folder_of_every_method() {
    for names in &MODELS {
        for row in weight_methods() {
            let what = format!("{} on {}", row.name, names.model);
            let mut peft = resized(names);
            peft.add_adapter_as(DEFAULT_ADAPTER, (row.config)(names), 3).unwrap();
            laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
            let wanted = logits(&peft.model().valid());
            let folder = tempfile::tempdir().unwrap();
            peft.save_embedding_layers = Some(true);
            peft.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap();

            let mut small = base(names.model);
            let error = small.load_adapter(folder.path(), DEFAULT_ADAPTER, &peft::methods()).unwrap_err().to_string();
            let is_told = error.contains("adopt_tables") || error.contains("file [105") || error.contains("resize");
            assert!(is_told, "{what}: {error}");
            let folder = AdapterFolder::open(folder.path()).unwrap();
            assert!(small.adopt_tables(&folder).unwrap(), "{what}");
            small.load_adapter(&folder.path, DEFAULT_ADAPTER, &peft::methods()).unwrap();
            assert!(distance(&logits(&small.model().valid()), &wanted) < 1e-5, "{what}");
            assert!(!small.adopt_tables(&folder).unwrap(), "{what}: there is nothing new");
        }
    }
}

#[test]
fn new_rows_are_the_mean_and_old_ones_stay() {
    for names in &MODELS {
        let mut peft = base(names.model);
        let before = logits_of_old(&peft);
        peft.resize_vocabulary(NEW).unwrap();
        let after = logits_of_old(&peft);
        for (old, new) in before.chunks(OLD).zip(after.chunks(NEW)) {
            assert!(old.iter().zip(new).all(|(a, b)| (a - b).abs() < 1e-5));
            // The head of a mean row is the mean of heads.
            let mean = old.iter().sum::<f64>() / OLD as f64;
            assert!(new[OLD..].iter().all(|it| (it - mean).abs() < 1e-4), "{mean} {:?}", &new[OLD..]);
        }
        peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(2, 4.0), 0).unwrap();
        assert!(peft.resize_vocabulary(OLD).unwrap_err().to_string().contains("before adapters are added"));
    }
}

fn logits_of_old(peft: &PeftModel<AutoCausalLm>) -> Vec<f64> {
    let ids = Tensor::from_data(TensorData::from([[5i64, 17, 3]]), &device());
    numbers(&peft.model().valid().logits(&ModelInput::ids(ids), None).into_data())
}

/// Only the new rows are in the file.
#[test]
fn new_rows_are_trained_alone() {
    let rows: Vec<usize> = (OLD..NEW).collect();
    for names in &MODELS {
        let alone = TrainableTokensConfig { token_indices: rows.clone(), ..Default::default() };
        let trainable_token_indices = Some(TokenIndices::Rows(rows.clone()));
        let beside = LoraConfig { trainable_token_indices, ..LoraConfig::new(4, 6.0) };
        let tuners: [Box<dyn PeftConfig>; 2] = [Box::new(alone), Box::new(beside)];
        for tuner in tuners {
            let mut peft = resized(names);
            let untouched = logits(&peft.model().valid());
            peft.add_adapter_as(DEFAULT_ADAPTER, tuner, 3).unwrap();
            laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
            assert!(distance(&logits(&peft.model().valid()), &untouched) > 1e-3);
            let tensors = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
            let delta = tensors.iter().find(|it| it.key.ends_with("trainable_tokens_delta")).unwrap();
            assert_eq!(delta.data.shape().as_slice(), [rows.len(), 32]);
        }
    }
}
