//! Multitask prompt tuning: tasks share virtual tokens, each scales them by a matrix of low rank (arXiv 2303.02861).

use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::config::fields;
use peft_core::files::checkpoint::TensorFile;
use peft_core::forward::EmbeddingBelow;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, MethodInfo, ModelSpec, ParamSpec, PeftConfig, PeftError,
    Plan, PlanRow, Prompt, PromptAdapter, Result, Tuner, refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Kind, PromptLearning, Sizes};
use crate::start::PromptInit;
use crate::tokens::from_text;
use crate::{MULTITASK_PROMPT_TUNING, NO_WEIGHT};

/// `E ∘ (C[task] R[task])`: shared tokens, times what a task makes of them.
#[derive(Module, Debug)]
pub struct MultitaskTokens {
    /// `[virtual · submodules, d_model]`: those of the decoder follow those of the encoder.
    pub prompt_embeddings: Param<Tensor<2>>,
    /// `[tasks, virtual · submodules, rank]`
    pub prefix_task_cols: Param<Tensor<3>>,
    /// `[tasks, rank, d_model]`
    pub prefix_task_rows: Param<Tensor<3>>,
    virtual_tokens: usize,
    submodules: usize,
    drops_token_types: bool,
}

impl Adapter for MultitaskTokens {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        weight
    }

    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        below.forward(ids)
    }

    fn unmergeable(&self) -> Option<&'static str> {
        Some(NO_WEIGHT)
    }

    fn key_prefix(&self) -> &'static str {
        ""
    }

    fn file_key(&self, _param: &ParamSpec, field: &str) -> String {
        field.to_owned()
    }

    fn as_prompt(&self) -> Option<&dyn PromptAdapter> {
        Some(self)
    }
}

impl PromptAdapter for MultitaskTokens {
    fn prompt(&self, tasks: Option<&Tensor<1, Int>>) -> Prompt {
        let (cols, rows) = (self.prefix_task_cols.val(), self.prefix_task_rows.val());
        let scales = match tasks {
            Some(tasks) => cols.select(0, tasks.clone()).matmul(rows.select(0, tasks.clone())),
            None => {
                // `forward::tasks` lets callers find out before they come here.
                assert_eq!(cols.dims()[0], 1, "a prompt of several tasks needs `task_ids`");
                cols.matmul(rows)
            }
        };
        let tokens = self.prompt_embeddings.val().unsqueeze::<3>() * scales;
        let part = |at: usize| tokens.clone().narrow(1, at * self.virtual_tokens, self.virtual_tokens);
        Prompt {
            tokens: Some(part(0)),
            decoder_tokens: (self.submodules == 2).then(|| part(1)),
            drops_token_types: self.drops_token_types,
            ..Prompt::default()
        }
    }

    fn virtual_tokens(&self) -> usize {
        self.virtual_tokens
    }

    fn tasks(&self) -> usize {
        self.prefix_task_cols.dims()[0]
    }
}

#[derive(Debug)]
struct BuildMultitask {
    sizes: Sizes,
    tasks: usize,
    ranks: usize,
    start: PromptInit,
    /// Columns and rows of the tasks, if they start from a trained prompt.
    given: Option<(TensorData, TensorData)>,
}

impl AdapterBuilder for BuildMultitask {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let Sizes { virtual_tokens, submodules, width, drops_token_types, .. } = self.sizes;
        let rows = self.sizes.rows();
        let prompt_embeddings = self.start.values(rows, width, base, init);
        let device = init.device().clone().without_autodiff();
        let (prefix_task_cols, prefix_task_rows) = match &self.given {
            Some((cols, rows)) => (
                init.given(Tensor::<3>::from_data(cols.clone(), &device)),
                init.given(Tensor::<3>::from_data(rows.clone(), &device)),
            ),
            None => {
                (init.normal([self.tasks, rows, self.ranks], 0.02), init.normal([self.tasks, self.ranks, width], 0.02))
            }
        };
        AnyAdapter::new(MultitaskTokens {
            prompt_embeddings,
            prefix_task_cols,
            prefix_task_rows,
            virtual_tokens,
            submodules,
            drops_token_types,
        })
    }
}

