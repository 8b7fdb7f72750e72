//! One forward pass through a base model and adapters, from files to files: how anybody checks the numbers.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use peft_core::files::checkpoint::{Dtype, Placement, Stored, TensorFile};
use peft_core::{Adaptable, AdapterFolder, DEFAULT_ADAPTER, PeftError, PeftModel, Result, forward, nn};
use peft_models::auto::{self, ClassifierOptions};
use peft_models::{
    CausalLm, FeatureExtractor, MaskedLm, ModelInput, QuestionAnswerer, Seq2SeqLm, SequenceClassifier, TokenClassifier,
    Tokens,
};
use peft_tasks::tasks::loss::{self, Labels, ProblemType};

use crate::methods;

/// What to compute.
#[derive(Debug, Clone)]
pub struct ForwardRequest {
    /// Folder of the base model.
    pub model: PathBuf,
    /// One of `causal-lm`, `seq2seq-lm`, `masked-lm`, `seq-cls`, `token-cls`, `question-answering`,
    /// `feature-extraction`.
    pub task: String,
    /// Adapter folders; all are active, in this order.
    pub adapters: Vec<PathBuf>,
    /// How strongly each of them acts; 1, as trained, where none is given.
    pub strengths: Vec<f64>,
    /// Tensors of the reference's forward, by keyword.
    pub inputs: PathBuf,
    /// Whether to give the gradients of the loss too.
    pub grads: bool,
    /// Whether to fold the adapters into the weights first.
    pub merge: bool,
}

/// Tasks of the contract whose models do not exist yet.
const LATER: [&str; 5] = ["image-cls", "semantic-seg", "image-to-text", "speech-to-text", "unet"];

