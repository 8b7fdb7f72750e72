//! `adapter_config.json` of IA3, field for field, and the plan that it makes.

use std::sync::Arc;

use peft_core::config::fields::{self, SavedModules};
use peft_core::{
    MethodInfo, ModelSpec, Names, ParamKind, ParamSpec, PeftConfig, PeftError, Plan, PlanRow, Result, Selection, Tuner,
    refuse_unknown,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::defaults;
use crate::vector::BuildIa3;

/// `peft_type` of IA3.
pub const PEFT_TYPE: &str = "IA3";

/// IA3's configuration. Defaults are the reference's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ia3Config {
    /// Layers to adapt.
    #[serde(default)]
    pub target_modules: Option<Names>,
    /// Layers to leave out.
    #[serde(default)]
    pub exclude_modules: Option<Names>,
    /// Those of the targets whose input is scaled and not their output.
    #[serde(default)]
    pub feedforward_modules: Option<Names>,
    /// Whether the adapted weights are stored input first. Written as the reference writes it; ours are told by layer.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Modules that are trained and saved whole.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Start from ones, which change nothing; otherwise from normal numbers.
    #[serde(default = "yes")]
    pub init_ia3_weights: bool,
    /// `SEQ_CLS`, `CAUSAL_LM`, …; adds the head of the task to `modules_to_save`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn yes() -> bool {
    true
}

impl Default for Ia3Config {
    fn default() -> Self {
        Self {
            target_modules: None,
            exclude_modules: None,
            feedforward_modules: None,
            fan_in_fan_out: false,
            modules_to_save: None,
            init_ia3_weights: true,
            task_type: None,
            other: Map::new(),
        }
    }
}

impl Ia3Config {
    /// With these layers, of which some are feed-forward modules.
    pub fn targets<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = S>,
        feedforward: impl IntoIterator<Item = S>,
    ) -> Self {
        self.target_modules = Some(Names::list(names));
        self.feedforward_modules = Some(Names::list(feedforward));
        self
    }

    /// Parses `adapter_config.json`.
    pub fn parse(json: Map<String, Value>) -> Result<Self> {
        let config: Self = fields::parse_config(json)?;
        refuse_unknown(&config.other, &[])?;
        Ok(config)
    }

    fn saved_modules(&self) -> SavedModules {
        SavedModules::new(self.modules_to_save.as_ref(), self.task_type.as_deref())
    }

    fn check(&self) -> Result<()> {
        if let (Some(Names::List(targets)), Some(Names::List(feedforward))) =
            (&self.target_modules, &self.feedforward_modules)
            && let Some(name) = feedforward.iter().find(|it| !targets.contains(it))
        {
            let reason = format!("names `{name}`, which is not among `target_modules`: add it there");
            return Err(PeftError::config("feedforward_modules", reason));
        }
        Ok(())
    }

    fn row(&self, param: &Arc<ParamSpec>, is_feedforward: bool) -> Result<PlanRow> {
        if param.kind == ParamKind::Embedding {
            let reason = format!("names the embedding `{}`; IA3 scales linear layers and convolutions", param.module);
            return Err(PeftError::config("target_modules", reason));
        }
        let build = BuildIa3 { is_feedforward, identity: self.init_ia3_weights };
        Ok(PlanRow {
            param: param.clone(),
            label: if is_feedforward { "input" } else { "output" }.into(),
            parameters: build.length(param),
            build: Arc::new(build),
        })
    }
}

impl Tuner for Ia3Config {
    const INFO: MethodInfo = MethodInfo {
        name: "IA3",
        peft_type: PEFT_TYPE,
        what: "a vector that scales activations",
        paper: "arXiv 2205.05638",
        package: env!("CARGO_PKG_NAME"),
    };

    fn from_json(json: Map<String, Value>) -> Result<Self> {
        Self::parse(json)
    }
}

impl PeftConfig for Ia3Config {
    fn peft_type(&self) -> &str {
        PEFT_TYPE
    }

    fn task_type_mut(&mut self) -> Option<&mut Option<String>> {
        Some(&mut self.task_type)
    }

    fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        self.check()?;
        refuse_unknown(&self.other, &[])?;
        let saved = self.saved_modules();
        let selection = Selection {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            modules_to_save: saved.names(),
            ..Selection::default()
        };
        let defaults = spec.model_type.as_deref().and_then(defaults::of);
        let selected = selection.resolve(spec, defaults.as_ref().map(|it| it.targets))?;
        let feedforward = match (&self.feedforward_modules, &defaults) {
            (Some(names), _) => names.clone(),
            (None, Some(defaults)) => Names::list(defaults.feedforward.iter().copied()),
            (None, None) => {
                let reason = "must be given: this model has no default ones; an empty list scales every output";
                return Err(PeftError::config("feedforward_modules", reason));
            }
        };
        let feedforward = FeedForward::new(&feedforward)?;

        let mut plan = Plan::new("IA3", spec);
        for param in &selected.params {
            plan.rows.push(self.row(param, feedforward.contains(&param.module)?)?);
        }
        if selected.params.iter().any(|it| it.kind == ParamKind::Conv && it.shape.len() == 3) {
            plan.not_in_reference.push("PEFT has no IA3 for one-dimensional convolutions".into());
        }
        saved.add_to(&mut plan, spec)?;
        plan.unmatched = selected.unmatched;
        Ok(plan)
    }

    fn to_json(&self) -> Result<Map<String, Value>> {
        fields::config_json(self, &self.saved_modules())
    }
}

/// Which targets are feed-forward modules.
enum FeedForward<'a> {
    Whole(peft_core::WholePath),
    /// The reference compares ends of paths and ignores dots: `proj` is the end of `o_proj`.
    Ends(&'a [String]),
}

impl<'a> FeedForward<'a> {
    fn new(names: &'a Names) -> Result<Self> {
        Ok(match names {
            Names::Pattern(pattern) => Self::Whole(peft_core::WholePath::new("feedforward_modules", pattern)?),
            Names::List(names) => Self::Ends(names),
        })
    }

    fn contains(&self, path: &str) -> Result<bool> {
        match self {
            Self::Whole(pattern) => pattern.matches(path),
            Self::Ends(names) => Ok(names.iter().any(|name| path.ends_with(name.as_str()))),
        }
    }
}
