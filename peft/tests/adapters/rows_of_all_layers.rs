//! Rows of one batch with adapters that change more than linear layers: each gets what a batch gets that has only its
//! adapter. `fixtures/CHECKLIST.md` names these tests.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig};
use burn::tensor::{Int, Tensor, TensorData};
use peft::core::laws::{self, distance};
use peft::core::{Adaptable, Names, PeftConfig, PeftModel, forward, nn};
use peft::ia3::Ia3Config;
use peft::lora::{Bias, LoraConfig, TrainableTokensConfig};
use peft::models::auto;
use peft::models::{CausalLm, FeatureExtractor, MaskedLm, ModelInput, Seq2SeqLm, SequenceClassifier};
use peft::prompt::{AdaptionPromptConfig, PromptTuningConfig};

use crate::support::{device, fixtures, numbers};

/// LoRA on some layers, with modules that are saved whole.
fn lora(targets: &[&str], saved: &[&str]) -> Box<dyn PeftConfig> {
    let modules_to_save = Some(saved.iter().map(|it| (*it).to_owned()).collect());
    Box::new(LoraConfig { modules_to_save, ..LoraConfig::new(3, 5.0).targets(targets.iter().copied()) })
}

/// LoRA on some layers, and every bias.
fn biased(targets: &[&str]) -> Box<dyn PeftConfig> {
    Box::new(LoraConfig { bias: Bias::All, ..LoraConfig::new(3, 5.0).targets(targets.iter().copied()) })
}

type Adapters = Vec<(&'static str, Box<dyn PeftConfig>)>;

fn adapted<M: Module>(model: M, spec: peft::core::ModelSpec, adapters: Adapters) -> PeftModel<M> {
    let mut peft = PeftModel::with_spec(model, spec);
    for (name, config) in adapters {
        peft.add_adapter_as(name, config, 1).unwrap();
        laws::disturb(&mut peft, name, 0.3, &device()).unwrap();
    }
    peft
}

fn ids(rows: usize) -> Tensor<2, Int> {
    let values: Vec<i64> = (0..rows as i64 * 5).map(|it| it * 13 % 97 + 3).collect();
    Tensor::from_data(TensorData::new(values, [rows, 5]), &device())
}

/// Rows of the output of a batch.
fn row(data: &TensorData, at: usize) -> TensorData {
    let all = numbers(data);
    let width = all.len() / data.shape().as_slice()[0];
    TensorData::new(all[at * width..(at + 1) * width].to_vec(), [width])
}

/// A batch in which adapters and the base take turns gives each row what a batch of its own gives it. `output` is computed
/// for so many rows.
fn check<M: Module>(what: &str, peft: &mut PeftModel<M>, output: impl Fn(&M, usize) -> TensorData) {
    let output = |model: &M, rows| output(&nn::set_training(model.valid(), false), rows);
    let known: Vec<String> = peft.adapters().keys().cloned().collect();
    let mut names: Vec<Option<&str>> = known.iter().map(|it| Some(it.as_str())).collect();
    names.insert(1, None);
    names.push(Some(&known[0]));
    let mixed = match peft.with_adapter_names(&names, |model| output(model, names.len())) {
        Ok(mixed) => mixed,
        Err(error) => panic!("{what}: {error}"),
    };
    for name in &names[..names.len() - 1] {
        peft.set_active(name.as_slice()).unwrap();
        let alone = output(peft.model(), names.len());
        for (at, other) in names.iter().enumerate() {
            let error = distance(&row(&mixed, at), &row(&alone, at));
            match name == other {
                true => assert!(error < 1e-5, "{what}: row {at} with {other:?} is off by {error:.1e}"),
                false => assert!(error > 1e-3, "{what}: {name:?} is {other:?} in row {at}, which proves nothing"),
            }
        }
    }
}

fn check_classifier(folder: &str, adapters: Adapters) {
    let (model, _) =
        auto::load_sequence_classifier(fixtures().join("models").join(folder), &device(), &Default::default()).unwrap();
    let spec = model.spec();
    let mut peft = adapted(model, spec, adapters);
    check(folder, &mut peft, |model, rows| model.logits(&ModelInput::ids(ids(rows))).into_data());
}

fn check_features(folder: &str, adapters: Adapters) {
    let (model, _) = auto::load_feature_extractor(fixtures().join("models").join(folder), &device()).unwrap();
    let spec = model.spec();
    let mut peft = adapted(model, spec, adapters);
    check(folder, &mut peft, |model, rows| model.last_hidden_state(&ModelInput::ids(ids(rows))).into_data());
}

fn check_masked(folder: &str, adapters: Adapters) {
    let (model, _) = auto::load_masked_lm(fixtures().join("models").join(folder), &device()).unwrap();
    let spec = model.spec();
    let mut peft = adapted(model, spec, adapters);
    check(folder, &mut peft, |model, rows| model.logits(&ModelInput::ids(ids(rows))).into_data());
}

fn causal(folder: &str, adapters: Adapters) -> PeftModel<auto::AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models").join(folder), &device()).unwrap();
    let spec = model.spec();
    adapted(model, spec, adapters)
}

