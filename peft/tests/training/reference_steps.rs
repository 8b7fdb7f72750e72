//! The reference's ten steps: losses, and the tensors that training ended with.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};
use peft::core::files::checkpoint::TensorFile;
use peft::core::ops::{self, Interpolation};
use peft::core::{Adaptable, DEFAULT_ADAPTER, PeftConfig, PeftModel, nn};
use peft::load::AdapterSource;
use peft::load::adapters::head_of;
use peft::models::auto::{self, ClassifierOptions};
use peft::models::{
    AudioInput, CausalLm, Denoiser, DenoiserInput, ImageClassifier, ImageToText, ModelInput, SemanticSegmenter,
    Seq2SeqLm, SequenceClassifier,
};
use peft::tasks::tasks::loss;
use peft::tasks::tasks::task::scalar;
use peft::tasks::train::TrainConfig;
use peft::tasks::train::optimizer::{optimizer, set_frozen};
use serde_json::Value;

use crate::support::{assert_close, case, device, expected, find, fixtures, numbers};

/// Ten AdamW steps on one batch, against the losses and the tensors that the reference ended with.
fn ten_steps<M: Module + Adaptable>(name: &str, model: M, loss: impl Fn(&M) -> Tensor<1>) {
    let folder = fixtures().join("cases").join(name);
    let steps = case(name).steps.expect("the case records steps");
    let wanted = expected(&folder.join("expected.safetensors"));
    let spec = model.spec();
    let mut peft = PeftModel::with_spec(model, spec);
    peft.load_adapter(folder.join(DEFAULT_ADAPTER), DEFAULT_ADAPTER, &peft::methods()).unwrap();
    // LoRA+ and LoRA-FA, where a case has them, are spelled as in the configuration.
    let config: TrainConfig = serde_json::from_value(Value::Object(steps.more)).unwrap();
    let config = TrainConfig {
        learning_rate: steps.lr,
        adam_beta1: steps.betas[0],
        adam_beta2: steps.betas[1],
        adam_epsilon: steps.eps,
        weight_decay: steps.weight_decay,
        ..config
    };
    let (mut optimizer, frozen) = optimizer(&config, &peft, DEFAULT_ADAPTER).unwrap();
    let mut hook = peft.adapters()[DEFAULT_ADAPTER].config.after_step();
    let mut model = set_frozen(nn::set_training(peft.model().clone(), false), &frozen, true);
    let losses = numbers(&wanted["steps.loss"]);
    for (step, wanted) in losses.iter().enumerate() {
        let mut value = loss(&model);
        if let Some(own) = peft::core::model::state::loss(&model) {
            value = value + own;
        }
        let actual = scalar(&value);
        assert!((actual - wanted).abs() <= 1e-4 * wanted.abs(), "step {step}: loss {actual}, reference {wanted}");
        let gradients = GradientsParams::from_grads(value.backward(), &model);
        let seen = peft::core::model::state::step_gradients(&model, DEFAULT_ADAPTER, &gradients);
        model = optimizer.step(steps.lr, model, gradients);
        if let Some(hook) = &mut hook {
            let tensors = peft::core::model::state::tensors(&model, DEFAULT_ADAPTER);
            let changed = hook.after_step(step, &tensors, &seen).unwrap();
            let changed = changed.into_iter().map(|it| (it.key, it.data)).collect();
            model = peft::core::model::state::assign(model, DEFAULT_ADAPTER, changed);
        }
    }
    if let Some(hook) = hook {
        let config = hook.config().to_json().unwrap();
        for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("steps.kept.")) {
            let kept = config["rank_pattern"][key.trim_start_matches("steps.kept.")].as_array().unwrap();
            let kept: Vec<f64> = kept.iter().map(|it| f64::from(u8::from(it.as_bool().unwrap()))).collect();
            assert_eq!(kept, numbers(wanted), "{key}");
        }
    }
    assert!((losses[0] - losses[9]).abs() > 1e-2 * losses[0], "ten steps that change nothing prove nothing");
    peft.set_model(model);
    let ours = peft.adapter_tensors(DEFAULT_ADAPTER).unwrap();
    for (key, wanted) in wanted.iter().filter(|(key, _)| key.starts_with("steps.base_model")) {
        assert_close(key, find(&ours, key.trim_start_matches("steps.")), wanted);
    }
}

fn inputs(name: &str) -> TensorFile {
    TensorFile::open(fixtures().join("cases").join(name).join("inputs.safetensors")).unwrap()
}

fn model_input(file: &TensorFile, device: &Device) -> ModelInput {
    let grid = |key: &str| file.shape(key).map(|_| Tensor::from_data(file.integers(key).unwrap(), device));
    let mut input = ModelInput::ids(grid("input_ids").unwrap());
    input.attention_mask = grid("attention_mask");
    input.token_type_ids = grid("token_type_ids");
    input
}

fn causal_steps(name: &str) {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(case(name).model), &device()).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels = Tensor::from_data(file.integers("labels").unwrap(), &device());
        loss::causal_lm(model.logits(&model_input(&file, &device()), None), labels)
    });
}

