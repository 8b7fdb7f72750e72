//! A base model with the adapters of some folders on it, whatever its task.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use peft_core::files::checkpoint::Placement;
use peft_core::{Adaptable, PeftError, PeftModel, Result, read_config};
use peft_models::{CausalLm, Seq2SeqLm, auto};
use serde_json::Value;

use crate::forward::{classifier_options, names_head};
use crate::methods;

/// What is to be done with a model whose type depends on the task.
pub trait OnModel {
    /// What comes of it.
    type Output;

    /// Does it.
    ///
    /// # Errors
    /// Whatever can go wrong.
    fn run<M: Module + Adaptable>(self, peft: PeftModel<M>) -> Result<Self::Output>;
}

/// Loads the base in the folder `base` as the task of the first adapter wants it, puts all adapters on it by their
/// names, all active, and hands it over.
///
/// A folder without `task_type` goes on a causal language model if it fits one, and else on the bare model.
///
/// # Errors
/// If something cannot be read, or an adapter does not fit.
pub fn with_adapters<J: OnModel>(
    base: &Path,
    adapters: &[(String, PathBuf)],
    place: impl Into<Placement>,
    job: J,
) -> Result<J::Output> {
    let place = &place.into();
    let device = &place.device;
    let configs = adapters.iter().map(|(_, folder)| read_config(folder)).collect::<Result<Vec<_>>>()?;
    let text = |field: &str| configs.iter().find_map(|it| it.get(field)?.as_str().map(str::to_owned));
    let folders: Vec<PathBuf> = adapters.iter().map(|(_, it)| it.clone()).collect();
    let options = classifier_options(&folders);
    let untied = configs.iter().any(names_head);
    let task = configs.first().and_then(|it| it.get("task_type")).and_then(Value::as_str);
    let causal = || {
        let (model, _) = auto::load_causal_lm(base, place)?;
        on(if untied { model.untied() } else { model }, adapters, device)
    };
    macro_rules! go {
        ($peft:expr) => {{
            let mut peft = $peft;
            peft.set_base_name(text("base_model_name_or_path").unwrap_or_else(|| base.display().to_string()));
            if let Some(task) = task {
                peft.set_task_type(task);
            }
            job.run(peft)
        }};
    }
    match task {
        Some("CAUSAL_LM") => go!(causal()?),
        Some("SEQ_CLS") => go!(on(auto::load_sequence_classifier(base, place, &options)?.0, adapters, device)?),
        Some("TOKEN_CLS") => go!(on(auto::load_token_classifier(base, place, &options)?.0, adapters, device)?),
        Some("QUESTION_ANS") => go!(on(auto::load_question_answerer(base, place, 0)?.0, adapters, device)?),
        Some("FEATURE_EXTRACTION") => go!(on(auto::load_feature_extractor(base, place)?.0, adapters, device)?),
        Some("SEQ_2_SEQ_LM") => {
            let (model, _) = auto::load_seq2seq_lm(base, place)?;
            go!(on(if untied { model.untied() } else { model }, adapters, device)?)
        }
        Some(other) => {
            Err(PeftError::unsupported(format!("task_type {other}"), "its models are not there in this version"))
        }
        None => match causal() {
            Ok(peft) => go!(peft),
            Err(error) => match auto::load_feature_extractor(base, place).and_then(|it| on(it.0, adapters, device)) {
                Ok(peft) => go!(peft),
                Err(_) => Err(error),
            },
        },
    }
}

fn on<M: Module + Adaptable>(model: M, adapters: &[(String, PathBuf)], _device: &Device) -> Result<PeftModel<M>> {
    let mut peft = PeftModel::new(model);
    for (name, folder) in adapters {
        peft.load_adapter(folder, name, &methods())?;
    }
    Ok(peft)
}
