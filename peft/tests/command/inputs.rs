//! Recorded inputs that lead nowhere: errors that name the tensor.

use std::path::Path;

use burn::tensor::TensorData;
use peft::core::files::checkpoint::{FloatType, Stored, write_tensors};

use super::texts::refused;
use crate::support::fixtures;

fn tensor(key: &str, values: &[i64], shape: &[usize]) -> Stored {
    Stored { key: key.to_owned(), data: TensorData::new(values.to_vec(), shape.to_vec()) }
}

#[test]
fn what_a_model_has_no_room_for_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = |model: &str, task: &str, tensors: Vec<Stored>, more: &[&str]| {
        let (inputs, output) = (folder.path().join("inputs.safetensors"), folder.path().join("out.safetensors"));
        write_tensors(&inputs, tensors, FloatType::F32).unwrap();
        let model = fixtures().join("models").join(model);
        let paths: [&Path; 3] = [&model, &inputs, &output];
        let [model, inputs, output] = paths.map(|it| it.to_str().unwrap());
        let arguments = ["forward", "--model", model, "--task", task, "--inputs", inputs, "--output", output];
        refused(&[&arguments[..], more].concat())
    };
    let ids = || tensor("input_ids", &[5, 6, 7, 8], &[2, 2]);
    for odd in [-1, 101, 1 << 40] {
        let said = error("llama-tiny", "causal-lm", vec![tensor("input_ids", &[5, odd], &[1, 2])], &[]);
        assert!(said.contains(&format!("`input_ids` holds {odd}, expected 0 to 100")), "{said}");
        let said = error("llama-tiny", "causal-lm", vec![ids(), tensor("labels", &[5, 6, 7, odd], &[2, 2])], &[]);
        assert!(said.contains(&format!("`labels` holds {odd}, expected 0 to 100, or -100")), "{said}");
        let said = error("gpt2-tiny", "causal-lm", vec![ids(), tensor("position_ids", &[0, 1, 0, odd], &[2, 2])], &[]);
        assert!(said.contains(&format!("`position_ids` holds {odd}, expected 0 to 63")), "{said}");
        let said = error("bert-tiny", "seq-cls", vec![ids(), tensor("token_type_ids", &[0, 1, 0, odd], &[2, 2])], &[]);
        assert!(said.contains(&format!("`token_type_ids` holds {odd}, expected 0 to 1")), "{said}");
        let said = error("bert-tiny", "seq-cls", vec![ids(), tensor("labels", &[0, odd], &[2])], &[]);
        assert!(said.contains(&format!("`labels` holds {odd}, expected 0 to 1, or -100")), "{said}");
        let said = error("bert-tokens", "token-cls", vec![ids(), tensor("labels", &[0, 1, 0, odd], &[2, 2])], &[]);
        assert!(said.contains(&format!("`labels` holds {odd}, expected 0 to ")), "{said}");
        let said = error("t5-tiny", "seq2seq-lm", vec![ids(), tensor("labels", &[0, 1, 0, odd], &[2, 2])], &[]);
        assert!(said.contains(&format!("`labels` holds {odd}, expected 0 to 100, or -100")), "{said}");
        let target = tensor("decoder_input_ids", &[0, 1, 0, odd], &[2, 2]);
        let said = error("bart-tiny", "seq2seq-lm", vec![ids(), target], &[]);
        assert!(said.contains(&format!("`decoder_input_ids` holds {odd}")), "{said}");
    }
    for key in ["attention_mask", "position_ids", "labels"] {
        for (values, shape) in
            [(&[1, 1][..], &[2, 1][..]), (&[1, 1, 1, 1, 1, 1], &[2, 3]), (&[1], &[]), (&[1, 1, 1, 1], &[4])]
        {
            let said = error("gpt2-tiny", "causal-lm", vec![ids(), tensor(key, values, shape)], &[]);
            assert!(
                said.contains(&format!("`{key}` has the shape {shape:?}, beside the input it must be [2, 2]")),
                "{said}"
            );
        }
    }
    let said = error("bert-tiny", "seq-cls", vec![ids(), tensor("labels", &[1], &[])], &[]);
    assert!(said.contains("`labels`"), "{said}");
    let places = vec![ids(), tensor("start_positions", &[1], &[]), tensor("end_positions", &[1], &[1])];
    let said = error("bert-qa", "question-answering", places, &[]);
    assert!(said.contains("`start_positions` has the shape []"), "{said}");
    let said = error("gpt2-tiny", "causal-lm", vec![tensor("input_ids", &[], &[2, 0])], &[]);
    assert!(said.contains("at least 1 each"), "{said}");
    let said = error("gpt2-tiny", "causal-lm", vec![tensor("input_ids", &[1; 65], &[1, 65])], &[]);
    assert!(said.contains("`input_ids` has 65 tokens in a row, but the model only 64 positions"), "{said}");
    let wide = Stored { key: "inputs_embeds".into(), data: TensorData::new(vec![0f32; 6], [1, 2, 3]) };
    let said = error("gpt2-tiny", "causal-lm", vec![wide], &[]);
    assert!(said.contains("`inputs_embeds` has the shape [1, 2, 3]"), "{said}");
    let said = error("gpt2-tiny", "causal-lm", vec![ids(), tensor("labels", &[5, 6, 7, 8], &[2, 2])], &["--grads"]);
    assert!(said.contains("--grads gives the gradients of adapters"), "{said}");
}
