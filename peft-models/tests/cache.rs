//! Decoding piece by piece gives what one pass over the whole text gives.

use burn::tensor::Tensor;
use peft_models::auto::load_seq2seq_lm;
use peft_models::{KvCache, ModelInput, Seq2SeqCache, Seq2SeqLm};

use crate::support::{assert_close, causal_lm, device, ids, logits, model_folder, still};

macro_rules! decoders {
    ($($test:ident: $model:literal),+ $(,)?) => {
        $(#[test] fn $test() { check($model) })+
    };
}

decoders! {
    gpt2: "gpt2-tiny",
    gpt2_scaled_by_layer: "gpt2-inverse",
    llama: "llama-tiny",
    llama_tied: "llama-tied",
    llama_linear: "llama-rope-linear",
    llama_llama3: "llama-rope-llama3",
    llama_yarn: "llama-rope-yarn",
    mistral_with_a_window: "mistral-tiny",
    qwen2: "qwen2-tiny",
    qwen2_with_a_window_in_one_layer: "qwen2-sliding",
    bloom: "bloom-tiny",
    opt: "opt-tiny",
    opt_with_narrow_embeddings: "opt-post",
    gptneo: "gptneo-tiny",
    gptneo_with_two_windows: "gptneo-local",
    gptj: "gptj-tiny",
    gptneox: "gptneox-tiny",
    gptneox_serial: "gptneox-serial",
    chatglm_of_the_first_generation: "chatglm1-tiny",
    chatglm_of_the_second_generation: "chatglm2-tiny",
    qwen3: "qwen3-tiny",
    gemma2: "gemma2-tiny",
    gemma3: "gemma3-tiny",
    phi3: "phi3-tiny",
}

fn check(name: &str) {
    let model = causal_lm(name);
    let text = ids([[0, 0, 0, 9, 71, 5, 33, 18, 92, 40, 64, 7], [51, 3, 28, 80, 16, 97, 44, 62, 5, 11, 39, 73]]);
    let mask = ids([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1; 12]]);
    for (what, mask) in [("without a mask", None), ("padded on the left", Some(mask))] {
        let whole = ModelInput { attention_mask: mask.clone(), ..ModelInput::ids(text.clone()) };
        let want = logits(&model, &whole, None);
        // A long piece, a short one, then single tokens: beyond the windows of 4 and 5 tokens either way.
        let mut cache = KvCache::new();
        let mut pieces = Vec::new();
        for width in [6, 2, 1, 1, 1, 1] {
            let past = cache.len();
            let mask = mask.clone().map(|it| it.narrow(1, 0, past + width));
            let piece = ModelInput { attention_mask: mask, ..ModelInput::ids(text.clone().narrow(1, past, width)) };
            pieces.push(logits(&model, &piece, Some(&mut cache)));
        }
        // What stands in for padding is nobody's: where it averages over all keys, it depends on how many there are.
        let kept = mask.map_or(want.ones_like(), |it| it.float().unsqueeze_dim::<3>(2).expand(want.dims()));
        assert_close(what, (Tensor::cat(pieces, 1) * kept.clone()).into_data(), (want * kept).into_data());
    }
}

/// Distances beyond the last bucket of T5, and positions that go on where BART's cache ends.
#[test]
fn targets_in_pieces() {
    let source = ids([[9, 71, 5, 33, 18, 92], [51, 3, 28, 80, 1, 1]]);
    let source = ModelInput::ids(source).with_mask(ids([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]));
    let text = ids([[2, 40, 64, 7, 97, 44, 62, 5, 11, 39, 73, 18], [2, 16, 9, 55, 31, 80, 21, 66, 4, 3, 90, 12]]);
    for name in ["t5-tiny", "t5-gated", "mt5-tiny", "bart-tiny", "mbart-tiny"] {
        let model = still(load_seq2seq_lm(model_folder(name), &device()).unwrap().0);
        let encoded = model.encode(&source);
        let want = model.decode(&ModelInput::ids(text.clone()), &encoded, None);
        let mut cache = Seq2SeqCache::new();
        let mut pieces = Vec::new();
        for width in [5, 3, 1, 1, 1, 1] {
            let piece = ModelInput::ids(text.clone().narrow(1, cache.len(), width));
            pieces.push(model.decode(&piece, &encoded, Some(&mut cache)));
        }
        assert_close(name, Tensor::cat(pieces, 1).into_data(), want.clone().into_data());

        // Beams part: the second row goes on twice.
        let rows = Tensor::from_ints([1, 1], &device());
        let mut cache = Seq2SeqCache::new();
        model.decode(&ModelInput::ids(text.clone().narrow(1, 0, 11)), &encoded, Some(&mut cache));
        cache.select(rows.clone());
        let last = ModelInput::ids(ids([[12], [12]]));
        let got = model.decode(&last, &encoded.select(rows.clone()), Some(&mut cache));
        assert_close(name, got.into_data(), want.narrow(1, 11, 1).select(0, rows).into_data());
    }
}

#[test]
fn rows_can_leave_a_batch() {
    let model = causal_lm("mistral-tiny");
    let text = ids([[9, 71, 5, 33], [51, 3, 28, 80], [7, 12, 90, 31]]);
    let mut cache = KvCache::new();
    logits(&model, &ModelInput::ids(text.clone().narrow(1, 0, 3)), Some(&mut cache));
    let kept = Tensor::from_ints([2, 0], &crate::support::device());
    cache.select(kept);
    let last = ModelInput::ids(ids([[31], [33]]));
    let got = logits(&model, &last, Some(&mut cache));
    let whole = logits(&model, &ModelInput::ids(text), None).narrow(1, 3, 1);
    let want = Tensor::cat(vec![whole.clone().narrow(0, 2, 1), whole.narrow(0, 0, 1)], 0);
    assert_close("kept rows", got.into_data(), want.into_data());
}
