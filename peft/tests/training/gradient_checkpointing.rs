//! Gradient checkpointing: layers that are computed again give the loss and the gradients of layers that are kept, in less
//! memory. (The tables of `parity` compare every recorded case with the reference, with it and without.)

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Distribution, Gradients, Int, Tensor, TensorData};
use peft::core::forward::gradient_checkpointing::{self, scope};
use peft::core::{Adaptable, DEFAULT_ADAPTER, Indices, PeftConfig, PeftModel, laws, nn, ops};
use peft::ia3::Ia3Config;
use peft::lora::{AdaLoraConfig, Bias, BoftConfig, LoHaConfig, LoKrConfig, LoraConfig, VeraConfig};
use peft::models::auto::ClassifierOptions;
use peft::models::{
    CausalLm, FeatureExtractor, ImageClassifier, KvCache, ModelInput, Seq2SeqLm, SequenceClassifier, auto,
};
use peft::prompt::{AdaptionPromptConfig, PrefixTuningConfig, PromptTuningConfig};

use crate::support::{device, fixtures, is_alone};

/// All gradients of a model.
fn gradients<M: Module>(model: &M, gradients: &Gradients) -> BTreeMap<String, TensorData> {
    struct Read<'a>(&'a Gradients, BTreeMap<String, TensorData>, Vec<String>);
    impl ModuleVisitor for Read<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.2.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.2.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.0) {
                self.1.insert(self.2.join("."), gradient.into_data());
            }
        }
    }
    let mut read = Read(gradients, BTreeMap::new(), Vec::new());
    model.visit(&mut read);
    read.1
}

/// A loss, the gradients, and what is drawn behind the forward and behind the backward pass.
struct Outcome {
    loss: TensorData,
    gradients: BTreeMap<String, TensorData>,
    drawn: [TensorData; 2],
}

/// A loss and its gradients while training, with and without, are the same, as are the draws that follow.
fn check<M: Module>(what: &str, model: &M, loss: impl Fn(&M) -> Tensor<1>) {
    assert!(is_alone(), "another test may draw in between: begin with alone!()");
    let model = nn::set_training(model.clone(), true);
    let draw = || Tensor::<1>::random([4], Distribution::Default, &device()).into_data();
    let run = |checkpointed: bool| {
        device().seed(7);
        let value = if checkpointed { scope(&model, &loss).unwrap() } else { loss(&model) };
        let first = draw();
        let gradients = gradients(&model, &value.backward());
        Outcome { loss: value.into_data(), gradients, drawn: [first, draw()] }
    };
    assert_eq!(compare(&run(false), &run(true)), Ok(()), "{what}");
}

fn compare(plain: &Outcome, again: &Outcome) -> Result<(), String> {
    if plain.loss != again.loss || plain.drawn != again.drawn {
        return Err(format!("loss {} for {}, or what is drawn behind it", again.loss, plain.loss));
    }
    let keys = |it: &Outcome| it.gradients.keys().cloned().collect::<Vec<_>>();
    if keys(plain) != keys(again) || keys(plain).is_empty() {
        return Err(format!("gradients of {:?} for {:?}", keys(again), keys(plain)));
    }
    for (key, plain) in &plain.gradients {
        let error = laws::distance(&again.gradients[key], plain);
        if error.is_nan() || error > 1e-5 {
            return Err(format!("gradient of {key} is off by {error:.1e}"));
        }
    }
    Ok(())
}

fn ids(rows: usize) -> Tensor<2, Int> {
    let values: Vec<i64> = (0..rows as i64 * 7).map(|it| it * 13 % 89 + 3).collect();
    Tensor::from_data(TensorData::new(values, [rows, 7]), &device())
}

fn adapted<M: Module + Adaptable>(model: M, tuner: Box<dyn PeftConfig>) -> M {
    let mut peft = PeftModel::new(model);
    peft.add_adapter_as(DEFAULT_ADAPTER, tuner, 1).unwrap();
    laws::disturb(&mut peft, DEFAULT_ADAPTER, 0.3, &device()).unwrap();
    peft.model().clone()
}

