//! The plan that LoRA's configuration makes for a model, and what a folder holds of an adapter.

use std::sync::Arc;

use peft_core::config::fields::{self, Bias};
use peft_core::files::checkpoint::{Stored, TensorFile};
use peft_core::{
    AdapterBuilder, GradientProjection, MethodInfo, ModelSpec, Names, ParamKind, ParamSpec, PeftConfig, PeftError,
    Plan, PlanRow, Result, Tuner, no_parameter_matched, refuse_unknown, replacement_row, replacement_row_with_head,
};
use serde_json::{Map, Value, json};

use crate::default_targets;
use crate::lora::config::{HARMLESS, LoraConfig, PEFT_TYPE, WRITTEN};
use crate::lora::conv::BuildConv;
use crate::lora::data_init::calibration::DataInit;
use crate::lora::data_init::config::EvaConfig;
use crate::lora::data_init::corda;
use crate::lora::embedding::BuildEmbedding;
use crate::lora::init_weights::InitWeights;
use crate::lora::layers::Layer;
use crate::lora::linear::BuildLinear;
use crate::lora::loftq::LoftqConfig;
use crate::trainable_tokens::TokenIndices;

impl Tuner for LoraConfig {
    const INFO: MethodInfo = MethodInfo {
        name: "LoRA",
        peft_type: PEFT_TYPE,
        what: "two thin factors beside the frozen weight",
        paper: "arXiv 2106.09685",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for LoraConfig {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn keeps_head_tied(&self, spec: &ModelSpec) -> bool {
        // Rows of a tied head are those of its table.
        let has_rows = |head: &String| match &self.trainable_token_indices {
            Some(TokenIndices::ByLayer(tables)) => tables.keys().any(|name| head.ends_with(name.as_str())),
            _ => false,
        };
        self.ensure_weight_tying || spec.heads.iter().any(has_rows)
    }

    fn layer_replication(&self) -> Option<&[[usize; 2]]> {
        self.layer_replication.as_deref()
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        self.check()?;
        refuse_unknown(&self.other, &HARMLESS)?;
        let (parameters, unmatched_parameters) = self.parameters(spec)?;
        let (layers, unmatched) = self.layers_beside(&parameters, spec)?;
        if layers.is_empty() && parameters.is_empty() {
            return Err(no_parameter_matched(&unmatched_parameters, spec));
        }
        self.check_invocation(&layers, spec)?;
        let mut plan = Plan::new("LoRA", spec);
        plan.rows = layers.iter().map(|it| self.row(it)).collect::<Result<_>>()?;
        for parameter in &parameters {
            plan.rows.push(self.parameter_row(parameter, &parameters, spec)?);
        }
        if self.start()? == InitWeights::Eva && self.data_init.is_none() {
            let reason = "init_lora_weights = \"eva\" starts from data; let `eva::start` complete the configuration";
            plan.missing_data = Some(reason.into());
        }
        if matches!(self.start()?, InitWeights::Loftq(_)) {
            let reason = "init_lora_weights = \"loftq\" quantises the layers itself: load the base in full precision (in a program, \
                          `loftq::start` completes a configuration for a quantised one)";
            plan.wants_full_precision = Some(reason.into());
        }
        let (ranks, alphas) = self.scales()?;
        let mut adapted: Vec<String> = layers.iter().map(|it| it.param.module.clone()).collect();
        adapted.extend(parameters.iter().map(|it| it.param.path()));
        let adapted: Vec<&str> = adapted.iter().map(String::as_str).collect();
        for (field, unused) in [
            ("rank_pattern", ranks.unused(&self.rank_pattern, adapted.iter().copied())?),
            ("alpha_pattern", alphas.unused(&self.alpha_pattern, adapted.iter().copied())?),
        ] {
            plan.notes.extend(unused.iter().map(|key| format!("{field} `{key}` matches no adapted layer")));
        }
        let foreign =
            layers.iter().any(|it| matches!(it.param.owner.as_str(), "Linear" | "Conv1d" | "Conv2d" | "Conv3d"));
        if self.lora_dropout > 0.0 && foreign {
            plan.notes.push("lora_dropout acts only in layers that call `adapted`, not in `burn::nn` forwards".into());
        }
        let saved = self.saved_modules();
        self.bias.add_to(&mut plan, spec, &saved);
        if let Some(tokens) = &self.trainable_token_indices {
            tokens.add_to(&mut plan, spec, &saved)?;
        }
        let tied = self.tied_table(spec, &layers)?;
        saved.add_with(&mut plan, spec, |param, key| {
            if Some(param) == tied { replacement_row_with_head(param, key) } else { replacement_row(param, key) }
        })?;
        self.check_around(&parameters, &plan)?;
        plan.unmatched = unmatched;
        plan.unmatched_parameters = unmatched_parameters;
        if !parameters.is_empty() && layers.iter().any(|it| it.param.owner == "Gpt2Linear") {
            plan.not_in_reference.push("PEFT has no `target_parameters` beside Conv1D layers".into());
        }
        if spec.layer_order.is_some() && !is_replicated_in_reference(spec) {
            plan.not_in_reference.push("PEFT has no `layer_replication` for this architecture".into());
        }
        Ok(plan)
    }

    fn as_gradient_projection(&self) -> Option<&dyn GradientProjection> {
        Some(self)
    }

    fn to_file(&self, tensors: Vec<Stored>) -> Vec<Stored> {
        match &self.data_init {
            Some(data_init) => corda::to_file(data_init, tensors),
            None => tensors,
        }
    }

    fn read_back(&self, file: &TensorFile) -> Result<Option<Vec<Stored>>> {
        let data_init = self.data_init.as_ref().filter(|it| it.are_subtracted());
        data_init.map(|it| corda::from_file(it, file)).transpose()
    }

    fn to_file_json(&self) -> Result<Map<String, Value>> {
        if !self.data_init.as_ref().is_some_and(DataInit::are_subtracted) {
            return self.to_json();
        }
        let grown = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        let mut twice =
            Self { r: 2 * self.r, lora_alpha: grown * self.lora_alpha, init_lora_weights: true.into(), ..self.clone() };
        twice.rank_pattern.values_mut().for_each(|it| *it *= 2);
        twice.alpha_pattern.values_mut().for_each(|it| *it *= grown);
        twice.to_json()
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        let mut json = fields::config_json(self, &self.saved_modules())?;
        // The reference wants it said.
        if matches!(self.start(), Ok(InitWeights::Loftq(_))) && self.loftq_config.is_none() {
            json.insert("loftq_config".to_owned(), json!(LoftqConfig::default()));
        }
        for (field, off) in WRITTEN {
            if !json.contains_key(field) {
                let off = serde_json::from_str(off).map_err(|error| PeftError::Invalid(error.to_string()))?;
                json.insert(field.to_owned(), off);
            }
        }
        Ok(json)
    }
}

/// Whether the reference repeats the layers of a model: `replicate_layers` looks for them below `model` and `bert` only, and
/// where they differ transformers looks up their kinds in a list that stays as short as it was.
fn is_replicated_in_reference(spec: &ModelSpec) -> bool {
    const STACKS: [&str; 5] = ["layers", "model.layers", "encoder.layer", "bert.encoder.layer", "h"];
    const LOOKED_UP: [&str; 4] = ["qwen2", "qwen3", "gemma2", "gemma3_text"];
    let is_found = spec.modules().any(|it| STACKS.contains(&it));
    is_found && !spec.model_type.as_deref().is_some_and(|it| LOOKED_UP.contains(&it))
}

impl LoraConfig {
    fn check(&self) -> Result<()> {
        fields::check_positive("r", self.r)?;
        if !self.lora_alpha.is_finite() {
            return Err(PeftError::config("lora_alpha", "must be a finite number"));
        }
        fields::check_dropout("lora_dropout", self.lora_dropout)?;
        self.eva_config.as_ref().map_or(Ok(()), EvaConfig::check)?;
        let start = self.start()?;
        if self.lora_bias && (self.use_dora || start.reads_base() || self.bias != Bias::None) {
            let reason =
                "cannot be combined with `use_dora`, `bias`, or a start that reads the base (pissa, olora, loftq)";
            return Err(PeftError::config("lora_bias", reason));
        }
        self.check_parameters()
    }

    /// The table that is trained whole with the head that is tied to it.
    fn tied_table<'a>(&self, spec: &'a ModelSpec, layers: &[Layer]) -> Result<Option<&'a Arc<ParamSpec>>> {
        // The reference knows these names only.
        let is_named = |module: &str| matches!(module.rsplit('.').next(), Some("embed_tokens" | "lm_head"));
        let is_tied = spec.heads.iter().any(|it| is_named(it) && spec.get(&format!("{it}.weight")).is_none());
        if !self.ensure_weight_tying || !is_tied {
            return Ok(None);
        }
        if layers.iter().any(|it| is_named(&it.param.module)) {
            let reason = "with a tied table among `target_modules` is not known: name it in `modules_to_save`";
            return Err(PeftError::config("ensure_weight_tying", reason));
        }
        let table = spec.layers().find(|it| it.kind == ParamKind::Embedding && is_named(&it.module));
        if self.modules_to_save.iter().flatten().any(|it| it == "lm_head") {
            let table = table.map_or("the table", |it| it.module.as_str());
            let reason = format!("names the head `lm_head`, which is tied: name `{table}`, with which it moves");
            return Err(PeftError::config("modules_to_save", reason));
        }
        Ok(table)
    }

