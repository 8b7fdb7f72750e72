//! Sentence embeddings: how alike are two texts?
//!
//! ```text
//! cargo run --release -p peft-examples --example sentence_embeddings -- DIR
//! ```
//!
//! DIR is a folder of sentence-transformers/all-MiniLM-L6-v2 or a model like it.

#![allow(clippy::print_stdout)] // an example may speak

use peft::core::Result;
use peft::models::FeatureExtractor;
use peft::models::auto::load_feature_extractor;
use peft::tasks::data::tokenizer::Tokenizer;
use peft::tasks::data::{Padding, Preprocessor, collate};
use peft::tasks::tasks::features::{mean_pooling, normalise};

const TEXTS: [&str; 3] = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."];

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "sentence-transformers/all-MiniLM-L6-v2".into());
    let folder = peft::load::hub::resolve(&folder, peft::load::hub::What::Model)?;
    let device = peft::device::device("flex")?;
    let (model, _) = load_feature_extractor(&folder, &device)?;
    let model = peft::core::nn::set_training(model, false);

    let tokenizer = Tokenizer::load(&folder)?;
    let builder = Preprocessor::new(&tokenizer);
    let samples = TEXTS.iter().map(|text| builder.sequence(text, None)).collect::<Result<Vec<_>>>()?;
    let input = collate(&samples, &Padding::right(tokenizer.fill_id()))?.input(&device);

    let hidden = model.last_hidden_state(&input);
    let vectors = normalise(mean_pooling(hidden, input.attention_mask.clone()));
    let cosines = vectors.clone().matmul(vectors.transpose()).into_data().convert::<f32>();
    let cosines = cosines.as_slice::<f32>().unwrap_or(&[]);
    for (row, text) in TEXTS.iter().enumerate().skip(1) {
        println!("{:.4}  {:?} and {text:?}", cosines[row], TEXTS[0]);
    }
    Ok(())
}
