//! P-tuning: the virtual tokens come out of a small network (arXiv 2103.10385).

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use peft_core::config::fields;
use peft_core::forward::EmbeddingBelow;
use peft_core::nn::Dropout;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, MethodInfo, ModelSpec, ParamSpec, PeftConfig, PeftError,
    Plan, PlanRow, Prompt, PromptAdapter, Result, Tuner, refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Kind, PromptLearning, Sizes};
use crate::dense::{Dense, Table, relu, sequence, sequence_key};
use crate::lstm::Lstm;
use crate::start::PromptInit;
use crate::tokens::{self, VirtualTokens};
use crate::{NO_WEIGHT, P_TUNING};

/// A network that makes virtual tokens. In the adapter file there are only the tokens.
#[derive(Module, Debug)]
pub struct PromptEncoder {
    /// `[virtual · submodules, d_model]`
    pub embedding: Table,
    /// The layers of the recurrent network; none without one.
    pub lstm_head: Vec<Lstm>,
    /// Layers with a ReLU between them.
    pub mlp_head: Vec<Dense>,
    dropout: Dropout,
    virtual_tokens: usize,
    drops_token_types: bool,
}

impl PromptEncoder {
    /// The tokens, `[virtual · submodules, d_model]`.
    fn tokens(&self, dropout: Option<&Dropout>) -> Tensor<2> {
        let hidden = Lstm::run(&self.lstm_head, self.embedding.weight.val(), dropout);
        sequence(&self.mlp_head, hidden, relu)
    }
}

impl Adapter for PromptEncoder {
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
        "prompt_encoder."
    }

    fn file_key(&self, _param: &ParamSpec, field: &str) -> String {
        let lstm = || Some(format!("lstm_head.{}", Lstm::key(field.strip_prefix("lstm_head.")?)?));
        lstm().or_else(|| sequence_key("mlp_head", field)).unwrap_or_else(|| field.to_owned())
    }

    fn as_prompt(&self) -> Option<&dyn PromptAdapter> {
        Some(self)
    }
}

impl PromptAdapter for PromptEncoder {
    fn prompt(&self, _tasks: Option<&Tensor<1, Int>>) -> Prompt {
        tokens::prompt_of(self.tokens(Some(&self.dropout)), self.virtual_tokens, self.drops_token_types)
    }

    fn virtual_tokens(&self) -> usize {
        self.virtual_tokens
    }

    fn export_form(&self) -> Option<AnyAdapter> {
        let made = self.tokens(None).detach();
        let made = burn::module::Param::initialized(burn::module::ParamId::new(), made);
        Some(AnyAdapter::new(VirtualTokens::new(made, self.virtual_tokens, self.drops_token_types)))
    }
}

#[derive(Debug)]
struct BuildEncoder {
    sizes: Sizes,
    hidden: usize,
    /// Layers of the recurrent network; 0 for none.
    recurrent: usize,
    dropout: f64,
}

impl BuildEncoder {
    /// Widths of the dense layers, first to last.
    fn widths(&self) -> Vec<usize> {
        let (width, hidden) = (self.sizes.width, self.hidden);
        if self.recurrent > 0 { vec![2 * hidden, 2 * hidden, width] } else { vec![width, hidden, hidden, width] }
    }

    fn len(&self) -> usize {
        let dense: usize = self.widths().windows(2).map(|it| Dense::len(it[0], it[1])).sum();
        self.sizes.rows() * self.sizes.width + Lstm::len(self.sizes.width, self.hidden, self.recurrent) + dense
    }
}

impl AdapterBuilder for BuildEncoder {
    fn build(&self, _base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let Sizes { virtual_tokens, width, drops_token_types, .. } = self.sizes;
        AnyAdapter::new(PromptEncoder {
            embedding: Table::new(self.sizes.rows(), width, init),
            lstm_head: Lstm::stack(width, self.hidden, self.recurrent, init),
            mlp_head: self.widths().windows(2).map(|it| Dense::new(it[0], it[1], init)).collect(),
            dropout: Dropout::new(self.dropout),
            virtual_tokens,
            drops_token_types,
        })
    }
}

/// `encoder_reparameterization_type`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EncoderType {
    /// Three dense layers.
    #[default]
    Mlp,
    /// A recurrent network in both directions and two dense layers.
    Lstm,
}

/// P-tuning's configuration. Defaults are the reference's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PromptEncoderConfig {
    /// The fields of all prompt methods.
    #[serde(flatten)]
    pub prompt: PromptLearning,
    /// What network makes the tokens.
    #[serde(default)]
    pub encoder_reparameterization_type: EncoderType,
    /// Its width; that of a token if not given.
    #[serde(default)]
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the recurrent network. The dense one has three, whatever this says.
    #[serde(default = "two")]
    pub encoder_num_layers: usize,
    /// Share that is dropped between the layers of the recurrent network while training.
    #[serde(default)]
    pub encoder_dropout: f64,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn two() -> usize {
    2
}

impl PromptEncoderConfig {
    /// Some virtual tokens for a task, made by a dense network.
    pub fn new(num_virtual_tokens: usize, task_type: &str) -> Self {
        Self {
            prompt: PromptLearning::new(num_virtual_tokens, task_type),
            encoder_reparameterization_type: EncoderType::default(),
            encoder_hidden_size: None,
            encoder_num_layers: two(),
            encoder_dropout: 0.0,
            other: Map::new(),
        }
    }

    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        let config: Self = fields::parse_config(json)?;
        refuse_unknown(&config.other, &[])?;
        Ok(config)
    }
}

impl Tuner for PromptEncoderConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "P-tuning",
        peft_type: crate::P_TUNING,
        what: "a network that makes virtual tokens",
        paper: "arXiv 2103.10385",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for PromptEncoderConfig {
    fn peft_type(&self) -> &str {
        P_TUNING
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.prompt.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        refuse_unknown(&self.other, &[])?;
        let sizes = self.prompt.sizes(spec, Kind::Tokens)?;
        let hidden = self.encoder_hidden_size.unwrap_or(sizes.width);
        fields::check_positive("encoder_hidden_size", hidden)?;
        fields::check_dropout("encoder_dropout", self.encoder_dropout)?;
        let recurrent = match self.encoder_reparameterization_type {
            EncoderType::Mlp => 0,
            EncoderType::Lstm if self.encoder_num_layers == 0 => {
                return Err(PeftError::config("encoder_num_layers", "must be at least 1 for an LSTM"));
            }
            EncoderType::Lstm => self.encoder_num_layers,
        };
        let build = BuildEncoder { sizes: sizes.clone(), hidden, recurrent, dropout: self.encoder_dropout };
        let network = if recurrent > 0 { "LSTM" } else { "MLP" };
        let row = PlanRow {
            param: sizes.table.clone(),
            label: format!("{} virtual tokens from an {network} of width {hidden}", sizes.virtual_tokens),
            parameters: build.len(),
            build: Arc::new(build),
        };
        let mut derived = sizes.derived();
        derived.insert("encoder_hidden_size".into(), hidden.into());
        let export_form = tokens::row(&sizes, PromptInit::Random);
        let mut plan = self.prompt.plan("P-tuning", spec, row, Some(export_form), derived)?;
        if recurrent == 0 && self.encoder_num_layers != two() {
            plan.notes.push("encoder_num_layers counts for an LSTM only: the MLP has three layers".into());
        }
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        self.prompt.write(self)
    }
}
