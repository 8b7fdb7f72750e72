//! `peft generate --image`: what is in a picture, or an answer to a question about it.

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use peft_core::files::checkpoint::Placement;
use peft_core::{Adaptable, PeftError, Result};
use peft_models::ImageToText;
use peft_tasks::data::image::{ImageProcessor, Picture};
use peft_tasks::generate::{GenerationConfig, generate_captions};

use super::generation::{Args, MAX_NEW_TOKENS, blame_the_weights, end_of, print};
use super::terminal::say;
use crate::load::adapters::{AdapterSource, with_adapters};
use crate::load::text::{fitted, load_tokenizer, rows_with};
use crate::run::registry::Registry;

pub(super) fn run(
    args: &Args,
    image: &Path,
    (folder, adapters, place): (&PathBuf, &[AdapterSource], &Placement),
    registry: &Registry,
) -> Result<()> {
    let task = registry.tasks.chosen(args.task.as_deref(), adapters, folder)?;
    if task.name() != "image-to-text" {
        let reason = format!("is for models that write about a picture; this one is for {}", task.name());
        return Err(PeftError::config("--image", reason));
    }
    // Before the weights: a file that cannot be read is the likeliest mistake.
    let processor = ImageProcessor::load(folder)?;
    let ([height, width], pixels) = processor.pixels(&Picture::read(image)?).map_err(|error| error.in_file(image))?;
    let tokenizer = load_tokenizer(folder, adapters)?;
    let mut config = GenerationConfig::load_text_config(folder)?;
    args.fill(&mut config);
    config.max_new_tokens = args.max_new_tokens.or(Some(MAX_NEW_TOKENS));
    let mut plan = config.plan_for(folder)?;
    end_of(&mut plan, &tokenizer);

    let (base, _) = registry.architectures.load_image_to_text(folder, place)?;
    let own = rows_with(&base.spec(), &[])?;
    let peft = with_adapters(base, adapters, &registry.methods)?;
    let tokenizer = fitted(tokenizer, own, rows_with(peft.spec(), &[])?)?;
    let model = peft.model();
    let prompt = match &args.prompt {
        // The model knows how a text begins that has nothing but a picture.
        None if model.first_token().is_some() => Vec::new(),
        prompt => tokenizer.ids(prompt.as_deref().unwrap_or_default(), true)?,
    };
    let pixels = Tensor::<4>::from_data(TensorData::new(pixels, [1, 3, height, width]), &place.device);
    let mut stream = tokenizer.stream(true);
    generate_captions(model, pixels, &[prompt], &plan, &place.device, |_, token| print(&mut stream, token))
        .map_err(|error| blame_the_weights(error, model, folder, adapters))?;
    say!("")
}
