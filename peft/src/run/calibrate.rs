//! Adapters that start from data: EVA and CorDA, with a pass over the training data; LoftQ on a base that is quantised.

use std::cell::RefCell;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use peft_core::files::checkpoint::{Checkpoint, Placement};
use peft_core::{PeftConfig, PeftError, PeftModel, Result};
use peft_lora::LoraConfig;
use peft_lora::lora::config::PEFT_TYPE;
use peft_lora::lora::data_init::{corda, eva, loftq};
use peft_models::common::config::RawConfig;
use peft_tasks::tasks::task::Task;
use peft_tasks::train::batches::{BatchOptions, EpochPlan};
use serde_json::{Map, Value};

use crate::run::config::RunConfig;

/// Rows that CorDA looks at, as in PEFT's example. EVA goes on until its directions stand still.
const CORDA_ROWS: usize = 256;

/// How LoRA is to start from data, if it is.
pub(crate) fn start_of(method: &Map<String, Value>) -> Option<&str> {
    let lora = method.get("peft_type").and_then(Value::as_str) == Some(PEFT_TYPE);
    let init = method.get("init_lora_weights").and_then(Value::as_str).filter(|_| lora)?;
    matches!(init, "eva" | "corda").then_some(init)
}

/// Whether LoRA is to start from what quantising has taken away from a base.
///
/// # Errors
/// If `config.json` cannot be understood.
pub(crate) fn makes_up_for_codes(method: &Map<String, Value>, base: &Path, place: &Placement) -> Result<bool> {
    let is = |field: &str, value: &str| method.get(field).and_then(Value::as_str) == Some(value);
    if !is("peft_type", PEFT_TYPE) || !is("init_lora_weights", "loftq") {
        return Ok(false);
    }
    Ok(place.quantize.is_some() || RawConfig::read(base)?.quantization()?.is_some())
}

/// The configuration of such a `method` for a base that is quantised: with factors from the weights of its folder.
///
/// # Errors
/// If the folder does not hold them in full.
pub(crate) fn made_up<M: Module>(
    method: Map<String, Value>,
    peft: &PeftModel<M>,
    base: &Path,
) -> Result<Box<dyn PeftConfig>> {
    let config = loftq::start(peft, LoraConfig::parse(method)?, &Checkpoint::open(base)?)?;
    Ok(Box::new(config))
}

/// The configuration of `method`, whose `init_lora_weights` is `start`, with factors from the data of `task`.
///
/// # Errors
/// If the method does not go with the model, or the data does not do.
pub(crate) fn calibrated<M: Module, T: Task<M>>(
    start: &str,
    method: Map<String, Value>,
    peft: &PeftModel<M>,
    task: &T,
    run: &RunConfig,
    device: &Device,
) -> Result<Box<dyn PeftConfig>> {
    let config = LoraConfig::parse(method)?;
    let failure: RefCell<Option<PeftError>> = RefCell::new(None);
    let forward = |model: &M, items: &Vec<usize>| {
        // What it computes does not matter, and layers have seen their input.
        if let Err(error) = task.loss_sum(model, items, device) {
            failure.borrow_mut().get_or_insert(error);
        }
    };
    let mut options = BatchOptions { batch_size: run.training.batch_size, ..BatchOptions::default() };
    options.seed = run.training.seed;
    // In the order of training, so that a file that is sorted by subject is seen whole.
    let order: Vec<usize> = EpochPlan::new(&task.lengths(), &options, 0)?.batches.concat();
    let rows = |most: usize| order.iter().copied().take(run.data.calibration_rows.unwrap_or(most));
    let config = match start {
        "corda" => {
            // As the reference: row by row, without padding.
            let batches = rows(CORDA_ROWS).map(|it| vec![it]);
            corda::start(peft, config, batches, forward)
        }
        _ => {
            let labelled = config.eva_config.clone().unwrap_or_default().use_label_mask;
            let rows: Vec<usize> = rows(usize::MAX).collect();
            let alone = task.places(peft.model(), &rows[..rows.len().min(1)], labelled)?.is_none();
            let size = if alone { 1 } else { options.batch_size };
            let batches: Vec<Vec<usize>> = rows.chunks(size).map(<[usize]>::to_vec).collect();
            let places = |items: &&Vec<usize>| task.places(peft.model(), items, labelled).ok().flatten();
            eva::start(peft, config, batches.iter(), |model, items| forward(model, items), places)
        }
    };
    match failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(Box::new(config?)),
    }
}
