//! Models that an adapter makes deeper by running layers of the base several times.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::TensorData;
use peft::core::files::checkpoint::{FloatType, Stored, write_tensors};
use peft::core::{Adaptable, DEFAULT_ADAPTER, Names, PeftConfig, PeftModel};
use peft::folder::merge::{MergeReport, MergeRequest, merge};
use peft::load::AdapterSource;
use peft::lora::LoraConfig;
use peft::models::auto;
use peft::run::ForwardRequest;
use serde_json::{Value, json};

use super::nets::{lora, mlp};
use crate::support::{assert_close, case, device, expected, find, fixtures, forward, registry, request};

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// LoRA on every linear layer, none of which starts as nothing.
fn replicated(ranges: &[[usize; 2]]) -> LoraConfig {
    LoraConfig {
        init_lora_weights: false.into(),
        layer_replication: Some(ranges.to_vec()),
        ..LoraConfig::new(3, 2.0).all_linear()
    }
}

/// A fresh adapter of a base, saved.
fn save<M: Module + Adaptable>(base: M, config: LoraConfig, folder: &Path) {
    let mut peft = PeftModel::new(base);
    peft.add_adapter(config).unwrap();
    peft.save_adapter(folder, DEFAULT_ADAPTER).unwrap();
}

fn merged(request: &ForwardRequest, output: &Path) -> peft::core::Result<MergeReport> {
    let ForwardRequest { model, task, adapters, .. } = request.clone();
    let output = output.to_path_buf();
    merge(
        &MergeRequest { base: model, adapters, output, task: Some(task), ..MergeRequest::default() },
        registry(),
        &device(),
    )
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

/// PEFT adds the updates of all copies of a layer to the one weight that they share. Here every copy gets a weight.
#[test]
fn a_merged_deep_model_computes_what_the_live_one_does() {
    for name in [
        "llama_lora_replicated",
        "mistral_lora_replicated",
        "phi3_lora_replicated",
        "bert_lora_replicated",
        "gpt2_features_replicated",
        "modernbert_features_replicated",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (live, deep) = (request(name), folder.path().join("deep"));
        merged(&live, &deep).unwrap_or_else(|error| panic!("{name}: {error}"));
        let plain = ForwardRequest { model: deep.clone(), adapters: Vec::new(), ..live };
        let wanted = expected(&fixtures().join("cases").join(name).join("expected.safetensors"));
        let output = if wanted.contains_key("logits") { "logits" } else { "last_hidden_state" };
        assert_close(name, find(&forward(&plain, &device()).unwrap(), output), &wanted[output]);
        let of_base = config(&model(&case(name).model));
        let depth = if of_base.get("n_layer").is_some() { "n_layer" } else { "num_hidden_layers" };
        assert_eq!(
            config(&deep)[depth],
            if name.starts_with("bert") {
                3
            } else if name.contains("bert") || name.starts_with("llama") {
                5
            } else {
                3
            }
        );
    }
}

/// Architectures of which PEFT repeats no layer: there is nothing to compare with but the merged model. Layers that see
/// differently far come in another order.
#[test]
fn every_stack_is_repeated_and_its_configuration_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("inputs.safetensors");
    let ids = TensorData::new((0..24i64).map(|it| (it * 7) % 90 + 3).collect::<Vec<_>>(), [2, 12]);
    write_tensors(&inputs, vec![Stored { key: "input_ids".into(), data: ids }], FloatType::F32).unwrap();
    for (name, task, depth) in [
        ("gpt2-tiny", "causal-lm", "n_layer"),
        ("qwen2-sliding", "causal-lm", "num_hidden_layers"),
        ("qwen3-tiny", "causal-lm", "num_hidden_layers"),
        ("gemma2-tiny", "causal-lm", "num_hidden_layers"),
        ("gemma3-tiny", "causal-lm", "num_hidden_layers"),
        ("gptneo-tiny", "causal-lm", "num_layers"),
        ("gptneox-tiny", "causal-lm", "num_hidden_layers"),
        ("gptj-tiny", "causal-lm", "n_layer"),
        ("bloom-tiny", "causal-lm", "n_layer"),
        ("opt-tiny", "causal-lm", "num_hidden_layers"),
        ("chatglm1-tiny", "causal-lm", "num_layers"),
        ("chatglm2-tiny", "causal-lm", "num_layers"),
        ("llama-cls", "seq-cls", "num_hidden_layers"),
        ("llama-tokens", "token-cls", "num_hidden_layers"),
        ("roberta-masked", "masked-lm", "num_hidden_layers"),
        ("roberta-tiny", "feature-extraction", "num_hidden_layers"),
        ("deberta-tiny", "feature-extraction", "num_hidden_layers"),
        ("deberta-v2-conv", "feature-extraction", "num_hidden_layers"),
        ("bert-qa", "question-answering", "num_hidden_layers"),
    ] {
        let adapter = folder.path().join(name);
        // The second layer twice, the first after it.
        let ranges = [[0, 2], [1, 2], [0, 1]];
        let base = registry().tasks.get(task).unwrap();
        let base = base.load(&registry().architectures, &model(name), &device(), &Default::default()).unwrap();
        let mut narrow = replicated(&ranges);
        narrow.modules_to_save = None;
        save(base, narrow, &adapter);
        let live = ForwardRequest {
            model: model(name),
            task: task.into(),
            adapters: vec![AdapterSource::new(&adapter)],
            inputs: inputs.clone(),
            grads: false,
            merge: false,
        };
        let deep = folder.path().join(format!("{name}-deep"));
        merged(&live, &deep).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(config(&deep)[depth], 4, "{name}");
        let output = if task == "feature-extraction" { "last_hidden_state" } else { "logits" };
        let wanted = forward(&live, &device()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let plain = ForwardRequest { model: deep, adapters: Vec::new(), ..live.clone() };
        let got = forward(&plain, &device()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_close(name, find(&got, output), find(&wanted, output));
        // Something else than the base that is not deep.
        let shallow = ForwardRequest { adapters: Vec::new(), ..live };
        let shallow = forward(&shallow, &device()).unwrap();
        let distance = crate::support::distance(find(&shallow, output), find(&wanted, output));
        assert!(distance > 1e-3, "{name}: {distance}");
    }
    // Sliding, whole, whole, sliding.
    let types = |name: &str, field: &str| config(&folder.path().join(format!("{name}-deep")))[field].clone();
    let [full, near] = ["full_attention", "sliding_attention"];
    assert_eq!(types("qwen2-sliding", "layer_types"), json!([full, near, near, full]));
    assert_eq!(types("gptneo-tiny", "attention_types"), json!([[["global", "local", "local", "global"], 1]]));
}

/// The base is kept once: a copy costs its adapters, and what a layer knows of itself.
#[test]
fn copies_share_the_numbers_of_the_base() {
    let load = || auto::load_causal_lm(model("llama-tiny"), &device()).unwrap().0;
    let mut peft = PeftModel::new(load());
    peft.add_adapter(replicated(&[[0, 2], [0, 2]])).unwrap();
    let weights = peft.model().downcast_ref::<peft::models::text::decoder::llama::LlamaForCausalLm>().unwrap();
    let layers = &weights.model.layers;
    assert_eq!(layers.len(), 4);
    let id = |at: usize| layers[at].mlp.up_proj.weight.id;
    assert_eq!((id(0), id(1)), (id(2), id(3)), "a layer is that of the base");
    assert_ne!(id(0), id(1));
    // Their adapters are not: each has a gradient and values of its own.
    let tensors = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
    let of = |layer: usize| {
        let key = format!("base_model.model.model.layers.{layer}.mlp.up_proj.lora_A.weight");
        find(&tensors, &key).clone()
    };
    assert_ne!(of(0), of(2));
    // Switched off, the deep base is what is left, as in PEFT.
    peft.set_enabled(false);
    let prompts = peft.spec().prompts.clone().unwrap();
    assert_eq!((prompts.layers, peft.spec().layer_order.clone()), (4, Some(vec![0, 1, 0, 1])));
}

#[test]
fn layers_that_cannot_be_repeated_are_refused() {
    let load = || PeftModel::new(auto::load_causal_lm(model("llama-tiny"), &device()).unwrap().0);
    let refused = |ranges: &[[usize; 2]]| load().add_adapter(replicated(ranges)).unwrap_err().to_string();
    assert!(refused(&[[0, 3]]).contains("names the layer 2, but the model has 2"));
    assert!(refused(&[[1, 1]]).contains("[1, 1], which holds no layer"));
    assert!(refused(&[[0, 1 << 30]]).contains("makes more than 10000 layers"));
    assert!(refused(&vec![[0, 2]; 6000]).contains("makes more than 10000 layers"));
    // No range at all is none, as in PEFT.
    let mut plain = load();
    plain.add_adapter(replicated(&[])).unwrap();
    assert_eq!(plain.spec().layer_order, None);
    let error = plain.add_adapter_as("deep", replicated(&[[0, 2], [0, 2]]), 0).unwrap_err().to_string();
    assert!(error.contains("asks for other layers than the adapters"), "{error}");

    let mut deep = load();
    deep.add_adapter(replicated(&[[0, 2], [0, 2]])).unwrap();
    deep.add_adapter_as("same", replicated(&[[0, 2], [0, 1], [1, 2]]), 0).unwrap();
    for other in [replicated(&[[0, 2]]), LoraConfig { layer_replication: None, ..replicated(&[]) }] {
        let error = deep.add_adapter_as("other", other, 0).unwrap_err().to_string();
        assert!(error.contains("asks for other layers than the adapters"), "{error}");
    }
    assert_eq!(deep.adapters().len(), 2);

    let mut pair = PeftModel::new(auto::load_seq2seq_lm(model("t5-tiny"), &device()).unwrap().0);
    let error = pair.add_adapter(replicated(&[[0, 2], [0, 2]])).unwrap_err().to_string();
    assert!(error.contains("no one stack of layers"), "{error}");
    let scaled = LoraConfig { layer_replication: Some(vec![[0, 2], [0, 2]]), ..LoraConfig::new(2, 2.0) };
    let mut scaled_by_place = PeftModel::new(auto::load_causal_lm(model("gpt2-inverse"), &device()).unwrap().0);
    let error = scaled_by_place.add_adapter(scaled).unwrap_err().to_string();
    assert!(error.contains("by its place"), "{error}");
    let unknown = LoraConfig { layer_replication: Some(vec![[0, 1]]), ..lora(&["lin0"]) };
    let error = mlp().add_adapter(unknown).unwrap_err().to_string();
    assert!(error.contains("layer_replication"), "{error}");
}

/// ModernBERT's first layer lacks a norm, and in no other place can a checkpoint lack it.
#[test]
fn an_order_that_no_checkpoint_can_say_is_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    let (adapter, deep) = (folder.path().join("adapter"), folder.path().join("deep"));
    let base = auto::load_feature_extractor(model("modernbert-tiny"), &device()).unwrap().0;
    save(base, replicated(&[[0, 2], [0, 2]]), &adapter);
    let live = ForwardRequest {
        model: model("modernbert-tiny"),
        task: "feature-extraction".into(),
        adapters: vec![AdapterSource::new(&adapter)],
        inputs: fixtures().join("cases/gpt2_base_bare/inputs.safetensors"),
        grads: false,
        merge: false,
    };
    forward(&live, &device()).unwrap();
    let error = merged(&live, &deep).unwrap_err().to_string();
    assert!(error.contains("cannot have its layers in this order"), "{error}");
    assert!(!deep.exists());
}

#[test]
fn what_is_made_of_a_deep_adapter_is_deep() {
    use peft::lora::convert::{ConvertToLora, Rank};
    use peft::lora::weighted::{Combination, Combine};
    let mut peft = PeftModel::new(auto::load_causal_lm(model("llama-tiny"), &device()).unwrap().0);
    peft.add_adapter(replicated(&[[0, 2], [1, 2]])).unwrap();
    peft.convert_to_lora(DEFAULT_ADAPTER, "converted", Rank::Fixed(3)).unwrap();
    peft.combine("combined", &[(DEFAULT_ADAPTER, 0.5), ("converted", 0.5)], Combination::Cat, 0).unwrap();
    for name in ["converted", "combined"] {
        assert_eq!(peft.adapter_config(name).unwrap()["layer_replication"], json!([[0, 2], [1, 2]]), "{name}");
        let folder = tempfile::tempdir().unwrap();
        peft.save_adapter(folder.path(), name).unwrap();
        let mut again = PeftModel::new(auto::load_causal_lm(model("llama-tiny"), &device()).unwrap().0);
        again.load_adapter(folder.path(), name, &peft::methods()).unwrap();
    }
    let list = LoraConfig { target_modules: Some(Names::list(["q_proj"])), ..replicated(&[[0, 1]]) };
    assert_eq!(PeftConfig::to_json(&list).unwrap()["layer_replication"], json!([[0, 1]]));
}