fn check_causal(folder: &str, adapters: Adapters) {
    let mut peft = causal(folder, adapters);
    check(folder, &mut peft, |model, rows| model.logits(&ModelInput::ids(ids(rows)), None).into_data());
}

#[test]
fn heads_norms_and_tables_of_a_decoder_belong_to_their_rows() {
    check_classifier(
        "gpt2-cls",
        vec![
            ("head", lora(&["c_attn"], &["score"])),
            ("both", lora(&["c_attn", "c_fc"], &["score", "ln_f"])),
            ("norms", lora(&["c_attn"], &["ln_1"])),
            ("tables", lora(&["wte"], &["wpe", "score"])),
            ("biases", biased(&["c_proj"])),
        ],
    );
    check_causal(
        "llama-tiny",
        vec![
            ("norm", lora(&["q_proj"], &["model.norm"])),
            ("head", lora(&["q_proj"], &["lm_head", "embed_tokens"])),
            ("plain", lora(&["q_proj"], &[])),
        ],
    );
    check_causal("gemma3-tiny", vec![("one", lora(&["q_proj"], &["norm"])), ("two", lora(&["v_proj"], &["q_norm"]))]);
}

#[test]
fn heads_norms_and_tables_of_an_encoder_belong_to_their_rows() {
    check_classifier(
        "bert-multilabel",
        vec![
            ("head", lora(&["query"], &["classifier"])),
            ("both", lora(&["query", "value"], &["classifier", "pooler"])),
            ("norms", lora(&["key"], &["LayerNorm"])),
            ("table", lora(&["word_embeddings"], &["position_embeddings"])),
            ("biases", biased(&["dense"])),
            ("plain", lora(&["query"], &[])),
        ],
    );
    check_classifier(
        "modernbert-biased",
        vec![("one", lora(&["Wqkv"], &["classifier", "final_norm"])), ("two", biased(&["Wo"]))],
    );
    check_masked("bert-masked", vec![("one", biased(&["query"])), ("two", lora(&["query"], &["transform"]))]);
    check_masked("modernbert-masked", vec![("one", biased(&["Wqkv"])), ("two", lora(&["Wqkv"], &["head"]))]);
}

#[test]
fn distances_are_seen_by_each_row_in_its_own_way() {
    check_features("deberta-tiny", vec![("one", biased(&["in_proj", "pos_proj"])), ("two", lora(&["in_proj"], &[]))]);
    check_features(
        "deberta-v2-tiny",
        vec![("one", biased(&["query_proj", "key_proj"])), ("two", lora(&["value_proj", "key_proj"], &["LayerNorm"]))],
    );
    check_classifier(
        "deberta-v2-conv",
        vec![("one", lora(&["query_proj"], &["conv", "classifier"])), ("two", lora(&["value_proj"], &["conv"]))],
    );
    let (model, _) = auto::load_seq2seq_lm(fixtures().join("models/t5-tiny"), &device()).unwrap();
    let spec = model.spec();
    let adapters: Adapters =
        vec![("one", lora(&["q"], &["relative_attention_bias"])), ("two", lora(&["v"], &["layer_norm"]))];
    let mut peft = adapted(model, spec, adapters);
    check("t5", &mut peft, |model, rows| {
        let input = ModelInput::ids(ids(rows));
        model.logits(&input, &input).into_data()
    });
}

/// A tied head goes along with some adapters on its table, and prompts behind a gate are looked at by some rows.
#[test]
fn tied_heads_and_gates_belong_to_their_rows() {
    // Every row of the batch has some of these tokens.
    let tokens = |first: usize| -> Box<dyn PeftConfig> {
        let token_indices = (first..101).step_by(2).collect();
        Box::new(TrainableTokensConfig { token_indices, ..TrainableTokensConfig::default() })
    };
    check_causal("gpt2-tiny", vec![("even", tokens(0)), ("odd", tokens(1)), ("table", lora(&["wte"], &[]))]);
    check_causal(
        "llama-tiny",
        vec![
            ("gate", Box::new(AdaptionPromptConfig::new(3, 1))),
            ("gates", Box::new(AdaptionPromptConfig::new(2, 2))),
            ("plain", lora(&["o_proj"], &[])),
        ],
    );
}

/// Layers of ours and of Burn, computed by rows.
#[derive(Module, Debug)]
struct Pictures {
    colours: Embedding,
    conv: Conv2d,
    line: nn::Conv1d,
    norm: LayerNorm,
    head: nn::Projection,
}