/// `prompt_tuning_init` of multitask prompt tuning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MultitaskInit {
    /// The words of a text.
    Text,
    /// Normal numbers.
    #[default]
    Random,
    /// A trained prompt, its tasks averaged into one.
    AverageSourceTasks,
    /// A trained prompt, one of its tasks.
    ExactSourceTask,
    /// The shared tokens of a trained prompt.
    OnlySourceShared,
}

/// Multitask prompt tuning's configuration. Defaults are the reference's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MultitaskPromptTuningConfig {
    /// The fields of all prompt methods.
    #[serde(flatten)]
    pub prompt: PromptLearning,
    /// Where the tokens start.
    #[serde(default)]
    pub prompt_tuning_init: MultitaskInit,
    /// The text they start from.
    #[serde(default)]
    pub prompt_tuning_init_text: Option<String>,
    /// Whose tokenizer splits it.
    #[serde(default)]
    pub tokenizer_name_or_path: Option<String>,
    /// Arguments of that tokenizer in Python.
    #[serde(default)]
    pub tokenizer_kwargs: Option<Map<String, Value>>,
    /// The `adapter_model.safetensors` of a trained prompt to start from.
    #[serde(default)]
    pub prompt_tuning_init_state_dict_path: Option<String>,
    /// Which of its tasks to start from.
    #[serde(default)]
    pub prompt_tuning_init_task: Option<usize>,
    /// Rank of what sets a task apart.
    #[serde(default = "one")]
    pub num_ranks: Option<usize>,
    /// Number of tasks.
    #[serde(default = "one")]
    pub num_tasks: Option<usize>,
    /// The ids of the text; this crate knows no tokenizer. Not part of the file.
    #[serde(skip)]
    pub init_ids: Option<Vec<i64>>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[allow(clippy::unnecessary_wraps)]
fn one() -> Option<usize> {
    Some(1)
}

impl MultitaskPromptTuningConfig {
    /// Some virtual tokens for several tasks of one type.
    pub fn new(num_virtual_tokens: usize, num_tasks: usize, task_type: &str) -> Self {
        Self {
            prompt: PromptLearning::new(num_virtual_tokens, task_type),
            prompt_tuning_init: MultitaskInit::default(),
            prompt_tuning_init_text: None,
            tokenizer_name_or_path: None,
            tokenizer_kwargs: None,
            prompt_tuning_init_state_dict_path: None,
            prompt_tuning_init_task: Some(0),
            num_ranks: one(),
            num_tasks: Some(num_tasks),
            init_ids: None,
            other: Map::new(),
        }
    }

    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        let config: Self = fields::parse_config(json)?;
        refuse_unknown(&config.other, &[])?;
        Ok(config)
    }

    /// What a trained prompt gives to start from: shared tokens, and columns and rows unless only those are wanted.
    fn source(
        &self,
        sizes: &Sizes,
        tasks: usize,
        ranks: usize,
    ) -> Result<(PromptInit, Option<(TensorData, TensorData)>)> {
        const FIELD: &str = "prompt_tuning_init_state_dict_path";
        let Some(path) = &self.prompt_tuning_init_state_dict_path else {
            return Err(PeftError::config(FIELD, "is missing: it names the trained prompt to start from"));
        };
        if Path::new(path).extension().is_none_or(|it| it != "safetensors") {
            return Err(PeftError::config(FIELD, format!("is {path}; only `.safetensors` files are read")));
        }
        let file = TensorFile::open(path)?;
        let read = |key: &str, wanted: &[usize]| {
            let shape = file.shape(key).ok_or_else(|| PeftError::bad_file(path, format!("it has no `{key}`")))?;
            let fits = shape.len() == wanted.len() && shape.iter().zip(wanted).all(|(a, b)| *b == 0 || a == b);
            if !fits {
                return Err(PeftError::bad_file(path, format!("`{key}` is {shape:?}, wanted is {wanted:?} (0 = any)")));
            }
            file.floats(key)
        };
        let start = PromptInit::Given(read("prompt_embeddings", &[sizes.rows(), sizes.width])?);
        if self.prompt_tuning_init == MultitaskInit::OnlySourceShared {
            return Ok((start, None));
        }
        if tasks != 1 {
            let reason = format!("is {tasks}, but this start gives the columns and rows of one task");
            return Err(PeftError::config("num_tasks", reason));
        }
        let cols = read("prefix_task_cols", &[0, sizes.rows(), ranks])?;
        let rows = read("prefix_task_rows", &[0, ranks, sizes.width])?;
        Ok((start, Some((self.one_task(cols)?, self.one_task(rows)?))))
    }

    /// One task of many, `[tasks, a, b]` to `[1, a, b]`: their mean or the one that is wanted.
    fn one_task(&self, data: TensorData) -> Result<TensorData> {
        let shape = data.shape().as_slice().to_vec();
        let size = shape[1] * shape[2];
        let numbers: Vec<f32> = data.iter::<f32>().collect();
        let values = if self.prompt_tuning_init == MultitaskInit::ExactSourceTask {
            let task = self.prompt_tuning_init_task.unwrap_or(0);
            if task >= shape[0] {
                let reason = format!("is {task}, but the trained prompt has the tasks 0 to {}", shape[0] - 1);
                return Err(PeftError::config("prompt_tuning_init_task", reason));
            }
            numbers[task * size..(task + 1) * size].to_vec()
        } else {
            (0..size).map(|at| numbers.iter().skip(at).step_by(size).sum::<f32>() / shape[0] as f32).collect()
        };
        Ok(TensorData::new(values, [1, shape[1], shape[2]]))
    }
}

