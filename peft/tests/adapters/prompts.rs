//! What prompts do beyond the recorded numbers: starts, files, resuming, company.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use peft::core::files::checkpoint::{Stored, TensorFile};
use peft::core::laws::{self, distance, numbers};
use peft::core::{DEFAULT_ADAPTER, ENCODER_FILE, PeftConfig, PeftModel, WEIGHTS_FILE};
use peft::lora::LoraConfig;
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, ModelInput};
use peft::prompt::{
    AdaptionPromptConfig, EncoderType, MultitaskInit, MultitaskPromptTuningConfig, PrefixTuningConfig,
    PromptEncoderConfig, PromptTuningConfig, PromptTuningInit,
};
use peft::run::ForwardRequest;
use peft::tasks::data::Sample;
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::Task;
use peft::tasks::train::log::{Record, read};
use peft::tasks::train::{TrainConfig, Trainer};

use crate::support::{device, find, fixtures, forward, request};

const TASK: &str = "CAUSAL_LM";

fn base(model: &str) -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(model), &device()).unwrap();
    PeftModel::new(model)
}

fn with(model: &str, config: impl PeftConfig + 'static) -> PeftModel<AutoCausalLm> {
    let mut peft = base(model);
    peft.add_adapter_as(DEFAULT_ADAPTER, config, 3).unwrap();
    peft
}

fn refused(config: impl PeftConfig + 'static) -> String {
    base("gpt2-tiny").add_adapter_as(DEFAULT_ADAPTER, config, 3).unwrap_err().to_string()
}

fn ids(rows: &[&[i64]]) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), &device())
}

fn logits(peft: &PeftModel<AutoCausalLm>) -> TensorData {
    let model = peft::core::nn::set_training(peft.model().valid(), false);
    model.logits(&ModelInput::ids(ids(&[&[5, 17, 3, 88], &[60, 2, 77, 13]])), None).into_data()
}

fn lstm() -> PromptEncoderConfig {
    PromptEncoderConfig {
        encoder_reparameterization_type: EncoderType::Lstm,
        encoder_hidden_size: Some(7),
        encoder_dropout: 0.3,
        ..PromptEncoderConfig::new(4, TASK)
    }
}

fn projected() -> PrefixTuningConfig {
    PrefixTuningConfig { prefix_projection: true, encoder_hidden_size: Some(9), ..PrefixTuningConfig::new(3, TASK) }
}