impl Pictures {
    fn new() -> Self {
        Self {
            colours: EmbeddingConfig::new(7, 6).init(&device()),
            conv: Conv2dConfig::new([3, 5], [2, 3]).init(&device()),
            line: nn::Conv1d::new([5, 4], 3, 1, &device()).with_padding(1),
            norm: LayerNormConfig::new(8).init(&device()),
            head: nn::Projection::new(8, 3, true, &device()),
        }
    }

    /// Pictures of three by four points, `[batch, 12]`.
    fn forward(&self, points: Tensor<2, Int>) -> Tensor<2> {
        let batch = points.dims()[0];
        let points = forward::by_rows(&self.colours, points, |it, points| it.forward(points));
        let points = points.reshape([batch, 3, 4, 6]);
        let seen = forward::by_rows(&self.conv, points, |it, points| it.forward(points)).reshape([batch, 5, 12]);
        let line = self.line.forward(seen).narrow(2, 0, 8);
        let normal = forward::by_rows(&self.norm, line, |it, line| it.forward(line));
        self.head.forward(normal.mean_dim(1).reshape([batch, 8]))
    }
}

fn points(rows: usize) -> Tensor<2, Int> {
    let values: Vec<i64> = (0..rows as i64 * 12).map(|it| it * it * 5 % 7).collect();
    Tensor::from_data(TensorData::new(values, [rows, 12]), &device())
}

#[test]
fn convolutions_belong_to_their_rows() {
    let ia3: Box<dyn PeftConfig> = Box::new(Ia3Config {
        target_modules: Some(Names::list(["conv", "line"])),
        feedforward_modules: Some(Names::list([""; 0])),
        ..Ia3Config::default()
    });
    let model = Pictures::new();
    let spec = peft::core::ModelSpec::of(&model);
    let adapters = vec![
        ("plane", lora(&["conv"], &["head"])),
        ("line", lora(&["line"], &["head", "norm"])),
        ("saved", lora(&["colours"], &["line", "conv"])),
        ("scaled", ia3),
        ("biases", biased(&["conv"])),
    ];
    let mut peft = adapted(model, spec, adapters);
    check("pictures", &mut peft, |model, rows| model.forward(points(rows)).into_data());
}

/// A norm that a foreign model calls as it is.
#[derive(Module, Debug)]
struct Foreign {
    norm: LayerNorm,
    head: nn::Projection,
}

#[test]
fn what_is_read_for_all_rows_must_be_the_same_for_all() {
    let model =
        Foreign { norm: LayerNormConfig::new(4).init(&device()), head: nn::Projection::new(4, 2, true, &device()) };
    let spec = peft::core::ModelSpec::of(&model);
    let adapters = vec![("norm", lora(&["head"], &["norm"])), ("head", lora(&["head"], &[]))];
    let mut peft = adapted(model, spec, adapters);
    let forward = |model: &Foreign| {
        let values: Vec<f32> = (0..12u8).map(|it| f32::from(it * it % 11)).collect();
        let input = Tensor::<2>::from_data(TensorData::new(values, [3, 4]), &device());
        model.head.forward(model.norm.forward(input)).into_data()
    };
    let refused = peft
        .with_adapter_names(&[Some("norm"), Some("head"), None], |it| forward(&it.valid()))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("`norm.gamma`") && refused.contains("by_rows"), "{refused}");
    peft.with_adapter_names(&[Some("head"), Some("head"), None], |it| forward(&it.valid())).unwrap();
    let same = peft.with_adapter_names(&[Some("norm"); 3], |it| forward(&it.valid())).unwrap();
    peft.set_active(&["norm"]).unwrap();
    assert!(distance(&same, &forward(&peft.model().valid())) < 1e-6);
}

#[test]
fn a_prompt_is_the_same_for_all_rows() {
    let prompt = || -> Box<dyn PeftConfig> { Box::new(PromptTuningConfig::new(3, "CAUSAL_LM")) };
    let mut peft =
        causal("llama-tiny", vec![("one", prompt()), ("two", prompt()), ("lora", lora(&["embed_tokens"], &[]))]);
    let logits = |model: &auto::AutoCausalLm| model.valid().logits(&ModelInput::ids(ids(2)), None).into_data();
    for other in [Some("two"), Some("lora"), None] {
        let refused = peft.with_adapter_names(&[Some("one"), other], logits).unwrap_err().to_string();
        assert!(refused.contains("model.embed_tokens"), "{refused}");
    }
    peft.with_adapter_names(&[Some("lora"), None], logits).unwrap();
    let same = peft.with_adapter_names(&[Some("one"); 2], logits).unwrap();
    peft.set_active(&["one"]).unwrap();
    assert!(distance(&same, &logits(peft.model())) < 1e-6);
}