    /// The same beside parameters that are meant, where there need be no layer.
    fn layers_beside(&self, parameters: &[Layer], spec: &ModelSpec) -> Result<(Vec<Layer>, Vec<String>)> {
        if !self.parameter_names().is_empty() {
            let has_defaults = || spec.model_type.as_deref().and_then(default_targets::target_modules).is_some();
            match &self.target_modules {
                None if !has_defaults() => return Ok((Vec::new(), Vec::new())),
                Some(Names::List(names)) if names.is_empty() => return Ok((Vec::new(), Vec::new())),
                _ => {}
            }
        }
        match self.layers(spec) {
            Err(PeftError::NothingMatched { .. }) if !parameters.is_empty() => {
                let names = match &self.target_modules {
                    Some(Names::List(names)) => names.clone(),
                    Some(Names::Pattern(pattern)) => vec![pattern.clone()],
                    None => Vec::new(),
                };
                Ok((Vec::new(), names))
            }
            layers => layers,
        }
    }

    pub(crate) fn row(&self, layer: &Layer) -> Result<PlanRow> {
        let Layer { param, rank, alpha, scale } = layer;
        let (rank, scale) = (*rank, *scale);
        let start = self.start()?;
        let (d_in, d_out) = param.features();
        if start.reads_base() && rank > d_in.min(d_out) {
            let reason = format!("is {rank}, more than `{}` has singular values ({})", param.module, d_in.min(d_out));
            return Err(PeftError::config("r", reason));
        }
        if start == InitWeights::Orthogonal && !rank.is_multiple_of(2) {
            return Err(PeftError::config("r", format!("is {rank}, but the orthogonal start needs an even rank")));
        }
        if matches!(start, InitWeights::Loftq(_)) && matches!(param.kind, ParamKind::Embedding | ParamKind::Conv) {
            let reason =
                format!("is loftq, which starts linear layers only: leave `{}` out of the targets", param.module);
            return Err(PeftError::config("init_lora_weights", reason));
        }
        let dora = self.use_dora;
        let mut parameters = rank * (d_in + d_out) + if dora { d_out } else { 0 };
        let build: Arc<dyn AdapterBuilder> = match param.kind {
            ParamKind::Embedding if self.lora_bias => {
                return Err(PeftError::config(
                    "lora_bias",
                    format!("cannot be used on the embedding `{}`", param.module),
                ));
            }
            ParamKind::Embedding => Arc::new(BuildEmbedding { rank, scale, start, dora }),
            ParamKind::Conv => Arc::new(BuildConv { rank, scale, start, dora }),
            _ => {
                parameters += if self.lora_bias { d_out } else { 0 };
                let (dropout, bias) = (self.lora_dropout, self.lora_bias);
                let given = self.data_init.as_ref().and_then(|it| it.get(&param.module)).cloned();
                let invocation = self.invocation().map(<[i64]>::to_vec);
                Arc::new(BuildLinear { rank, scale, dropout, start, given, dora, bias, invocation })
            }
        };
        let mut label = format!("r={rank} α={alpha}");
        let (activated, loftq) = (self.invocation().is_some(), matches!(self.start()?, InitWeights::Loftq(_)));
        for (on, text) in [(self.use_rslora, " rslora"), (dora, " dora"), (activated, " alora"), (loftq, " loftq")] {
            label.push_str(if on { text } else { "" });
        }
        Ok(PlanRow { param: param.clone(), label, parameters, build })
    }
}
