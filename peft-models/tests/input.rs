//! Other ways to say the same to a model.

use burn::tensor::{Distribution, Tensor};
use peft_core::nn::Embedding;
use peft_models::auto::{AutoCausalLm, AutoFeatureExtractor, load_feature_extractor};
use peft_models::bert::BertModel;
use peft_models::bloom::BloomForCausalLm;
use peft_models::chatglm::ChatGlmForConditionalGeneration;
use peft_models::gemma::GemmaForCausalLm;
use peft_models::gpt_neo::GptNeoForCausalLm;
use peft_models::gpt_neox::GptNeoXForCausalLm;
use peft_models::gpt2::Gpt2LmHeadModel;
use peft_models::gptj::GptJForCausalLm;
use peft_models::llama::LlamaForCausalLm;
use peft_models::opt::OptForCausalLm;
use peft_models::phi3::Phi3ForCausalLm;
use peft_models::{CausalLm, Decoder, FeatureExtractor, ModelInput, Tokens};

use crate::support::{assert_close, causal_lm, device, ids, logits, model_folder, still};

const DECODERS: [&str; 17] = [
    "gpt2-tiny",
    "llama-tiny",
    "llama-rope-llama3",
    "llama-rope-yarn",
    "mistral-tiny",
    "qwen2-tiny",
    "qwen2-sliding",
    "bloom-residual",
    "opt-unbiased",
    "gptneo-local",
    "gptj-tiny",
    "gptneox-tiny",
    "chatglm2-tiny",
    "qwen3-tiny",
    "gemma2-tiny",
    "gemma3-tiny",
    "phi3-tiny",
];

#[test]
fn packed_rows_equal_separate_rows() {
    let packed = ModelInput {
        position_ids: Some(ids([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 0]])),
        segment_ids: Some(ids([[1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0]])),
        ..ModelInput::ids(ids([[9, 71, 5, 33, 18, 92, 40, 64, 7, 51, 3, 0]]))
    };
    let first = ModelInput::ids(ids([[9, 71, 5, 33, 18, 92, 40]]));
    let second = ModelInput::ids(ids([[64, 7, 51, 3]]));
    for name in DECODERS {
        let model = causal_lm(name);
        let separate = [&first, &second].map(|it| logits(&model, it, None));
        let together = logits(&model, &packed, None).narrow(1, 0, 11);
        assert_close(name, together.into_data(), Tensor::cat(separate.to_vec(), 1).into_data());
    }
    let model = encoder("bert-tiny");
    let separate = [&first, &second].map(|it| model.last_hidden_state(it));
    let together = model.last_hidden_state(&packed).narrow(1, 0, 11);
    assert_close("bert", together.into_data(), Tensor::cat(separate.to_vec(), 1).into_data());
}

/// A loss that never forms the logits computes what the head says.
#[test]
fn a_head_is_a_product_unless_it_has_a_bias_or_a_cap() {
    let hidden = |d_model: usize| Tensor::<2>::ones([3, d_model], &device()).cumsum(0).cumsum(1).sin();
    let plain =
        ["bloom-tiny", "opt-post", "gptneox-serial", "chatglm1-tiny", "chatglm1-flat", "gemma2-uncapped", "phi3-long"];
    for name in DECODERS.into_iter().chain(plain) {
        let model = causal_lm(name);
        let Some(weight) = model.head_weight() else {
            assert!(["gptj-tiny", "gemma2-tiny"].contains(&name), "{name}");
            continue;
        };
        let hidden = hidden(weight.dims()[1]);
        assert_close(name, hidden.clone().matmul(weight.transpose()).into_data(), model.head(hidden).into_data());
    }
    let capped = causal_lm("gemma2-tiny").head(hidden(32).mul_scalar(100.0)).abs().max().into_scalar::<f32>();
    assert!((2.9..=3.0).contains(&capped), "{capped}");
}