#[test]
fn a_text_starts_a_prompt_with_its_words_over_and_over() {
    let text = PromptTuningConfig {
        prompt_tuning_init: PromptTuningInit::Text,
        prompt_tuning_init_text: Some("three words".into()),
        tokenizer_name_or_path: Some("somebody/model".into()),
        ..PromptTuningConfig::new(5, TASK)
    };
    assert!(refused(text.clone()).contains("`init_ids`"));
    assert!(refused(PromptTuningConfig { init_ids: Some(vec![7, 500]), ..text.clone() }).contains("below 101"));
    assert!(refused(PromptTuningConfig { prompt_tuning_init_text: None, ..text.clone() }).contains("is missing"));
    assert!(refused(PromptTuningConfig { tokenizer_name_or_path: None, ..text.clone() }).contains("is missing"));

    let peft = with("gpt2-tiny", PromptTuningConfig { init_ids: Some(vec![9, 4, 70]), ..text.clone() });
    let prompt = &peft.adapter_tensors(DEFAULT_ADAPTER).unwrap()[0];
    let file = TensorFile::open(fixtures().join("models/gpt2-tiny/model.safetensors")).unwrap();
    let table = numbers(&file.floats("transformer.wte.weight").unwrap());
    let wanted: Vec<f64> = [9, 4, 70, 9, 4].iter().flat_map(|id| table[id * 32..(id + 1) * 32].to_vec()).collect();
    assert_eq!(numbers(&prompt.data), wanted);

    // A folder has values of its own: nobody has to split the text again.
    let folder = tempfile::tempdir().unwrap();
    peft.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap();
    let mut again = base("gpt2-tiny");
    again.load_adapter(folder.path(), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    assert_eq!(numbers(&logits(&again)), numbers(&logits(&peft)));
}

#[test]
fn tasks_start_from_a_trained_prompt() {
    let source = fixtures().join("cases/gpt2_multitask/default").join(WEIGHTS_FILE);
    let file = TensorFile::open(&source).unwrap();
    let of = |init, task| {
        let config = MultitaskPromptTuningConfig {
            prompt_tuning_init: init,
            prompt_tuning_init_state_dict_path: Some(source.display().to_string()),
            prompt_tuning_init_task: Some(task),
            num_ranks: Some(2),
            ..MultitaskPromptTuningConfig::new(4, 1, TASK)
        };
        with("gpt2-tiny", config).adapter_tensors(DEFAULT_ADAPTER).unwrap()
    };
    let saved = |key: &str| numbers(&file.floats(key).unwrap());
    let (cols, rows) = (saved("prefix_task_cols"), saved("prefix_task_rows"));

    let exact = of(MultitaskInit::ExactSourceTask, 1);
    assert_eq!(numbers(find(&exact, "prompt_embeddings")), saved("prompt_embeddings"));
    assert_eq!(numbers(find(&exact, "prefix_task_cols")), cols[8..16]);
    assert_eq!(numbers(find(&exact, "prefix_task_rows")), rows[64..128]);

    let mean = of(MultitaskInit::AverageSourceTasks, 0);
    for (at, value) in numbers(find(&mean, "prefix_task_rows")).into_iter().enumerate() {
        let wanted = (rows[at] + rows[64 + at] + rows[128 + at]) / 3.0;
        assert!((value - wanted).abs() < 1e-6, "{value} for {wanted}");
    }

    let shared = of(MultitaskInit::OnlySourceShared, 0);
    assert_eq!(numbers(find(&shared, "prompt_embeddings")), saved("prompt_embeddings"));
    assert!(numbers(find(&shared, "prefix_task_cols")).iter().all(|it| it.abs() < 0.2));

    let missing = |path: Option<&str>| MultitaskPromptTuningConfig {
        prompt_tuning_init: MultitaskInit::ExactSourceTask,
        prompt_tuning_init_state_dict_path: path.map(str::to_owned),
        ..MultitaskPromptTuningConfig::new(4, 1, TASK)
    };
    assert!(refused(missing(None)).contains("names the trained prompt"));
    assert!(refused(missing(Some("prompt.bin"))).contains("only `.safetensors`"));
    let beyond = MultitaskPromptTuningConfig {
        prompt_tuning_init_task: Some(3),
        num_ranks: Some(2),
        ..missing(source.to_str())
    };
    assert!(refused(beyond).contains("tasks 0 to 2"));
}

#[test]
fn a_prompt_of_several_tasks_wants_to_know_which() {
    let folder = fixtures().join("cases/gpt2_multitask");
    let inputs = TensorFile::open(folder.join("inputs.safetensors")).unwrap();
    let without = tempfile::tempdir().unwrap();
    let run = |tasks: Option<[i64; 3]>| {
        let mut tensors = vec![Stored { key: "input_ids".into(), data: inputs.integers("input_ids").unwrap() }];
        tensors.extend(tasks.map(|it| Stored { key: "task_ids".into(), data: TensorData::from(it) }));
        let path = without.path().join("inputs.safetensors");
        peft::core::files::checkpoint::write_tensors(&path, tensors, peft::core::files::checkpoint::FloatType::F32)
            .unwrap();
        let request = ForwardRequest { inputs: path, ..request("gpt2_multitask") };
        forward(&request, &device()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert!(run(None).unwrap_err().contains("give `task_ids`"));
    assert!(run(Some([0, 1, 3])).unwrap_err().contains("each below 3"));
    assert_eq!(run(Some([0, 1, 2])), Ok(()));
}

#[test]
fn prompts_are_not_merged() {
    let configs: [Box<dyn PeftConfig>; 3] =
        [Box::new(PromptTuningConfig::new(2, TASK)), Box::new(projected()), Box::new(AdaptionPromptConfig::new(2, 1))];
    for config in configs {
        let mut peft = with("gpt2-tiny", config);
        assert!(peft.merge().unwrap_err().to_string().contains("keep it beside the model"));
        peft.set_enabled(false);
        assert!(peft.merge().is_ok(), "an adapter that does not act is in nobody's way");
    }
}

#[test]
fn sizes_that_the_model_does_not_have_are_refused() {
    assert!(refused(PromptTuningConfig::default()).contains("`num_virtual_tokens` is missing"));
    assert!(refused(PromptTuningConfig::new(0, TASK)).contains("at least 1"));
    let mut wide = PromptTuningConfig::new(2, TASK);
    wide.prompt.token_dim = Some(48);
    assert!(refused(wide).contains("is 48, but the model has 32"));
    let mut deep = PrefixTuningConfig::new(2, TASK);
    deep.prompt.num_layers = Some(1);
    assert!(refused(deep).contains("`num_layers` is 1, but the model has 2"));
    assert!(refused(AdaptionPromptConfig::new(2, 3)).contains("has 2 layers"));
    assert!(refused(AdaptionPromptConfig::default()).contains("`adapter_len`"));
    let qwen = base("qwen2-tiny").add_adapter_as("a", AdaptionPromptConfig::new(2, 1), 0).unwrap_err().to_string();
    assert!(qwen.contains("llama, mistral and gpt2"), "{qwen}");
}

/// The encoder is in a file of its own; without it the prompt loads as the reference loads it.
#[test]
fn an_encoder_is_kept_beside_what_it_makes() {
    let configs: [Box<dyn PeftConfig>; 2] = [Box::new(lstm()), Box::new(projected())];
    for config in configs {
        let peft = with("llama-tiny", config);
        let folder = tempfile::tempdir().unwrap();
        peft.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap();
        let load = || {
            let mut again = base("llama-tiny");
            again.load_adapter(folder.path(), DEFAULT_ADAPTER, &peft::methods()).map(|()| again)
        };
        let whole = load().unwrap();
        assert!(whole.adapter_tensors(DEFAULT_ADAPTER).unwrap().len() > 4);
        assert_eq!(numbers(&logits(&whole)), numbers(&logits(&peft)));

        // An encoder of another adapter.
        let beside = folder.path().join(ENCODER_FILE);
        let encoder = std::fs::read(&beside).unwrap();
        let mut moved = load().unwrap();
        laws::disturb(&mut moved, DEFAULT_ADAPTER, 0.1, &device()).unwrap();
        let other = tempfile::tempdir().unwrap();
        moved.save_adapter(other.path(), DEFAULT_ADAPTER).unwrap();
        std::fs::copy(other.path().join(ENCODER_FILE), &beside).unwrap();
        assert!(load().unwrap_err().to_string().contains("two adapters"));

        std::fs::remove_file(&beside).unwrap();
        let export_form = load().unwrap();
        let keys: Vec<String> =
            export_form.adapter_tensors(DEFAULT_ADAPTER).unwrap().into_iter().map(|it| it.key).collect();
        assert_eq!(keys, ["prompt_embeddings"]);
        assert!(distance(&logits(&export_form), &logits(&peft)) < 1e-6);

        // One that is left over from an earlier adapter goes.
        std::fs::write(&beside, encoder).unwrap();
        export_form.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap();
        assert!(!beside.exists());
    }
}

#[test]
fn a_prompt_and_a_lora_act_together() {
    let mut peft = with("llama-tiny", PromptTuningConfig::new(3, TASK));
    let prompted = logits(&peft);
    peft.add_adapter_as("lora", LoraConfig::new(2, 5.0).targets(["q_proj", "embed_tokens"]), 1).unwrap();
    laws::disturb(&mut peft, "lora", 0.2, &device()).unwrap();
    let adapted = logits(&peft);
    peft.set_active(&[DEFAULT_ADAPTER, "lora"]).unwrap();
    let both = logits(&peft);
    assert_eq!(both.shape(), prompted.shape());
    assert!(distance(&both, &prompted) > 1e-3 && both.shape() != adapted.shape());
    peft.add_adapter_as("prefix", PrefixTuningConfig::new(2, TASK), 2).unwrap();
    peft.set_active(&[DEFAULT_ADAPTER, "lora", "prefix"]).unwrap();
    assert!(distance(&logits(&peft), &both) > 1e-3);
    for name in ["prefix", DEFAULT_ADAPTER] {
        peft.delete_adapter(name).unwrap();
    }
    assert_eq!(numbers(&logits(&peft)), numbers(&adapted));
}

/// Documents in one row see the prompt and not each other.
#[test]
fn packed_documents_have_a_prompt_each() {
    let first: &[i64] = &[5, 17, 3];
    let second: &[i64] = &[60, 2, 77, 13];
    for model in ["gpt2-tiny", "llama-tiny", "bloom-tiny"] {
        let configs: [Box<dyn PeftConfig>; 2] =
            [Box::new(PromptTuningConfig::new(3, TASK)), Box::new(PrefixTuningConfig::new(3, TASK))];
        for config in configs {
            let peft = with(model, config);
            let model = peft::core::nn::set_training(peft.model().valid(), false);
            let mut packed = ModelInput::ids(ids(&[&[first, second].concat()]));
            packed.position_ids = Some(ids(&[&[0, 1, 2, 0, 1, 2, 3]]));
            packed.segment_ids = Some(ids(&[&[1, 1, 1, 2, 2, 2, 2]]));
            let tail = |input: &ModelInput| {
                let hidden = model.hidden(input, None);
                let seq = hidden.dims()[1];
                hidden.narrow(1, seq - 4, 4).into_data()
            };
            let apart = tail(&ModelInput::ids(ids(&[second])));
            assert!(distance(&tail(&packed), &apart) < 1e-5);
        }
    }
}

fn samples() -> Vec<Sample> {
    let texts: [&[u32]; 6] =
        [&[5, 9, 13, 17, 21], &[6, 10, 14, 18], &[7, 11, 15, 19, 23, 27], &[8, 12, 16], &[40, 44, 48, 52], &[3, 6, 9]];
    texts.iter().map(|it| Sample::language(it.to_vec())).collect()
}

fn settings(steps: usize) -> TrainConfig {
    TrainConfig {
        learning_rate: 3e-2,
        batch_size: 3,
        max_steps: Some(steps),
        save_steps: 2,
        save_total_limit: 0,
        logging_steps: 1,
        ..TrainConfig::default()
    }
}

fn run(peft: &mut PeftModel<AutoCausalLm>, steps: usize, folder: Option<&Path>, resume: bool) {
    let task = LanguageModelling::padded(samples(), 0).unwrap();
    let trainer = Trainer::new(peft, &task, settings(steps)).resume(resume);
    folder.into_iter().fold(trainer, Trainer::output).run().unwrap();
}

#[test]
fn every_prompt_learns() {
    alone!();
    let configs: [(&str, Box<dyn PeftConfig>); 6] = [
        ("prompt tuning", Box::new(PromptTuningConfig::new(4, TASK))),
        ("P-tuning", Box::new(PromptEncoderConfig::new(4, TASK))),
        ("LSTM", Box::new(lstm())),
        ("prefix", Box::new(PrefixTuningConfig::new(4, TASK))),
        ("projection", Box::new(projected())),
        ("LLaMA-Adapter", Box::new(AdaptionPromptConfig::new(4, 2))),
    ];
    for (name, config) in configs {
        let mut peft = with("llama-tiny", config);
        let task = LanguageModelling::padded(samples(), 0).unwrap();
        let loss = |peft: &PeftModel<AutoCausalLm>| task.evaluate(&peft.model().valid(), 4, &device()).unwrap().loss;
        let untrained = loss(&peft);
        run(&mut peft, 40, None, false);
        let trained = loss(&peft);
        assert!(trained < 0.9 * untrained, "{name}: loss {untrained} before, {trained} after");
    }
}

/// Killed after a checkpoint and resumed, encoder and all: the losses are those of a run that was never killed.
#[test]
fn an_encoder_resumes_exactly() {
    alone!();
    let fresh: [fn() -> PeftModel<AutoCausalLm>; 2] =
        [|| with("gpt2-tiny", lstm()), || with("llama-tiny", projected())];
    for fresh in fresh {
        let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(&mut fresh(), 6, Some(whole.path()), false);
        std::fs::copy(whole.path().join("train_log.jsonl"), cut.path().join("train_log.jsonl")).unwrap();
        let (from, to) = (whole.path().join("checkpoint-4"), cut.path().join("checkpoint-4"));
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(&from).unwrap() {
            let name = entry.unwrap().file_name();
            std::fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
        run(&mut fresh(), 6, Some(cut.path()), true);
        let losses = |folder: &Path| -> Vec<u64> {
            let records = read(folder.join("train_log.jsonl")).unwrap();
            let losses = records.iter().filter_map(|it| match it {
                Record::Train(it) => Some(it.loss.to_bits()),
                Record::Eval(_) => None,
            });
            losses.collect()
        };
        assert_eq!(losses(whole.path()).len(), 6);
        assert_eq!(losses(whole.path()), losses(cut.path()));
    }
}