fn classifier_steps(name: &str) {
    let folder = fixtures().join("models").join(case(name).model);
    let options = head_of(&[AdapterSource::new(fixtures().join("cases").join(name).join(DEFAULT_ADAPTER))]);
    let (model, _) = auto::load_sequence_classifier(folder, &device(), &options).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels = loss::Labels::Classes(Tensor::from_data(file.integers("labels").unwrap(), &device()));
        let problem = loss::ProblemType::resolve(model.problem_type(), model.num_labels(), &labels).unwrap();
        loss::classification(model.logits(&model_input(&file, &device())), labels, problem).unwrap()
    });
}

fn target_steps(name: &str) {
    let (model, _) = auto::load_seq2seq_lm(fixtures().join("models").join(case(name).model), &device()).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels: Tensor<2, Int> = Tensor::from_data(file.integers("labels").unwrap(), &device());
        let target = ModelInput::ids(model.shift_right(labels.clone()).unwrap());
        loss::every_position(model.logits(&model_input(&file, &device()), &target), labels)
    });
}

fn pixels(file: &TensorFile) -> Tensor<4> {
    Tensor::from_data(file.floats("pixel_values").unwrap(), &device())
}

fn picture_steps(name: &str) {
    let folder = fixtures().join("models").join(case(name).model);
    let (model, _) = auto::load_image_classifier(folder, &device(), &ClassifierOptions::default()).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels = loss::Labels::Classes(Tensor::from_data(file.integers("labels").unwrap(), &device()));
        loss::classification(model.logits(pixels(&file)), labels, loss::ProblemType::SingleLabel).unwrap()
    });
}

fn segmentation_steps(name: &str) {
    let folder = fixtures().join("models").join(case(name).model);
    let (model, _) = auto::load_semantic_segmenter(folder, &device(), &ClassifierOptions::default()).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels: Tensor<3, Int> = Tensor::from_data(file.integers("labels").unwrap(), &device());
        let [_, height, width] = labels.dims();
        let large = ops::interpolate(model.logits(pixels(&file)), [height, width], Interpolation::Bilinear);
        loss::segmentation(large, labels, model.ignored_label())
    });
}

fn denoiser_steps(name: &str) {
    let (model, _) = auto::load_denoiser(fixtures().join("models").join(case(name).model), &device()).unwrap();
    let file = inputs(name);
    let timesteps: Vec<f32> = file.integers("timestep").unwrap().iter::<i64>().map(|it| it as f32).collect();
    let input = DenoiserInput {
        sample: Tensor::from_data(file.floats("sample").unwrap(), &device()),
        timestep: Tensor::from_floats(timesteps.as_slice(), &device()),
        encoder_hidden_states: Tensor::from_data(file.floats("encoder_hidden_states").unwrap(), &device()),
        added: None,
    };
    ten_steps(name, model, |model| {
        let labels = Tensor::from_data(file.floats("labels").unwrap(), &device());
        (model.predict(&input) - labels).square().mean()
    });
}

fn speech_steps(name: &str) {
    let (model, _) = auto::load_speech_seq2seq(fixtures().join("models").join(case(name).model), &device()).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let labels: Tensor<2, Int> = Tensor::from_data(file.integers("labels").unwrap(), &device());
        let target = ModelInput::ids(model.shift_right(labels.clone()).unwrap());
        let input_features = Tensor::from_data(file.floats("input_features").unwrap(), &device());
        loss::every_position(model.logits(&AudioInput { input_features }, &target), labels)
    });
}

fn caption_steps(name: &str) {
    let (model, _) = auto::load_image_to_text(fixtures().join("models").join(case(name).model), &device()).unwrap();
    let file = inputs(name);
    ten_steps(name, model, |model| {
        let read = model.read(pixels(&file), &model_input(&file, &device()));
        let labels = Tensor::from_data(file.integers("labels").unwrap(), &device());
        loss::causal_lm(model.logits(&read, None), labels)
    });
}

macro_rules! steps {
    ($($run:ident: $($case:ident),+;)+) => { $($(#[test] fn $case() { $run(stringify!($case)) })+)+ };
}

steps! {
    causal_steps: gpt2_lora_default, llama_lora_default, llama_dora_all_linear, llama_save_lm_head, gpt2_ia3_default,
        gpt2_adalora_default, llama_adalora_default, llama_loha_default, llama_lokr_default, gpt2_norms_default,
        gpt2_tokens, llama_lora_tokens, llama_miss, llama_hira, llama_shira, llama_oft, llama_boft, llama_fourierft,
        llama_randlora, gpt2_vera_default, gpt2_loraplus, llama_loraplus_dora, llama_lora_fa, gpt2_lora_fa,
        llama_tied_saved;
    classifier_steps: bert_lora_default, llama_cls_lora, roberta_cls_lora, deberta_cls_lora, deberta_v2_cls_lora,
        modernbert_cls_lora;
    target_steps: t5_lora, bart_lora, mbart_lora;
    denoiser_steps: unet_sd15_lora;
    picture_steps: vit_lora, swin_lora;
    segmentation_steps: segformer_lora;
    speech_steps: whisper_lora;
    caption_steps: blip2_lora;
}
