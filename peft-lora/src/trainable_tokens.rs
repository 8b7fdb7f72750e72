//! Trainable tokens: some rows of a table are trained, alone or beside LoRA. Source: `peft/tuners/trainable_tokens`.
//!
//! The file holds the rows themselves, not their difference. A head that is tied to the table moves along. In the
//! reference a head with a bias loses it; here it keeps it.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use indexmap::IndexMap;
use peft_core::config::fields::{self, SavedModules};
use peft_core::forward::{EmbeddingBelow, LinearBelow};
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, MethodInfo, ModelSpec, Names, ParamKind, ParamSpec,
    PeftConfig, PeftError, Plan, PlanRow, Result, Selection, TableAdapter, Tuner, refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `peft_type` of trainable tokens.
pub const PEFT_TYPE: &str = "TRAINABLE_TOKENS";

/// Rows of one table, or of a head.
#[derive(Module, Debug)]
pub struct TokenRows {
    /// `[tokens, d_model]`
    pub trainable_tokens_delta: Param<Tensor<2>>,
    /// Rows of the table, `[tokens]`.
    indices: Tensor<1, Int>,
    /// Per row of the table 0 where it is trained, else 1; `[rows]`.
    frozen: Tensor<1>,
    /// Per row of the table 1 + its place in the rows, else 0; `[rows]`.
    places: Tensor<1, Int>,
    beside_lora: bool,
}

impl TokenRows {
    /// Along the first axis of `[rows, ..]`: frozen rows from `all`, the others from `rows`.
    fn put(&self, all: Tensor<2>, rows: Tensor<2>) -> Tensor<2> {
        let kept = all * self.frozen.clone().unsqueeze_dim(1);
        kept.select_assign(0, self.indices.clone(), rows, IndexingUpdateOp::Add)
    }
}

impl Adapter for TokenRows {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let dims = weight.dims();
        let plain: [usize; 2] = [dims[0], dims[1]];
        let rows = self.put(param.out_in(weight.reshape(plain)), self.trainable_tokens_delta.val());
        param.out_in(rows).reshape(dims)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let output = below.forward(input.clone());
        let mut scores = input.matmul(self.trainable_tokens_delta.val().transpose());
        if let Some(bias) = below.bias() {
            scores = scores + bias.select(0, self.indices.clone()).unsqueeze();
        }
        self.put(output.transpose(), scores.transpose()).transpose()
    }

    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        let rows = below.forward(ids.clone());
        let [batch, seq, d_model] = rows.dims();
        let places = self.places.clone().select(0, ids.clone().reshape([batch * seq])).reshape([batch, seq]);
        let own = self.trainable_tokens_delta.val();
        let none = Tensor::zeros([1, d_model], &own.device());
        let trained =
            below.shield(&ids, burn::tensor::module::embedding(Tensor::cat(vec![none, own], 0), places.clone()));
        let is_frozen = places.equal_elem(0).unsqueeze_dim::<3>(2).expand([batch, seq, d_model]);
        trained.mask_where(is_frozen, rows)
    }

    fn as_table(&self) -> Option<&dyn TableAdapter> {
        Some(self)
    }

    fn file_key(&self, param: &ParamSpec, field: &str) -> String {
        let inner = inner(self.beside_lora);
        format!("{}.{inner}{field}", param.module)
    }
}

impl TableAdapter for TokenRows {
    fn replaced_rows(&self) -> Vec<usize> {
        self.indices.to_data().iter::<i64>().map(|it| it as usize).collect()
    }

    fn moves_tied_head(&self) -> bool {
        true
    }
}

/// Builds [`TokenRows`].
#[derive(Debug, Clone)]
struct BuildTokenRows {
    indices: Vec<usize>,
    identity: bool,
    beside_lora: bool,
}

impl AdapterBuilder for BuildTokenRows {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let rows = table_rows(base.param());
        let device = init.device().clone().without_autodiff();
        let (mut frozen, mut places) = (vec![1.0f32; rows], vec![0i64; rows]);
        for (place, index) in self.indices.iter().enumerate() {
            (frozen[*index], places[*index]) = (0.0, place as i64 + 1);
        }
        let wanted: Vec<i64> = self.indices.iter().map(|it| *it as i64).collect();
        let length = self.indices.len();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(wanted, [length]), &device);
        let table = base.matrix().to_device(&device);
        let trainable_tokens_delta = if self.identity {
            init.given(table.select(0, indices.clone()))
        } else {
            init.normal([length, table.dims()[1]], 1.0)
        };
        AnyAdapter::new(TokenRows {
            trainable_tokens_delta,
            indices,
            frozen: Tensor::from_data(TensorData::new(frozen, [rows]), &device),
            places: Tensor::from_data(TensorData::new(places, [rows]), &device),
            beside_lora: self.beside_lora,
        })
    }

    fn tensors(&self, param: &ParamSpec) -> Option<Vec<(String, Vec<usize>)>> {
        let width = param.len() / table_rows(param).max(1);
        let key = param.file_key(&format!("{}trainable_tokens_delta", inner(self.beside_lora)));
        Some(vec![(key, vec![self.indices.len(), width])])
    }
}

/// LoRA keeps the rows in a module of their own.
fn inner(beside_lora: bool) -> &'static str {
    if beside_lora { "token_adapter." } else { "" }
}