impl Tuner for MultitaskPromptTuningConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "multitask prompt tuning",
        peft_type: crate::MULTITASK_PROMPT_TUNING,
        what: "virtual tokens that tasks share, and a low-rank matrix for each",
        paper: "arXiv 2303.02861",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for MultitaskPromptTuningConfig {
    fn peft_type(&self) -> &str {
        MULTITASK_PROMPT_TUNING
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.prompt.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        refuse_unknown(&self.other, &[])?;
        let sizes = self.prompt.sizes(spec, Kind::Tokens)?;
        let (tasks, ranks) = (self.num_tasks.unwrap_or(1), self.num_ranks.unwrap_or(1));
        fields::check_positive("num_tasks", tasks)?;
        fields::check_positive("num_ranks", ranks)?;
        let (start, given, missing_data) = match self.prompt_tuning_init {
            MultitaskInit::Random => (PromptInit::Random, None, None),
            MultitaskInit::Text => {
                let (text, tokenizer) = (&self.prompt_tuning_init_text, &self.tokenizer_name_or_path);
                let (start, missing_data) = from_text(text.as_ref(), tokenizer.as_ref(), self.init_ids.as_ref(), spec)?;
                (start, None, missing_data)
            }
            // A trained prompt is not needed any more once this one has values of its own.
            _ => match self.source(&sizes, tasks, ranks) {
                Ok((start, given)) => (start, given, None),
                Err(error) => (PromptInit::Random, None, Some(error.to_string())),
            },
        };
        let row = PlanRow {
            param: sizes.table.clone(),
            label: format!("{} virtual tokens for {tasks} tasks, r={ranks}", sizes.virtual_tokens),
            parameters: sizes.rows() * sizes.width + tasks * ranks * (sizes.rows() + sizes.width),
            build: Arc::new(BuildMultitask { sizes: sizes.clone(), tasks, ranks, start, given }),
        };
        let mut plan = self.prompt.plan("multitask prompt tuning", spec, row, None, sizes.derived())?;
        plan.missing_data = missing_data;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.prompt.write(self)
    }
}
