//! Generation, token for token against the reference.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use peft::core::files::checkpoint::TensorFile;
use peft::core::{DEFAULT_ADAPTER, PeftModel};
use peft::models::{ImageToText, ModelInput, auto};
use peft::tasks::data::audio::Features;
use peft::tasks::generate::captions::generate_captions;
use peft::tasks::generate::causal::generate;
use peft::tasks::generate::seq2seq::generate_targets;
use peft::tasks::generate::speech::{SpeechConfig, SpeechPlan, SpeechRequest, transcribe};
use peft::tasks::generate::{GenerationConfig, GenerationPlan};
use serde_json::{Map, Value};

use crate::support::{case, device, fixtures};

fn rows(file: &TensorFile, key: &str) -> Vec<Vec<i64>> {
    let width = file.shape(key).unwrap()[1];
    let data = file.integers(key).unwrap();
    data.as_slice::<i64>().unwrap().chunks(width).map(<[i64]>::to_vec).collect()
}

/// Beam search of the reference fills with an end token where the padding token's id is 0.
fn filling(config: &GenerationConfig, plan: &GenerationPlan) -> i64 {
    i64::from(match config.pad_token_id.unwrap_or(0) {
        0 if plan.num_beams > 1 => plan.eos[0],
        pad => pad,
    })
}

fn check(name: &str) {
    match case(name).task.as_str() {
        "seq2seq-lm" => return check_targets(name),
        "speech-to-text" => return check_transcripts(name),
        "image-to-text" => return check_captions(name),
        _ => {}
    }
    let case = case(name);
    let folder = fixtures().join("cases").join(name);
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(&case.model), &device()).unwrap();
    let mut peft = PeftModel::new(model);
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
    let mut plan = config.plan().unwrap();
    let pad = filling(&config, &plan);
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

