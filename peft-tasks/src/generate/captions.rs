//! Captions of pictures, and answers to questions about them.

use burn::tensor::{Device, Tensor};
use peft_core::{Adaptable, PeftError, Result, nn};
use peft_models::{ImageToText, LanguageModel, ModelInput};

use crate::data::batch::{Padding, collate};
use crate::data::sample::Sample;
use crate::generate::causal::generate_behind;
use crate::generate::config::GenerationPlan;
use crate::generate::seq2seq::generate_targets;

/// Writes a text about every picture. Returns the new tokens of each row, the end token included.
///
/// A prompt holds what is read behind the picture, with the tokens that a tokenizer puts around a text. An empty one is the
/// token that the model [begins with](ImageToText::first_token). `on_token` sees each token as it comes, row and token; beam
/// search knows them at the end only.
///
/// Source: `Blip2ForConditionalGeneration.generate` in `transformers/models/blip_2/modeling_blip_2.py` (5.23).
///
/// # Shapes
/// - pixel_values: `[rows, channels, height, width]`, normalised as the checkpoint wants them; as many rows as prompts
///
/// # Errors
/// If the model reads no such pictures or does not say where they stand, there are not as many prompts as pictures, a token has
/// no row in the embedding matrix, or the plan or the model's positions leave no room for a token.
pub fn generate_captions<M: ImageToText + Adaptable>(
    model: &M,
    pixel_values: Tensor<4>,
    prompts: &[Vec<u32>],
    plan: &GenerationPlan,
    device: &Device,
    on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let model = nn::eval(model);
    let [pictures, channels, height, width] = pixel_values.dims();
    let least = model.smallest_picture();
    if pictures != prompts.len() {
        return Err(PeftError::Invalid(format!(
            "{pictures} pictures and {} prompts do not go together",
            prompts.len()
        )));
    }
    if channels != model.num_channels() || height < least[0] || width < least[1] {
        return Err(PeftError::Invalid(format!(
            "the pictures are of {channels} channels, {height} × {width}; the model reads {} channels, at least {} × {}",
            model.num_channels(),
            least[0],
            least[1]
        )));
    }
    let prompts: Vec<Vec<u32>> = prompts.iter().map(|it| with_picture(&model, it)).collect::<Result<_>>()?;
    let features = model.image_features(pixel_values);
    match model.language_model() {
        LanguageModel::Decoder(writer) => {
            let embed = |ids| model.place(features.clone(), &ModelInput::ids(ids));
            generate_behind(&writer, &prompts, Some(&embed), plan, device, on_token)
        }
        LanguageModel::EncoderDecoder(writer) => {
            let samples: Vec<Sample> =
                prompts.into_iter().map(|input_ids| Sample { input_ids, ..Sample::default() }).collect();
            let text = collate(&samples, &Padding::right(0))?.input(device);
            generate_targets(&writer, &model.place(features, &text), plan, device, on_token)
        }
    }
}

/// What is read before a text is written: the places of the picture, and the prompt behind them. An empty prompt is the token
/// that the model [begins with](ImageToText::first_token), if it has one.
///
/// # Errors
/// If the model does not say which token stands for the picture.
pub fn with_picture<M: ImageToText>(model: &M, prompt: &[u32]) -> Result<Vec<u32>> {
    let token = model.image_token().and_then(|it| u32::try_from(it).ok()).ok_or_else(|| {
        PeftError::config("image_token_index", "is not in config.json: nobody knows where the picture stands")
    })?;
    let first = model.first_token().filter(|_| prompt.is_empty());
    Ok([vec![token; model.image_tokens()], first.into_iter().collect(), prompt.to_vec()].concat())
}
