//! Generation, token for token against the reference.

use burn::module::Module;
use peft::core::checkpoint::TensorFile;
use peft::core::{DEFAULT_ADAPTER, Describe, PeftModel};
use peft::models::auto;
use peft::tasks::generate::generate;
use peft::tasks::sampling::GenerationConfig;

use crate::support::{case, device, fixtures};

fn rows(file: &TensorFile, key: &str) -> Vec<Vec<i64>> {
    let width = file.shape(key).unwrap()[1];
    let data = file.integers(key).unwrap();
    data.as_slice::<i64>().unwrap().chunks(width).map(<[i64]>::to_vec).collect()
}

fn check(name: &str) {
    let case = case(name);
    let folder = fixtures().join("cases").join(name);
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(&case.model), &device()).unwrap();
    let sites = model.describe();
    let mut peft = PeftModel::with_sites(model, sites, &device());
    for adapter in &case.adapters {
        peft.load_adapter(folder.join(adapter), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    }
    let inputs = TensorFile::open(folder.join("inputs.safetensors")).unwrap();
    let ids = rows(&inputs, "input_ids");
    let width = ids[0].len();
    let mask = match inputs.shape("attention_mask") {
        Some(_) => rows(&inputs, "attention_mask"),
        None => vec![vec![1; width]; ids.len()],
    };
    let prompts: Vec<Vec<u32>> = ids
        .iter()
        .zip(&mask)
        .map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, keep)| **keep == 1).map(|(id, _)| *id as u32).collect())
        .collect();
    let config: GenerationConfig = serde_json::from_value(case.generate.unwrap()).unwrap();
    let pad = i64::from(config.pad_token_id.unwrap_or(0));
    let mut plan = config.plan().unwrap();
    if inputs.shape("task_ids").is_some() {
        plan.tasks = inputs.integers("task_ids").unwrap().iter::<i64>().collect();
    }
    let new = generate(&peft.model().valid(), &prompts, &plan, &device(), |_, _| Ok(())).unwrap();

    let wanted = rows(&TensorFile::open(folder.join("expected.safetensors")).unwrap(), "generated");
    let length = wanted[0].len();
    for (row, (prompt, new)) in ids.iter().zip(new).enumerate() {
        let mut whole: Vec<i64> = prompt.iter().copied().chain(new.into_iter().map(i64::from)).collect();
        whole.resize(length, pad);
        assert_eq!(whole, wanted[row], "row {row}");
    }
    assert!(length > width, "nothing was generated");
}

macro_rules! generation {
    ($($case:ident),+ $(,)?) => {
        $(#[test] fn $case() { check(stringify!($case)) })+

        const CASES: &[&str] = &[$(stringify!($case)),+];
    };
}

generation! {
    gpt2_adaption, gpt2_base, gpt2_base_bare, gpt2_lora_generate, gpt2_multitask, gpt2_p_tuning, gpt2_prefix,
    gpt2_prefix_projection, gpt2_prompt_tuning, llama_adaption, llama_base, llama_base_bare, llama_generate_eos,
    llama_generate_eos_list, llama_generate_penalty, llama_lora_generate, llama_multitask, llama_p_tuning_lstm,
    llama_prefix, llama_prefix_bare, llama_prefix_left, llama_prefix_wide_heads, llama_prompt_tuning,
    llama_prompt_tuning_bare, llama_rope_dynamic_generate, llama_tied_base, mistral_adaption, mistral_base,
    mistral_lora_generate, mistral_prefix, qwen2_base, qwen2_lora_generate, qwen2_sliding_base,
}

#[test]
fn every_recorded_generation_is_in_the_table() {
    let missing: Vec<String> = std::fs::read_dir(fixtures().join("cases"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|name| case(name).generate.is_some() != CASES.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "table and records differ: {missing:?}");
}