fn check_targets(name: &str) {
    let case = case(name);
    let folder = fixtures().join("cases").join(name);
    let (model, _) = auto::load_seq2seq_lm(fixtures().join("models").join(&case.model), &device()).unwrap();
    let mut peft = PeftModel::new(model);
    for adapter in &case.adapters {
        peft.load_adapter(folder.join(adapter), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    }
    let inputs = TensorFile::open(folder.join("inputs.safetensors")).unwrap();
    let ids =
        |key: &str| inputs.shape(key).map(|_| Tensor::<2, Int>::from_data(inputs.integers(key).unwrap(), &device()));
    let source = ModelInput { attention_mask: ids("attention_mask"), ..ModelInput::ids(ids("input_ids").unwrap()) };
    let config: GenerationConfig = serde_json::from_value(case.generate.unwrap()).unwrap();
    let plan = config.plan().unwrap();
    let model = peft::core::nn::set_training(peft.model().valid(), false);
    let new = generate_targets(&model, &source, &plan, &device(), |_, _| Ok(())).unwrap();

    let wanted = rows(&TensorFile::open(folder.join("expected.safetensors")).unwrap(), "generated");
    let pad = filling(&config, &plan);
    for (row, new) in new.into_iter().enumerate() {
        let mut new: Vec<i64> = new.into_iter().map(i64::from).collect();
        assert!(!new.is_empty(), "nothing was generated");
        new.resize(wanted[row].len() - 1, pad);
        assert_eq!(new, wanted[row][1..], "row {row}");
    }
}

/// What is asked of a transcript, in the reference's keywords.
fn speech_plan(folder: &Path, mut asked: Map<String, Value>) -> SpeechPlan {
    let mut config = SpeechConfig::load(folder).unwrap();
    let mut text = |field: &str| asked.remove(field).and_then(|it| it.as_str().map(str::to_owned));
    let (language, task) = (text("language"), text("task").map(|it| it.parse().unwrap()));
    let timestamps = asked.remove("return_timestamps").and_then(|it| it.as_bool());
    let generation: GenerationConfig = serde_json::from_value(Value::Object(asked)).unwrap();
    config.generation.max_new_tokens = generation.max_new_tokens;
    config.generation.num_beams = generation.num_beams;
    config.generation.no_repeat_ngram_size = generation.no_repeat_ngram_size;
    config.plan(&SpeechRequest { language, task, timestamps }).unwrap()
}

fn check_transcripts(name: &str) {
    let case = case(name);
    let folder = fixtures().join("cases").join(name);
    let base = fixtures().join("models").join(&case.model);
    let (model, _) = auto::load_speech_seq2seq(&base, &device()).unwrap();
    let mut peft = PeftModel::new(model);
    for adapter in &case.adapters {
        peft.load_adapter(folder.join(adapter), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    }
    let inputs = TensorFile::open(folder.join("inputs.safetensors")).unwrap();
    let &[_, mels, frames] = inputs.shape("input_features").unwrap() else { unreachable!() };
    let values = inputs.floats("input_features").unwrap();
    let values = values.as_slice::<f32>().unwrap().chunks(mels * frames);
    let features: Vec<Features> = values.map(|it| Features { values: it.to_vec(), mels, frames }).collect();
    let plan = speech_plan(&base, case.generate.unwrap().as_object().unwrap().clone());
    let transcripts = transcribe(&peft.model().valid(), &features, 20, &plan, &device(), |_, _| Ok(())).unwrap();

    let expected = TensorFile::open(folder.join("expected.safetensors")).unwrap();
    let wanted = rows(&expected, "generated");
    for (row, transcript) in transcripts.iter().enumerate() {
        let mut tokens: Vec<i64> = transcript.tokens().into_iter().map(i64::from).collect();
        assert!(tokens.len() > 3, "nothing was generated");
        tokens.resize(wanted[row].len(), 79);
        assert_eq!(tokens, wanted[row], "row {row}");
    }
    if expected.shape("starts").is_some() {
        let seconds = |key: &str| expected.floats(key).unwrap().iter::<f64>().collect::<Vec<_>>();
        let segments = &transcripts[0].segments;
        for (segment, (start, end)) in segments.iter().zip(seconds("starts").into_iter().zip(seconds("ends"))) {
            assert!((segment.start - start).abs() < 1e-6 && (segment.end - end).abs() < 1e-6, "{segment:?}");
        }
        assert_eq!(segments.len(), seconds("starts").len());
    }
}

fn check_captions(name: &str) {
    let case = case(name);
    let folder = fixtures().join("cases").join(name);
    let (model, _) = auto::load_image_to_text(fixtures().join("models").join(&case.model), &device()).unwrap();
    let places = model.image_tokens();
    let mut peft = PeftModel::new(model);
    for adapter in &case.adapters {
        peft.load_adapter(folder.join(adapter), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    }
    let inputs = TensorFile::open(folder.join("inputs.safetensors")).unwrap();
    let pixel_values = Tensor::<4>::from_data(inputs.floats("pixel_values").unwrap(), &device());
    let (ids, mask) = (rows(&inputs, "input_ids"), rows(&inputs, "attention_mask"));
    let generate = case.generate.unwrap();
    let is_prompted = generate["prompted"].as_bool().unwrap();
    let prompt = |(ids, mask): (&Vec<i64>, &Vec<i64>)| -> Vec<u32> {
        let read = ids.iter().zip(mask).filter(|it| *it.1 == 1).map(|it| *it.0 as u32);
        if is_prompted { read.skip(places).collect() } else { Vec::new() }
    };
    let prompts: Vec<Vec<u32>> = ids.iter().zip(&mask).map(prompt).collect();
    let config: GenerationConfig = serde_json::from_value(generate).unwrap();
    let plan = config.plan().unwrap();
    let model = peft.model().valid();
    let new = generate_captions(&model, pixel_values, &prompts, &plan, &device(), |_, _| Ok(())).unwrap();

    let wanted = rows(&TensorFile::open(folder.join("expected.safetensors")).unwrap(), "generated");
    let read = match (model.has_encoder(), is_prompted) {
        (true, _) => 1,
        (false, true) => ids[0].len(),
        (false, false) => places + 1,
    };
    let pad = filling(&config, &plan);
    for (row, new) in new.into_iter().enumerate() {
        let mut new: Vec<i64> = new.into_iter().map(i64::from).collect();
        assert!(!new.is_empty(), "nothing was generated");
        new.resize(wanted[row].len() - read, pad);
        assert_eq!(new, wanted[row][read..], "row {row}");
    }
}

macro_rules! generation {
    ($($case:ident),+ $(,)?) => {
        $(#[test] fn $case() { crate::generation::check(stringify!($case)) })+

        pub(super) const CASES: &[&str] = &[$(stringify!($case)),+];
    };
}

generation! {
    bloom_prefix, bloom_prompt_tuning, gptj_prefix, gptj_prompt_tuning, gptneo_prefix, gptneo_prompt_tuning, gptneox_prefix, gptneox_prompt_tuning, opt_prefix, opt_prompt_tuning, gpt2_adaption, gpt2_base, gpt2_base_bare, gpt2_lora_generate, gpt2_multitask, gpt2_p_tuning, gpt2_prefix,
    gpt2_prefix_projection, gpt2_prompt_tuning, llama_adaption, llama_base, llama_base_bare, llama_generate_eos,
    llama_generate_eos_list, llama_generate_penalty, llama_lora_generate, llama_multitask, llama_p_tuning_lstm,
    llama_prefix, llama_prefix_bare, llama_prefix_left, llama_prefix_wide_heads, llama_prompt_tuning,
    llama_lora_replicated, llama_prompt_tuning_bare, llama_rope_dynamic_generate, llama_tied_base, mistral_adaption, mistral_base,
    llama_alora_generate, mistral_lora_generate, mistral_lora_replicated, mistral_prefix, qwen2_base, qwen2_lora_generate, qwen2_sliding_base,
    bloom_base, bloom_base_bare, bloom_lora_generate, bloom_residual_base, chatglm1_base, chatglm1_base_bare, chatglm1_flat_base, chatglm1_flat_prefix, chatglm1_ia3, chatglm1_lora_generate, chatglm1_prefix, chatglm1_prompt_tuning, chatglm2_base, chatglm2_base_bare, chatglm2_full_base, chatglm2_ia3, chatglm2_lora_generate, chatglm2_prefix, chatglm2_prompt_tuning, gptj_base, gptj_base_bare, gptj_full_base, gptj_lora_generate, gptneo_base, gptneo_base_bare, gptneo_local_base, gptneo_lora_generate, gptneox_base, gptneox_base_bare, gptneox_lora_generate, gptneox_serial_base, opt_base, opt_base_bare, opt_lora_generate, opt_post_base, opt_unbiased_base,
    gemma2_base, gemma2_base_bare, gemma2_lora_generate, gemma2_prefix, gemma2_prompt_tuning, gemma2_uncapped_base, gemma3_base, gemma3_base_bare, gemma3_capped_base, gemma3_lora_generate, gemma3_prefix, gemma3_prompt_tuning, phi3_base, phi3_base_bare, phi3_long_base, phi3_lora_generate, phi3_prefix, phi3_short_base, qwen3_base, qwen3_base_bare, qwen3_biased_base, qwen3_lora_generate,
}

mod beams {
    generation! {
        bloom_beams, gemma2_beams, gpt2_lora_beams, llama_beams, llama_beams_early, llama_beams_eos, llama_beams_long,
        llama_beams_never, llama_beams_short, llama_prefix_beams, llama_prompt_tuning_beams, phi3_beams,
    }
}

mod targets {
    generation! {
        bart_all_linear, bart_base, bart_base_bare, bart_base_left, bart_forced, bart_lora, bart_p_tuning,
        bart_prefix, bart_prompt_tuning, mbart_all_linear, mbart_base, mbart_base_bare, mbart_base_left, mbart_lora,
        mt5_base, t5_all_linear, t5_base, t5_base_bare, t5_base_left, t5_beams_early, t5_beams_eos, t5_beams_long,
        t5_beams_never, t5_beams_short, t5_gated_base, t5_gated_eos, t5_lora, t5_p_tuning, t5_prefix,
        t5_prompt_tuning,
    }
}

mod captions {
    generation! {
        blip2_base_bare, blip2_base_left, blip2_lora, blip2_t5_base, blip2_t5_lora,
    }
}

mod transcripts {
    generation! {
        whisper_all_linear, whisper_base, whisper_base_beams, whisper_base_detect, whisper_base_times,
        whisper_base_times_beams, whisper_long, whisper_long_beams, whisper_lora, whisper_untied_base,
    }
}

#[test]
fn every_recorded_generation_is_in_the_table() {
    let missing: Vec<String> = std::fs::read_dir(fixtures().join("cases"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            let tables = [CASES, beams::CASES, captions::CASES, targets::CASES, transcripts::CASES];
            let listed = tables.iter().any(|it| it.contains(&name.as_str()));
            case(name).generate.is_some() != listed
        })
        .collect();
    assert!(missing.is_empty(), "table and records differ: {missing:?}");
}