/// Computes `logits` (or `last_hidden_state`), `loss` if there are labels, and `grad.<key>` if asked for.
///
/// Everything runs in evaluation mode.
pub fn forward(request: &ForwardRequest, place: impl Into<Placement>) -> Result<Vec<Stored>> {
    let place = &place.into();
    let device = &place.device;
    let inputs = Inputs { file: TensorFile::open(&request.inputs)?, device };
    inputs.refuse_unknown(&request.task)?;
    match request.task.as_str() {
        "causal-lm" => {
            let (mut model, _) = auto::load_causal_lm(&request.model, place)?;
            for folder in &request.adapters {
                if names_head(&peft_core::read_config(folder)?) {
                    model = model.untied();
                }
            }
            run(request, model, device, &inputs, |model, input| {
                let logits = model.logits(input, None);
                let loss = inputs.integers("labels")?.map(|labels| loss::causal_lm(logits.clone(), labels));
                Ok(("logits", logits.into_data_and_loss(loss)))
            })
        }
        "seq-cls" => {
            let options = classifier_options(&request.adapters);
            let (model, _) = auto::load_sequence_classifier(&request.model, place, &options)?;
            let batch = inputs.file.shape("input_ids").map_or(1, |shape| shape[0]);
            // The reference refuses this too: without a padding token nobody knows where a row ends.
            if batch > 1 && !model.is_encoder() && model.labels().pad_token_id.is_none() {
                let reason = "is not in config.json, which a decoder needs to classify more than one row";
                return Err(PeftError::config("pad_token_id", reason));
            }
            run(request, model, device, &inputs, |model, input| {
                let logits = model.logits(input);
                let loss = match inputs.class_labels(model.num_labels())? {
                    Some(labels) => {
                        let problem = ProblemType::resolve(model.problem_type(), model.num_labels(), &labels)?;
                        Some(loss::classification(logits.clone(), labels, problem)?)
                    }
                    None => None,
                };
                Ok(("logits", logits.into_data_and_loss(loss)))
            })
        }
        "token-cls" => {
            let options = classifier_options(&request.adapters);
            let (model, _) = auto::load_token_classifier(&request.model, place, &options)?;
            run(request, model, device, &inputs, |model, input| {
                let logits = model.logits(input);
                let loss = inputs.integers("labels")?.map(|labels| loss::every_position(logits.clone(), labels));
                Ok(("logits", logits.into_data_and_loss(loss)))
            })
        }
        "masked-lm" => {
            let (model, _) = auto::load_masked_lm(&request.model, place)?;
            run(request, model, device, &inputs, |model, input| {
                let logits = model.logits(input);
                let loss = inputs.integers("labels")?.map(|labels| loss::every_position(logits.clone(), labels));
                Ok(("logits", logits.into_data_and_loss(loss)))
            })
        }
        "question-answering" => {
            let (model, _) = auto::load_question_answerer(&request.model, place, 0)?;
            run(request, model, device, &inputs, |model, input| {
                // The reference's wrapper of this task loses both on the way; a merged model has no wrapper.
                let adapted = !request.adapters.is_empty() && !request.merge;
                let input = &ModelInput {
                    token_type_ids: input.token_type_ids.clone().filter(|_| !adapted),
                    position_ids: input.position_ids.clone().filter(|_| !adapted),
                    ..input.clone()
                };
                let logits = model.logits(input);
                let places = inputs.places("start_positions")?.zip(inputs.places("end_positions")?);
                let loss = places.map(|(starts, ends)| loss::question_answering(logits.clone(), starts, ends));
                Ok(("logits", logits.into_data_and_loss(loss)))
            })
        }
        "seq2seq-lm" => {
            let (mut model, _) = auto::load_seq2seq_lm(&request.model, place)?;
            for folder in &request.adapters {
                if names_head(&peft_core::read_config(folder)?) {
                    model = model.untied();
                }
            }
            run(request, model, device, &inputs, |model, input| {
                let labels = inputs.integers("labels")?;
                let logits = model.logits(input, &inputs.target(model, input, labels.as_ref())?);
                let loss = labels.map(|labels| loss::every_position(logits.clone(), labels));
                Ok(("logits", logits.into_data_and_loss(loss)))
            })
        }
        "feature-extraction" => {
            let (model, _) = auto::load_feature_extractor(&request.model, place)?;
            run(request, model, device, &inputs, |model, input| {
                Ok(("last_hidden_state", model.last_hidden_state(input).into_data_and_loss(None)))
            })
        }
        later if LATER.contains(&later) => {
            Err(PeftError::unsupported(format!("task {later}"), "its models are not written yet"))
        }
        unknown => {
            let reason = format!(
                "`{unknown}` is unknown; take causal-lm, seq2seq-lm, masked-lm, seq-cls, token-cls, \
                 question-answering or feature-extraction"
            );
            Err(PeftError::config("task", reason))
        }
    }
}

/// Whether a configuration adapts or saves the language-model head by name, as one of its own.
pub fn names_head(config: &serde_json::Map<String, serde_json::Value>) -> bool {
    if config.get("ensure_weight_tying") == Some(&true.into()) {
        return false;
    }
    ["target_modules", "modules_to_save"].iter().any(|field| {
        let names = config.get(*field).and_then(serde_json::Value::as_array);
        names.into_iter().flatten().any(|name| name.as_str().is_some_and(|it| peft_core::is_suffix(it, "lm_head")))
    })
}

type Output = (TensorData, Option<Tensor<1>>);

trait IntoOutput {
    fn into_data_and_loss(self, loss: Option<Tensor<1>>) -> Output;
}

impl<const D: usize> IntoOutput for Tensor<D> {
    fn into_data_and_loss(self, loss: Option<Tensor<1>>) -> Output {
        (self.into_data(), loss)
    }
}

