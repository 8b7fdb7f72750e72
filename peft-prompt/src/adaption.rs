//! LLaMA-Adapter: the upper layers look at trained tokens beside their own, through a gate that starts at zero
//! (arXiv 2303.16199).

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::config::fields::{self, SavedModules};
use peft_core::forward::LinearBelow;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, GatedAdapter, GatedPrompt, Init, MethodInfo, ModelSpec, ParamKind,
    ParamSpec, PeftConfig, PeftError, Plan, PlanRow, Result, Tuner, refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{ADAPTION_PROMPT, NO_WEIGHT};

/// Tokens and a gate. It is attached to the output projection of the attention that looks at them.
#[derive(Module, Debug)]
pub struct AdaptionPrompt {
    /// `[1, len, d_model]`
    pub adaption_prompt: Param<Tensor<3>>,
    /// `[1]`
    pub adaption_gate: Param<Tensor<1>>,
}

impl Adapter for AdaptionPrompt {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        weight
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        below.forward(input)
    }

    fn unmergeable(&self) -> Option<&'static str> {
        Some(NO_WEIGHT)
    }

    /// The reference keeps it in the attention around the projection.
    fn file_key(&self, param: &ParamSpec, field: &str) -> String {
        let attention = param.module.rsplit_once('.').map_or("", |(attention, _)| attention);
        format!("{attention}.{field}")
    }

    fn as_gated(&self) -> Option<&dyn GatedAdapter> {
        Some(self)
    }
}

impl GatedAdapter for AdaptionPrompt {
    fn gated(&self) -> GatedPrompt {
        GatedPrompt { tokens: self.adaption_prompt.val(), gate: self.adaption_gate.val() }
    }
}

#[derive(Debug)]
struct BuildAdaption {
    len: usize,
    d_model: usize,
}

impl AdapterBuilder for BuildAdaption {
    fn build(&self, _base: BaseTensor, init: &mut Init) -> AnyAdapter {
        AnyAdapter::new(AdaptionPrompt {
            adaption_prompt: init.normal([1, self.len, self.d_model], 1.0),
            adaption_gate: init.constant([1], 0.0),
        })
    }
}

/// Model types that the reference knows, and the name of their attention.
const ATTENTION: [(&str, &str); 3] = [("llama", "self_attn"), ("mistral", "self_attn"), ("gpt2", "attn")];

/// LLaMA-Adapter's configuration. Defaults are the reference's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AdaptionPromptConfig {
    /// Name of the attention modules; the model type's own if not given.
    #[serde(default)]
    pub target_modules: Option<String>,
    /// Number of tokens.
    #[serde(default)]
    pub adapter_len: Option<usize>,
    /// Number of layers, from the top.
    #[serde(default)]
    pub adapter_layers: Option<usize>,
    /// `CAUSAL_LM`, …
    #[serde(default)]
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl AdaptionPromptConfig {
    /// Some tokens in some of the upper layers.
    pub fn new(adapter_len: usize, adapter_layers: usize) -> Self {
        Self { adapter_len: Some(adapter_len), adapter_layers: Some(adapter_layers), ..Self::default() }
    }

    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        let config: Self = fields::parse_config(json)?;
        refuse_unknown(&config.other, &[])?;
        Ok(config)
    }
}

impl Tuner for AdaptionPromptConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "LLaMA-Adapter",
        peft_type: crate::ADAPTION_PROMPT,
        what: "tokens beside the own ones of the upper layers, through a gate",
        paper: "arXiv 2303.16199",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for AdaptionPromptConfig {
    fn peft_type(&self) -> &str {
        ADAPTION_PROMPT
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        refuse_unknown(&self.other, &[])?;
        let kind = spec.model_type.as_deref().unwrap_or("none");
        let (Some((_, default)), Some(shape)) = (ATTENTION.iter().find(|(name, _)| *name == kind), &spec.prompts)
        else {
            let known = "it works on llama, mistral and gpt2";
            return Err(PeftError::unsupported(format!("an adaption prompt on model_type `{kind}`"), known));
        };
        let positive = |field: &str, value: Option<usize>| match value {
            Some(value) if value > 0 => Ok(value),
            _ => Err(PeftError::config(field, "must be given, at least 1")),
        };
        let len = positive("adapter_len", self.adapter_len)?;
        let wanted = positive("adapter_layers", self.adapter_layers)?;
        let target = self.target_modules.as_deref().unwrap_or(default);

        let outputs = outputs_of(spec, target);
        if outputs.is_empty() {
            return Err(PeftError::NothingMatched {
                field: "target_modules",
                targets: format!("{target:?}"),
                nearest: vec![(*default).to_owned()],
                available: vec![(*default).to_owned()],
            });
        }
        if wanted > outputs.len() {
            let reason = format!("is {wanted}, but the model has {} layers with `{target}`", outputs.len());
            return Err(PeftError::config("adapter_layers", reason));
        }
        let mut plan = Plan::new("LLaMA-Adapter", spec);
        plan.rows.extend(outputs[outputs.len() - wanted..].iter().map(|param| PlanRow {
            param: param.clone(),
            label: format!("{len} gated tokens"),
            parameters: len * shape.d_model + 1,
            build: Arc::new(BuildAdaption { len, d_model: shape.d_model }),
        }));
        plan.derived.insert("target_modules".into(), target.into());
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        fields::config_json(self, &SavedModules::default())
    }
}

/// The output projection of every module whose name ends in `target`, in order: the last of its linear layers.
fn outputs_of(spec: &ModelSpec, target: &str) -> Vec<Arc<ParamSpec>> {
    let suffix = format!(".{target}");
    let mut found: Vec<(String, Arc<ParamSpec>)> = Vec::new();
    for param in spec.layers().filter(|it| matches!(it.kind, ParamKind::Linear(_))) {
        let Some((module, _)) = param.module.rsplit_once('.').filter(|(module, _)| module.ends_with(&suffix)) else {
            continue;
        };
        match found.last_mut().filter(|(it, _)| it == module) {
            Some((_, output)) => *output = param.clone(),
            None => found.push((module.to_owned(), param.clone())),
        }
    }
    found.into_iter().map(|(_, param)| param).collect()
}