/// Rows of a table; outputs of a head.
fn table_rows(param: &ParamSpec) -> usize {
    let (first, second) = param.features();
    if param.kind == ParamKind::Embedding { first } else { second }
}

/// A row of a plan that trains these rows of a table or a head.
fn row(param: &Arc<ParamSpec>, indices: &[usize], field: &str, identity: bool, beside_lora: bool) -> Result<PlanRow> {
    if !matches!(param.kind, ParamKind::Embedding | ParamKind::Linear(_)) {
        let reason = format!("names `{}`, which is neither an embedding nor a linear layer", param.module);
        return Err(PeftError::config(field, reason));
    }
    let (rows, width) = (table_rows(param), param.len() / table_rows(param).max(1));
    if let Some(index) = indices.iter().find(|it| **it >= rows) {
        let reason = format!("names the row {index}, but `{}` has {rows}; resize the vocabulary first", param.module);
        return Err(PeftError::config(field, reason));
    }
    if let Some(index) = indices.iter().enumerate().find(|(at, it)| indices[..*at].contains(it)).map(|(_, it)| it) {
        return Err(PeftError::config(field, format!("names the row {index} twice")));
    }
    let build = BuildTokenRows { indices: indices.to_vec(), identity, beside_lora };
    Ok(PlanRow {
        param: param.clone(),
        label: format!("{} rows", indices.len()),
        parameters: indices.len() * width,
        build: Arc::new(build),
    })
}

/// The table that turns ids into vectors: the first one of the model.
fn input_table(spec: &ModelSpec) -> Result<&Arc<ParamSpec>> {
    spec.layers()
        .find(|it| it.kind == ParamKind::Embedding)
        .ok_or_else(|| PeftError::config("target_modules", "must be given: this model has no embedding"))
}

/// `trainable_token_indices` of LoRA: rows of the input table, or of tables and heads by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIndices {
    /// Rows of the input table.
    Rows(Vec<usize>),
    /// Rows by the end of a layer's path.
    ByLayer(IndexMap<String, Vec<usize>>),
}

impl TokenIndices {
    /// Adds the rows to a plan.
    pub(crate) fn add_to(&self, plan: &mut Plan, spec: &ModelSpec, saved: &SavedModules) -> Result<()> {
        const FIELD: &str = "trainable_token_indices";
        let tables: IndexMap<String, Vec<usize>> = match self {
            Self::Rows(rows) => IndexMap::from([(input_table(spec)?.module.clone(), rows.clone())]),
            Self::ByLayer(tables) => tables.clone(),
        };
        for (name, rows) in &tables {
            // The reference compares ends of paths without regard to dots.
            let found: Vec<&Arc<ParamSpec>> = spec.layers().filter(|it| it.module.ends_with(name.as_str())).collect();
            if found.is_empty() {
                let is_tied_head = spec.heads.iter().any(|head| head.ends_with(name.as_str()));
                if is_tied_head && tables.values().any(|other| other == rows && tables.len() > 1) {
                    continue;
                }
                let reason = if is_tied_head {
                    format!("gives the tied head `{name}` rows of its own: name the table with the same rows")
                } else {
                    format!("names `{name}`, which is no layer of this model")
                };
                return Err(PeftError::config(FIELD, reason));
            }
            for param in found {
                if saved.contains(&param.module) {
                    let reason = format!("names `{name}`, which `modules_to_save` trains whole: give one of both");
                    return Err(PeftError::config(FIELD, reason));
                }
                if plan.rows.iter().any(|it| it.param.path() == param.path()) {
                    let reason = format!("names `{name}`, which is among `target_modules` too: give one of both");
                    return Err(PeftError::config(FIELD, reason));
                }
                plan.rows.push(row(param, rows, FIELD, true, true)?);
            }
        }
        Ok(())
    }
}

/// The configuration of trainable tokens as a method of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainableTokensConfig {
    /// Rows to train.
    pub token_indices: Vec<usize>,
    /// The tables; the input table if none is given.
    pub target_modules: Option<Names>,
    /// Start from the rows of the base; otherwise from normal numbers.
    pub init_weights: bool,
    /// `SEQ_CLS`, `CAUSAL_LM`, …. The head of the task is not trained: the reference has no `modules_to_save` here.
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for TrainableTokensConfig {
    fn default() -> Self {
        Self { token_indices: Vec::new(), target_modules: None, init_weights: true, task_type: None, other: Map::new() }
    }
}

impl TrainableTokensConfig {
    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        fields::parse_config(json)
    }
}

impl Tuner for TrainableTokensConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "trainable tokens",
        peft_type: PEFT_TYPE,
        what: "some rows of the embedding matrix",
        paper: "peft/tuners/trainable_tokens",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for TrainableTokensConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        refuse_unknown(&self.other, &[])?;
        if self.token_indices.is_empty() {
            return Err(PeftError::config("token_indices", "is empty: name the rows to train"));
        }
        let table = [input_table(spec)?.module.as_str()];
        let selection = Selection { target_modules: self.target_modules.clone(), ..Selection::default() };
        let selected = selection.resolve(spec, Some(&table))?;
        let mut plan = Plan::new("trainable tokens", spec);
        for param in &selected.spec {
            plan.rows.push(row(param, &self.token_indices, "token_indices", self.init_weights, false)?);
        }
        plan.unmatched = selected.unmatched;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        fields::config_json(self, &SavedModules::default())
    }
}