#[test]
fn embeddings_say_what_ids_say() {
    let words = ids([[9, 71, 5, 33, 18, 92], [64, 7, 51, 3, 28, 80]]);
    let mask = ids([[1; 6], [0, 0, 1, 1, 1, 1]]);
    let by_ids = ModelInput::ids(words.clone()).with_mask(mask.clone());
    let by_vectors = |vectors| ModelInput::new(Tokens::Embeddings(vectors)).with_mask(mask.clone());
    for name in DECODERS {
        let model = causal_lm(name);
        let table = embedding_matrix(&model);
        let vectors = table.forward(words.clone());
        let (got, want) = (logits(&model, &by_vectors(vectors), None), logits(&model, &by_ids, None));
        assert_close(name, got.into_data(), want.into_data());
    }
    let model = encoder("bert-tiny");
    let bert = model.downcast_ref::<BertModel>().unwrap();
    let vectors = bert.embeddings.word_embeddings.forward(words);
    let (got, want) = (model.last_hidden_state(&by_vectors(vectors)), model.last_hidden_state(&by_ids));
    assert_close("bert", got.into_data(), want.into_data());
}

#[test]
fn a_mask_of_ones_is_no_mask() {
    let words = ids([[9, 71, 5, 33, 18, 92]]);
    let (bare, full) = (ModelInput::ids(words.clone()), ModelInput::ids(words).with_mask(ids([[1; 6]])));
    for name in DECODERS {
        let model = causal_lm(name);
        assert_close(name, logits(&model, &full, None).into_data(), logits(&model, &bare, None).into_data());
    }
}

/// Frozen weights on a plain device let a gradient through to what goes in.
#[test]
fn a_gradient_reaches_the_input_and_no_weight() {
    let mask = ids([[1; 6], [0, 0, 1, 1, 1, 1]]);
    let vectors = || {
        let vectors = Tensor::<3>::random([2, 6, 32], Distribution::Normal(0.0, 1.0), &device().autodiff());
        vectors.require_grad()
    };
    let input = |vectors: &Tensor<3>| ModelInput::new(Tokens::Embeddings(vectors.clone())).with_mask(mask.clone());
    let assert_reached = |name: &str, vectors: Tensor<3>, output: Tensor<3>| {
        let gradients = output.square().sum().backward();
        let gradient = vectors.grad(&gradients).unwrap_or_else(|| panic!("{name}: no gradient"));
        assert!(gradient.abs().max().into_scalar::<f32>() > 1e-3, "{name}");
    };
    for name in DECODERS {
        let (model, vectors) = (causal_lm(name), vectors());
        let output = logits(&model, &input(&vectors), None);
        assert_reached(name, vectors, output);
    }
    let (model, vectors) = (encoder("bert-tiny"), vectors());
    let output = model.last_hidden_state(&input(&vectors));
    assert_reached("bert", vectors, output);
}

fn encoder(name: &str) -> AutoFeatureExtractor {
    still(load_feature_extractor(model_folder(name), &device()).unwrap().0)
}

/// The matrix that ids are looked up in.
fn embedding_matrix(model: &AutoCausalLm) -> &Embedding {
    macro_rules! first {
        ($($kind:ty: $get:expr;)+) => {{
            $(if let Some(it) = model.downcast_ref::<$kind>() {
                let get: fn(&$kind) -> &Embedding = $get;
                return get(it);
            })+
            panic!("no case for {model:?}")
        }};
    }
    first! {
        Gpt2LmHeadModel: |it| &it.transformer.wte;
        LlamaForCausalLm: |it| &it.model.embed_tokens;
        GemmaForCausalLm: |it| it.model.embedding();
        Phi3ForCausalLm: |it| it.model.embedding();
        BloomForCausalLm: |it| it.transformer.embedding();
        OptForCausalLm: |it| it.model.embedding();
        GptNeoForCausalLm: |it| it.transformer.embedding();
        GptJForCausalLm: |it| it.transformer.embedding();
        GptNeoXForCausalLm: |it| it.gpt_neox.embedding();
        ChatGlmForConditionalGeneration: |it| it.transformer.embedding();
    }
}