fn folder(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn square(output: Tensor<3>) -> Tensor<1> {
    (output.clone() * output).mean()
}

fn causal(name: &str, tuner: impl PeftConfig + 'static) {
    let model = adapted(auto::load_causal_lm(folder(name), &device()).unwrap().0, Box::new(tuner));
    check(name, &model, |model| square(model.logits(&ModelInput::ids(ids(2)), None)));
}

/// Drop path among the rest; a picture in place of words.
fn pictures(name: &str, tuner: impl PeftConfig + 'static) {
    let options = ClassifierOptions::default();
    let model = adapted(auto::load_image_classifier(folder(name), &device(), &options).unwrap().0, Box::new(tuner));
    let values = (0..2 * 3 * 15 * 14).map(|it| (it as f32 * 0.37).sin()).collect();
    let pixels = Tensor::<4>::from_data(TensorData::new(values, [2, 3, 15, 14]), &device());
    check(name, &model, |model| model.logits(pixels.clone()).square().mean());
}

fn target(name: &str, tuner: impl PeftConfig + 'static) {
    let model = adapted(auto::load_seq2seq_lm(folder(name), &device()).unwrap().0, Box::new(tuner));
    check(name, &model, |model| {
        let target = ModelInput::ids(ids(2).narrow(1, 1, 4));
        square(model.logits(&ModelInput::ids(ids(2)), &target))
    });
}

fn classifier(name: &str, tuner: impl PeftConfig + 'static) {
    let options = auto::ClassifierOptions::default();
    let model = auto::load_sequence_classifier(folder(name), &device(), &options).unwrap().0;
    check(name, &adapted(model, Box::new(tuner)), |model| square(model.logits(&ModelInput::ids(ids(2))).unsqueeze()));
}

fn features(name: &str, tuner: impl PeftConfig + 'static) {
    let model = adapted(auto::load_feature_extractor(folder(name), &device()).unwrap().0, Box::new(tuner));
    check(name, &model, |model| square(model.last_hidden_state(&ModelInput::ids(ids(2)))));
}

/// LoRA that drops, on all layers.
fn lora() -> LoraConfig {
    LoraConfig { lora_dropout: 0.3, ..LoraConfig::new(3, 5.0) }.all_linear()
}

#[test]
fn every_stack_drops_what_it_dropped() {
    alone!();
    for name in
        ["gpt2-tiny", "llama-tiny", "bloom-tiny", "chatglm1-tiny", "chatglm2-tiny", "gemma2-tiny", "gemma3-tiny"]
    {
        causal(name, lora());
    }
    for name in ["gptj-tiny", "gptneo-tiny", "gptneox-tiny", "opt-tiny", "phi3-tiny", "qwen2-sliding", "mistral-tiny"] {
        causal(name, lora());
    }
    for name in ["t5-tiny", "t5-gated", "bart-tiny", "mbart-tiny", "mt5-tiny"] {
        target(name, lora());
    }
    for name in ["vit-tiny", "swin-tiny", "segformer-cls"] {
        pictures(name, lora());
    }
    for name in ["bert-tiny", "roberta-cls", "deberta-cls", "deberta-v2-cls", "modernbert-cls"] {
        classifier(name, lora());
    }
    for name in ["deberta-v2-conv", "deberta-tiny", "modernbert-tiny", "xlm-roberta-tiny"] {
        features(name, lora());
    }
}

#[test]
fn every_way_of_dropping_drops_again() {
    alone!();
    causal("llama-tiny", LoraConfig { use_dora: true, ..lora() });
    causal("gpt2-tiny", AdaLoraConfig { lora: lora(), init_r: 4, total_step: Some(9), ..Default::default() });
    let lokr = LoKrConfig { r: 3, alpha: 5.0, rank_dropout: 0.4, module_dropout: 0.3, ..LoKrConfig::default() };
    causal("llama-tiny", LoKrConfig { rank_dropout_scale: true, ..lokr });
    causal("llama-tiny", LoHaConfig { r: 3, alpha: 5.0, rank_dropout: 0.4, module_dropout: 0.3, ..Default::default() });
    causal("llama-tiny", BoftConfig { boft_block_size: 4, boft_dropout: 0.5, ..Default::default() });
    causal("gpt2-tiny", VeraConfig { r: 4, vera_dropout: 0.4, ..Default::default() });
}

#[test]
fn whatever_is_trained_beside_has_its_gradient() {
    alone!();
    let saved = |names: &[&str]| Some(names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
    for bias in [Bias::All, Bias::AdaptedOnly] {
        causal("gpt2-tiny", LoraConfig { bias, ..LoraConfig::new(3, 5.0) });
        classifier("bert-tiny", LoraConfig { bias, ..LoraConfig::new(3, 5.0) });
    }
    causal("gpt2-tiny", LoraConfig { modules_to_save: saved(&["ln_1", "wpe"]), ..LoraConfig::new(3, 5.0) });
    causal("llama-tiny", LoraConfig { modules_to_save: saved(&["mlp", "norm"]), ..LoraConfig::new(3, 5.0) });
    target("t5-tiny", LoraConfig { modules_to_save: saved(&["relative_attention_bias"]), ..LoraConfig::new(3, 5.0) });
    let table = saved(&["rel_embeddings"]);
    for name in ["deberta-cls", "deberta-v2-cls"] {
        classifier(name, LoraConfig { modules_to_save: table.clone(), ..LoraConfig::new(3, 5.0) });
    }
    causal("llama-tiny", Ia3Config::default());
    // Only the upper of two layers: what is below is computed once, as ever.
    let upper = LoraConfig { layers_to_transform: Some(Indices::One(1)), ..LoraConfig::new(3, 5.0) };
    causal("llama-tiny", upper);
}

#[test]
fn virtual_tokens_have_theirs() {
    alone!();
    causal("gpt2-tiny", PrefixTuningConfig::new(3, "CAUSAL_LM"));
    causal("llama-tiny", PrefixTuningConfig { prefix_projection: true, ..PrefixTuningConfig::new(3, "CAUSAL_LM") });
    causal("chatglm2-tiny", PrefixTuningConfig::new(3, "CAUSAL_LM"));
    causal("gpt2-tiny", PromptTuningConfig::new(3, "CAUSAL_LM"));
    causal("llama-tiny", AdaptionPromptConfig::new(3, 2));
    classifier("bert-tiny", PrefixTuningConfig::new(3, "SEQ_CLS"));
    target("t5-tiny", PrefixTuningConfig::new(3, "SEQ_2_SEQ_LM"));
    target("bart-tiny", PrefixTuningConfig::new(3, "SEQ_2_SEQ_LM"));
}

/// Which row has which adapter is known when layers are computed again, although the forward is over by then.
#[test]
fn rows_keep_their_adapters() {
    alone!();
    let model = auto::load_causal_lm(folder("llama-tiny"), &device()).unwrap().0;
    let mut peft = PeftModel::new(model);
    for (seed, name) in ["first", "second"].into_iter().enumerate() {
        peft.add_adapter_as(name, lora(), seed as u64).unwrap();
        laws::disturb(&mut peft, name, 0.3, &device()).unwrap();
    }
    peft.set_trainable(&["first", "second"]).unwrap();
    let model = nn::set_training(peft.model().clone(), true);
    peft.set_model(model.clone());
    let loss = |model: &auto::AutoCausalLm| square(model.logits(&ModelInput::ids(ids(3)), None));
    check("rows", &model, |_| peft.with_adapter_names(&[Some("first"), None, Some("second")], loss).unwrap());
}

/// So are products in bf16, on processors that have them: the backward pass comes when they are over.
#[test]
fn products_stay_in_the_precision_that_they_had() {
    alone!();
    if ops::check_bf16(&device()).is_err() {
        return;
    }
    let model = adapted(auto::load_causal_lm(folder("llama-tiny"), &device()).unwrap().0, Box::new(lora()));
    let loss = |model: &auto::AutoCausalLm| square(model.logits(&ModelInput::ids(ids(2)), None));
    check("bf16", &model, |model| ops::within_bf16(&device(), || loss(model)).unwrap());
}

/// A layer of its own, for what models never do.
#[derive(Module, Debug)]
struct Layer {
    used: Param<Tensor<2>>,
    unused: Param<Tensor<2>>,
    dropout: nn::Dropout,
}

impl Layer {
    fn new(device: &Device) -> Self {
        let param = |value: f32| Param::from_tensor(Tensor::full([3, 3], value, device));
        Self { used: param(0.4), unused: param(0.7), dropout: nn::Dropout::new(0.5) }
    }

    fn forward(&self, hidden: Tensor<3>, scale: &Option<Tensor<3>>) -> Tensor<3> {
        let inner = self.dropout.forward(hidden.clone().matmul(self.used.val().unsqueeze()).tanh());
        match scale {
            Some(scale) => hidden + inner * scale.clone(),
            None => hidden + inner,
        }
    }
}

/// Layers within a layer are computed again with it; a tensor that took no part has no gradient, which is not one of zeros;
/// the backward pass may come inside the scope; and the same layer may be used twice.
#[test]
fn layers_of_other_models_may_take_part() {
    alone!();
    layers_of_other_models(&device().autodiff());
    // Burn's own strategy computes cheap operations again; it may go with this one.
    layers_of_other_models(&device().autodiff().gradient_checkpointing());
}

fn layers_of_other_models(device: &Device) {
    let layer = Layer::new(device);
    check("a layer", &layer, |layer| {
        let hidden = Tensor::<3>::ones([2, 4, 3], device);
        let scale = Some(layer.used.val().unsqueeze::<3>().sum_dim(1).exp());
        let twice = gradient_checkpointing::layer(layer, hidden, &scale, |layer, hidden, scale| {
            let inner = gradient_checkpointing::layer(layer, hidden, scale, |layer, hidden, scale| {
                layer.forward(hidden, scale)
            });
            layer.forward(inner, &None)
        });
        square(gradient_checkpointing::layer(layer, twice, &None::<Tensor<3>>, |layer, hidden, scale| {
            layer.forward(hidden, scale)
        }))
    });
    let hidden = Tensor::<3>::ones([2, 4, 3], device).require_grad();
    let through = |layer: &Layer, hidden: Tensor<3>| {
        gradient_checkpointing::layer(layer, hidden, &(), |layer, hidden, ()| layer.forward(hidden, &None))
    };
    let gradients = scope(&layer, |layer| square(through(layer, hidden.clone())).backward()).unwrap();
    assert!(hidden.grad(&gradients).is_some() && layer.used.val().grad(&gradients).is_some());
    assert!(layer.unused.val().grad(&gradients).is_none());
}

#[test]
fn a_model_whose_layers_cannot_is_named() {
    let layer = Layer::new(&device());
    let hidden = Tensor::<3>::ones([2, 4, 3], &device());
    let error = scope(&layer, |layer| layer.forward(hidden, &None)).unwrap_err().to_string();
    assert!(
        error.contains("checkpointing::Layer` is not supported") && error.contains("gradient_checkpointing::layer")
    );
}

/// What layers put into a cache that the caller goes on with would have to be kept as well.
#[test]
fn a_cache_that_grows_is_refused() {
    let model = adapted(auto::load_causal_lm(folder("llama-tiny"), &device()).unwrap().0, Box::new(lora()));
    let forward = |model: &auto::AutoCausalLm| model.logits(&ModelInput::ids(ids(2)), Some(&mut KvCache::new()));
    let error = scope(&model, forward).unwrap_err().to_string();
    assert!(error.contains("no cache may go with it"), "{error}");
}
