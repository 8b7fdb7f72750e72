//! One forward pass through a base model and adapters, from files to files: how anybody checks the numbers.

use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::Gradients;
use peft_core::files::checkpoint::Stored;
use peft_core::{PeftError, PeftModel, Result, forward, nn};
use peft_models::ModelInput;
use peft_models::auto::ClassifierOptions;
use peft_tasks::data::tokenizer::TOKENIZER_FILE;

use crate::load::adapters::{AdapterSource, head_of, with_adapters};
use crate::load::text::{load_tokenizer, tokenizer_folder};
use crate::run::fit::RunContext;
use crate::task::{ForwardInputs, TaskKind};

/// What to compute.
#[derive(Debug, Clone)]
pub struct ForwardRequest {
    /// Folder of the base model.
    pub model: PathBuf,
    /// Name of the task.
    pub task: String,
    /// Adapters; all are active, in this order.
    pub adapters: Vec<AdapterSource>,
    /// Tensors of the reference's forward, by keyword.
    pub inputs: PathBuf,
    /// Whether to give the gradients of the loss too.
    pub grads: bool,
    /// Whether to fold the adapters into the weights first.
    pub merge: bool,
}

/// Computes `logits` (or `last_hidden_state`), `loss` if there are labels, and `grad.<key>` if asked for.
///
/// Everything runs in evaluation mode.
pub(crate) fn pass<K: TaskKind>(kind: &K, request: &ForwardRequest, context: &RunContext<'_>) -> Result<Vec<Stored>> {
    if request.merge && request.grads {
        return Err(PeftError::Invalid("--grads and --merge exclude each other: nothing is left to train".into()));
    }
    if request.grads && request.adapters.is_empty() {
        return Err(PeftError::Invalid("--grads gives the gradients of adapters: name one with --adapter".into()));
    }
    let adapted = !request.adapters.is_empty() && !request.merge;
    let inputs = ForwardInputs::open(&request.inputs, &kind.inputs(), adapted, &context.place.device)?;
    // What evaluation takes from the tokenizer: a decoder's classifier looks at the last token that is no padding.
    let has_tokenizer = tokenizer_folder(context.base, &request.adapters).join(TOKENIZER_FILE).is_file();
    let pad_token_id = match kind.reads_text() && has_tokenizer {
        true => Some(load_tokenizer(context.base, &request.adapters)?.fill_id().into()),
        false => None,
    };
    let head = ClassifierOptions { pad_token_id, ..head_of(&request.adapters) };
    let base = kind.load(context.architectures, context.base, context.place, &head)?;
    let peft = with_adapters(base, &request.adapters, context.methods)?;
    let taken = forward::virtual_tokens(peft.model()) + forward::prefix_positions(peft.model());
    let inputs = inputs.within(peft.spec(), taken);
    if inputs.has_text() {
        check_tasks(&inputs.model_input()?, forward::tasks(peft.model()))?;
    }
    let model = match (request.merge, request.grads) {
        (true, _) => peft.merge()?,
        (false, true) => peft.model().clone(),
        (false, false) => peft.model().valid(),
    };
    let model = nn::set_training(model, false);
    let output = kind.forward(&model, &inputs)?;
    let loss = match (output.loss, peft_core::model::state::loss(&model)) {
        (Some(loss), Some(own)) => Some(loss + own),
        (loss, _) => loss,
    };
    let mut stored = vec![Stored { key: output.name.to_owned(), data: output.data }];
    let Some(loss) = loss else {
        if request.grads {
            return Err(PeftError::Invalid(format!("--grads needs {} among the inputs", kind.labels_input())));
        }
        return Ok(stored);
    };
    stored.push(Stored { key: "loss".to_owned(), data: loss.to_data() });
    if request.grads {
        stored.extend(gradient_rows(&peft, &loss.backward())?);
    }
    Ok(stored)
}

/// A prompt that tells tasks apart must know which task a row is of, and one that does not has no use for it.
fn check_tasks(input: &ModelInput, tasks: usize) -> Result<()> {
    let Some(given) = &input.task_ids else {
        return match tasks {
            1 => Ok(()),
            _ => Err(PeftError::Invalid(format!("the prompt is of {tasks} tasks: give `task_ids`, one for each row"))),
        };
    };
    let [batch, _] = input.dims();
    let ids: Vec<i64> = given.to_data().iter::<i64>().collect();
    if ids.len() != batch || ids.iter().any(|id| !(0..tasks as i64).contains(id)) {
        let reason = format!("`task_ids` are {ids:?}, expected {batch} of them, each below {tasks}");
        return Err(PeftError::Invalid(reason));
    }
    Ok(())
}

/// `grad.<key>`; with several adapters whose keys collide `grad.<adapter>/<key>`.
fn gradient_rows<M: Module>(peft: &PeftModel<M>, gradients: &Gradients) -> Result<Vec<Stored>> {
    let mut rows = Vec::new();
    for name in peft.adapters().keys() {
        for Stored { key, data } in peft.adapter_gradients(name, gradients)? {
            let key = if peft.adapters().len() == 1 { format!("grad.{key}") } else { format!("grad.{name}/{key}") };
            rows.push(Stored { key, data });
        }
    }
    Ok(rows)
}
