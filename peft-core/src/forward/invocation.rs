//! Adapters that act behind a sequence of tokens only: activated LoRA, arXiv 2504.12397.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::adapter::{AdapterSet, AnyAdapter, mixed_batch, slots};
use crate::context::{self, Text};

/// Runs layers on tokens that adapters may look at.
///
/// `ids` are the tokens up to the last position of this forward, or, where a text is written token by token behind a
/// prompt, those of the prompt. `segments` tells apart documents that share a row. Without ids, no adapter that waits for
/// a sequence acts.
///
/// # Shapes
/// - ids, segments: `[batch, seq]`
pub fn reading<R>(ids: Option<Tensor<2, Int>>, segments: Option<Tensor<2, Int>>, run: impl FnOnce() -> R) -> R {
    let text = ids.map(|ids| {
        let segments = segments.filter(|it| it.dims() == ids.dims());
        Text::new(ids, segments)
    });
    let _text = context::enter(|it| it.text = text);
    run()
}

/// 1 for every row of a layer's input that stands at or behind the last occurrence of a sequence in its text, else 0.
///
/// `rows` counts those of the input, `batch · seq`.
///
/// # Shapes
/// - output: `[rows, 1]`
pub fn behind(sequence: &[i64], rows: usize, device: &Device) -> Tensor<2> {
    let texts = context::read(|it| it.text.as_ref().map(|text| text.behind(sequence))).unwrap_or_default();
    let mut mask: Vec<f32> = Vec::with_capacity(rows);
    let seq = rows.checked_div(texts.len()).unwrap_or(0);
    for text in &texts {
        // A layer may see fewer positions than the text has, the last ones, or virtual tokens before them.
        mask.resize(mask.len() + seq.saturating_sub(text.len()), 0.0);
        let seen = &text[text.len().saturating_sub(seq)..];
        mask.extend(seen.iter().map(|it| f32::from(u8::from(*it))));
    }
    mask.resize(rows, 0.0);
    Tensor::from_data(TensorData::new(mask, [rows, 1]), device)
}

/// The sequences that active adapters wait for, each once.
pub fn invocations<M: Module>(model: &M) -> Vec<Vec<i64>> {
    let mut found: Vec<Vec<i64>> = Vec::new();
    let of = |set: &AdapterSet| -> Vec<Vec<i64>> {
        mixed_batch::any(set).into_iter().filter_map(AnyAdapter::invocation).map(<[i64]>::to_vec).collect()
    };
    for sequence in slots::collect(model).iter().flat_map(of) {
        if !found.contains(&sequence) {
            found.push(sequence);
        }
    }
    found
}