fn run<M: Module + Adaptable>(
    request: &ForwardRequest,
    model: M,
    _device: &Device,
    inputs: &Inputs<'_>,
    compute: impl Fn(&M, &ModelInput) -> Result<(&'static str, Output)>,
) -> Result<Vec<Stored>> {
    let mut peft = PeftModel::new(model);
    let names: Vec<String> = (0..request.adapters.len())
        .map(|at| if at == 0 { DEFAULT_ADAPTER.to_owned() } else { format!("adapter{at}") })
        .collect();
    for (folder, name) in request.adapters.iter().zip(&names) {
        if peft.adapters().is_empty() {
            peft.adopt_tables(&AdapterFolder::open(folder)?)?;
        }
        peft.load_adapter(folder, name, &methods())?;
    }
    for (name, strength) in names.iter().zip(&request.strengths) {
        peft.set_strength(name, *strength)?;
    }
    let input = inputs.model_input()?;
    check_tasks(&input, forward::tasks(peft.model()))?;
    let (model, trained) = if request.merge {
        if request.grads {
            return Err(PeftError::Invalid("--grads and --merge exclude each other: nothing is left to train".into()));
        }
        (peft.merge()?, None)
    } else if request.grads {
        (nn::set_training(peft.model().clone(), false), Some(&peft))
    } else {
        (peft.model().valid(), None)
    };
    let model = nn::set_training(model, false);
    let (name, (data, loss)) = compute(&model, &input)?;
    let loss = match (loss, peft_core::model::state::loss(&model)) {
        (Some(loss), Some(own)) => Some(loss + own),
        (loss, _) => loss,
    };
    let mut stored = vec![Stored { key: name.to_owned(), data }];
    if request.grads && loss.is_none() {
        let labels =
            if request.task == "question-answering" { "start_positions` and `end_positions" } else { "labels" };
        return Err(PeftError::Invalid(format!("--grads needs `{labels}` among the inputs")));
    }
    if let Some(loss) = loss {
        stored.push(Stored { key: "loss".to_owned(), data: loss.to_data() });
        if let Some(peft) = trained {
            let gradients = loss.backward();
            stored.extend(gradient_rows(peft, &names, &gradients)?);
        }
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
fn gradient_rows<M: Module>(peft: &PeftModel<M>, names: &[String], gradients: &Gradients) -> Result<Vec<Stored>> {
    let mut rows = Vec::new();
    for name in names {
        for Stored { key, data } in peft.adapter_gradients(name, gradients)? {
            let key = if names.len() == 1 { format!("grad.{key}") } else { format!("grad.{name}/{key}") };
            rows.push(Stored { key, data });
        }
    }
    Ok(rows)
}

/// The head that adapters bring with them: the base may be without one.
pub fn classifier_options(adapters: &[PathBuf]) -> ClassifierOptions {
    let head = |folder: &Path| {
        let folder = peft_core::AdapterFolder::open(folder).ok()?;
        ["score.weight", "classifier.weight", "classifier.out_proj.weight"]
            .iter()
            .flat_map(|it| [peft_core::model::state::KEY_PREFIX, "base_model."].map(|prefix| format!("{prefix}{it}")))
            .find_map(|key| folder.tensors.shape(&key).map(|shape| shape[0]))
    };
    ClassifierOptions { num_labels: adapters.iter().find_map(|it| head(it)), ..ClassifierOptions::default() }
}

struct Inputs<'a> {
    file: TensorFile,
    device: &'a Device,
}

/// Keywords of the reference's forward that are understood.
const KEYWORDS: [&str; 7] =
    ["input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "task_ids", "labels"];

/// Those that some tasks know besides.
fn keywords_of(task: &str) -> &'static [&'static str] {
    match task {
        "question-answering" => &["start_positions", "end_positions"],
        "seq2seq-lm" => &["decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask"],
        _ => &[],
    }
}

impl Inputs<'_> {
    fn refuse_unknown(&self, task: &str) -> Result<()> {
        let known = [KEYWORDS.as_slice(), keywords_of(task)].concat();
        match self.file.keys().into_iter().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(PeftError::bad_file(
                self.file.path(),
                format!("it holds `{key}`, which this task does not take; known are {}", known.join(", ")),
            )),
            None => Ok(()),
        }
    }

    fn integers(&self, key: &str) -> Result<Option<Tensor<2, Int>>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        if shape.len() != 2 {
            let reason = format!("`{key}` has the shape {shape:?}, wanted is [batch, seq]");
            return Err(PeftError::bad_file(self.file.path(), reason));
        }
        Ok(Some(Tensor::from_data(self.file.integers(key)?, self.device)))
    }

    /// One place a row, `[batch]`.
    fn places(&self, key: &str) -> Result<Option<Tensor<1, Int>>> {
        let Some(shape) = self.file.shape(key) else { return Ok(None) };
        let batch: usize = shape.iter().product();
        if batch != shape[0] {
            let reason = format!("`{key}` has the shape {shape:?}, wanted is [batch]");
            return Err(PeftError::bad_file(self.file.path(), reason));
        }
        Ok(Some(Tensor::from_data(flat(self.file.integers(key)?), self.device)))
    }

    /// What a decoder reads: as given, or the labels one position late.
    fn target(
        &self,
        model: &impl Seq2SeqLm,
        source: &ModelInput,
        labels: Option<&Tensor<2, Int>>,
    ) -> Result<ModelInput> {
        let tokens = match (self.integers("decoder_input_ids")?, self.file.shape("decoder_inputs_embeds"), labels) {
            (Some(ids), _, _) => Tokens::Ids(ids),
            (None, Some([_, _, _]), _) => {
                Tokens::Embeddings(Tensor::from_data(self.file.floats("decoder_inputs_embeds")?, self.device))
            }
            (None, _, Some(labels)) => Tokens::Ids(model.shift_right(labels.clone())?),
            (None, _, None) => {
                let reason = "it holds neither `labels` nor `decoder_input_ids`, so there is nothing to write";
                return Err(PeftError::bad_file(self.file.path(), reason));
            }
        };
        let attention_mask = self.integers("decoder_attention_mask")?;
        Ok(ModelInput { attention_mask, task_ids: source.task_ids.clone(), ..ModelInput::new(tokens) })
    }

    fn class_labels(&self, num_labels: usize) -> Result<Option<Labels>> {
        let Some(shape) = self.file.shape("labels") else { return Ok(None) };
        let batch = shape[0];
        let is_integer =
            self.file.dtype("labels").is_some_and(|it| matches!(it, Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL));
        Ok(Some(if is_integer && num_labels > 1 && shape.len() == 1 {
            Labels::Classes(Tensor::from_data(self.file.integers("labels")?, self.device))
        } else {
            let values = Tensor::<1>::from_data(flat(self.file.floats("labels")?), self.device);
            let width = values.dims()[0] / batch.max(1);
            Labels::Values(values.reshape([batch, width]))
        }))
    }

    fn tasks(&self) -> Result<Option<Tensor<1, Int>>> {
        let tasks = self.file.shape("task_ids").map(|_| self.file.integers("task_ids")).transpose()?;
        Ok(tasks.map(|it| Tensor::from_data(it, self.device)))
    }

    fn model_input(&self) -> Result<ModelInput> {
        let tokens = match self.integers("input_ids")? {
            Some(ids) => Tokens::Ids(ids),
            None => match self.file.shape("inputs_embeds") {
                Some([_, _, _]) => {
                    Tokens::Embeddings(Tensor::from_data(self.file.floats("inputs_embeds")?, self.device))
                }
                _ => return Err(PeftError::bad_file(self.file.path(), "it holds no `input_ids`")),
            },
        };
        let mut input = ModelInput::new(tokens);
        input.attention_mask = self.integers("attention_mask")?;
        input.position_ids = self.integers("position_ids")?;
        input.token_type_ids = self.integers("token_type_ids")?;
        input.task_ids = self.tasks()?;
        Ok(input)
    }
}

fn flat(data: TensorData) -> TensorData {
    let (bytes, shape, dtype) = data.into_parts();
    TensorData::from_bytes(bytes, [shape.num_elements()], dtype)
}
