//! `scheduler_config.json`.

use std::path::{Path, PathBuf};

use peft_core::files::plain::read_text;
use peft_core::{PeftError, Result, is_off};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The class of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerKind {
    /// `DDPMScheduler`
    Ddpm,
    /// `DDIMScheduler`
    Ddim,
    /// `PNDMScheduler`
    Pndm,
    /// `DPMSolverMultistepScheduler`: DPM++ 2M
    DpmSolverMultistep,
    /// `EulerDiscreteScheduler`
    Euler,
    /// `EulerAncestralDiscreteScheduler`
    EulerAncestral,
}

impl SchedulerKind {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Ddpm, Self::Ddim, Self::Pndm, Self::DpmSolverMultistep, Self::Euler, Self::EulerAncestral];

    /// The class in diffusers.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Ddpm => "DDPMScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::Pndm => "PNDMScheduler",
            Self::DpmSolverMultistep => "DPMSolverMultistepScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
        }
    }

    /// A short name, for command lines: `dpm++`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::DpmSolverMultistep => "dpm++",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
        }
    }
}

/// How the noise that a step adds grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Its root grows evenly.
    ScaledLinear,
    /// What is left of the picture falls as a squared cosine.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The clean picture.
    Sample,
    /// The velocity: Salimans and Ho 2022, arXiv 2202.00512.
    VPrediction,
}

/// Which timesteps a run uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// From the first to the last.
    Linspace,
    /// Multiples of a whole ratio.
    Leading,
    /// Counted back from the last.
    Trailing,
}

/// How much noise a step of DDPM adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The lower bound.
    FixedSmall,
    /// Its exponentiated half logarithm, which is its root, as the deviation.
    FixedSmallLog,
    /// The upper bound.
    FixedLarge,
}

/// What a run ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// No noise.
    Zero,
    /// The least noise that the model knows.
    SigmaMin,
}

/// The differential equation that DPM-Solver integrates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AlgorithmType {
    /// DPM-Solver++: Lu et al. 2022, arXiv 2211.01095.
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmSolverPlusPlus,
}

/// How DPM-Solver's second-order step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// By the midpoint.
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// Heun's way.
    Heun,
}

/// `scheduler_config.json`: the fields of all classes, with the defaults of the one it names.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SchedulerConfig {
    pub kind: SchedulerKind,
    pub num_train_timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: BetaSchedule,
    /// In place of a schedule.
    pub trained_betas: Option<Vec<f32>>,
    pub prediction_type: PredictionType,
    pub timestep_spacing: TimestepSpacing,
    pub steps_offset: usize,
    pub rescale_betas_zero_snr: bool,
    pub clip_sample: bool,
    pub clip_sample_range: f64,
    pub set_alpha_to_one: bool,
    pub variance_type: VarianceType,
    pub skip_prk_steps: bool,
    pub use_karras_sigmas: bool,
    pub final_sigmas_type: FinalSigmas,
    pub solver_order: usize,
    pub algorithm_type: AlgorithmType,
    pub solver_type: SolverType,
    pub lower_order_final: bool,
    pub euler_at_final: bool,
    /// Timesteps whose log signal-to-noise ratio is lower are not used; negative infinity for all.
    pub lambda_min_clipped: f64,
}

/// What a file says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Given {
    num_train_timesteps: Option<usize>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_schedule: Option<BetaSchedule>,
    trained_betas: Option<Vec<f32>>,
    prediction_type: Option<PredictionType>,
    timestep_spacing: Option<TimestepSpacing>,
    steps_offset: Option<usize>,
    rescale_betas_zero_snr: Option<bool>,
    clip_sample: Option<bool>,
    clip_sample_range: Option<f64>,
    set_alpha_to_one: Option<bool>,
    variance_type: Option<VarianceType>,
    skip_prk_steps: Option<bool>,
    use_karras_sigmas: Option<bool>,
    final_sigmas_type: Option<FinalSigmas>,
    solver_order: Option<usize>,
    algorithm_type: Option<AlgorithmType>,
    solver_type: Option<SolverType>,
    lower_order_final: Option<bool>,
    euler_at_final: Option<bool>,
    lambda_min_clipped: Option<Value>,
}

/// Settings that change numbers and that are not computed here.
const MUST_BE_OFF: [&str; 7] = [
    "thresholding",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
    "sigma_max",
];

/// Settings of which one value only is computed here.
const MUST_BE: [(&str, &str); 2] = [("interpolation_type", "linear"), ("timestep_type", "discrete")];

/// More than any model was trained on.
const MOST_TIMESTEPS: usize = 1_000_000;

impl SchedulerConfig {
    /// Reads `scheduler_config.json` of a folder.
    ///
    /// # Errors
    /// If there is none, or it asks for what cannot be computed.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let (path, json) = read(folder.as_ref())?;
        Self::from_json(json).map_err(|error| error.in_file(&path))
    }

    /// Reads `scheduler_config.json` of a folder for another class, as [`of_kind`](Self::of_kind).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_as(folder: impl AsRef<Path>, kind: SchedulerKind) -> Result<Self> {
        let (path, json) = read(folder.as_ref())?;
        Self::of_kind(kind, json).map_err(|error| error.in_file(&path))
    }

    /// The configuration that a JSON object says. Its `_class_name` tells the class.
    ///
    /// # Errors
    /// If the class is not known, or a setting cannot be computed.
    pub fn from_json(json: Map<String, Value>) -> Result<Self> {
        let class = json.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        let kind = SchedulerKind::ALL.into_iter().find(|it| it.class_name() == class).ok_or_else(|| {
            let known: Vec<&str> = SchedulerKind::ALL.iter().map(|it| it.class_name()).collect();
            PeftError::unsupported(format!("scheduler `{class}`"), format!("known are {}", known.join(", ")))
        })?;
        Self::of_kind(kind, json)
    }

    /// The same settings for another class, as diffusers' `from_config`: what that one does not know is ignored, and what
    /// the file leaves out has that one's defaults.
    ///
    /// # Errors
    /// If a setting cannot be computed.
    pub fn of_kind(kind: SchedulerKind, json: Map<String, Value>) -> Result<Self> {
        for field in MUST_BE_OFF {
            if let Some(value) = json.get(field).filter(|it| !is_off(it)) {
                return Err(PeftError::config(field, format!("is {value}, which this version cannot compute")));
            }
        }
        for (field, only) in MUST_BE {
            if let Some(value) = json.get(field).filter(|it| !it.is_null() && *it != only) {
                return Err(PeftError::config(field, format!("is {value}, and only `{only}` can be computed")));
            }
        }
        // A setting of DDPM and of DPM-Solver under one name: the latter's stands for learned variances.
        let mut json = json;
        if kind == SchedulerKind::DpmSolverMultistep
            && let Some(value) =
                json.remove("variance_type").filter(|it| it.as_str().is_some_and(|it| it.starts_with("learned")))
        {
            return Err(PeftError::config("variance_type", format!("is {value}, which this version cannot compute")));
        }
        let given: Given = serde_json::from_value(Value::Object(json))
            .map_err(|error| PeftError::Invalid(format!("the scheduler's configuration: {error}")))?;
        let by_sigmas =
            matches!(kind, SchedulerKind::DpmSolverMultistep | SchedulerKind::Euler | SchedulerKind::EulerAncestral);
        let spacing = if by_sigmas { TimestepSpacing::Linspace } else { TimestepSpacing::Leading };
        let config = Self {
            kind,
            num_train_timesteps: given.num_train_timesteps.unwrap_or(1000),
            beta_start: given.beta_start.unwrap_or(0.0001),
            beta_end: given.beta_end.unwrap_or(0.02),
            beta_schedule: given.beta_schedule.unwrap_or(BetaSchedule::Linear),
            trained_betas: given.trained_betas,
            prediction_type: given.prediction_type.unwrap_or(PredictionType::Epsilon),
            timestep_spacing: given.timestep_spacing.unwrap_or(spacing),
            steps_offset: given.steps_offset.unwrap_or(0),
            // PNDM has no such setting.
            rescale_betas_zero_snr: given.rescale_betas_zero_snr.unwrap_or(false) && kind != SchedulerKind::Pndm,
            clip_sample: given.clip_sample.unwrap_or(true),
            clip_sample_range: given.clip_sample_range.unwrap_or(1.0),
            set_alpha_to_one: given.set_alpha_to_one.unwrap_or(kind == SchedulerKind::Ddim),
            variance_type: given.variance_type.unwrap_or(VarianceType::FixedSmall),
            skip_prk_steps: given.skip_prk_steps.unwrap_or(false),
            use_karras_sigmas: given.use_karras_sigmas.unwrap_or(false),
            final_sigmas_type: given.final_sigmas_type.unwrap_or(FinalSigmas::Zero),
            solver_order: given.solver_order.unwrap_or(2),
            algorithm_type: given.algorithm_type.unwrap_or(AlgorithmType::DpmSolverPlusPlus),
            solver_type: given.solver_type.unwrap_or(SolverType::Midpoint),
            lower_order_final: given.lower_order_final.unwrap_or(true),
            euler_at_final: given.euler_at_final.unwrap_or(false),
            lambda_min_clipped: given.lambda_min_clipped.and_then(|it| it.as_f64()).unwrap_or(f64::NEG_INFINITY),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let count = self.num_train_timesteps;
        if count == 0 || count > MOST_TIMESTEPS {
            let reason = format!("is {count}, expected 1 to {MOST_TIMESTEPS}");
            return Err(PeftError::config("num_train_timesteps", reason));
        }
        if let Some(betas) = self.trained_betas.as_ref().filter(|it| it.len() != count) {
            let reason = format!("has {} values for {count} timesteps", betas.len());
            return Err(PeftError::config("trained_betas", reason));
        }
        let is_share = |it: f64| (0.0..1.0).contains(&it);
        for (field, value) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !is_share(value) {
                return Err(PeftError::config(field, format!("is {value}, expected 0 to below 1")));
            }
        }
        if self.kind == SchedulerKind::DpmSolverMultistep && !(1..=2).contains(&self.solver_order) {
            return Err(PeftError::config("solver_order", format!("is {}, expected 1 or 2", self.solver_order)));
        }
        let only_noise = matches!(self.kind, SchedulerKind::Pndm | SchedulerKind::EulerAncestral);
        if only_noise && self.prediction_type == PredictionType::Sample {
            let reason = format!("is `sample`, which {} cannot do", self.kind.class_name());
            return Err(PeftError::config("prediction_type", reason));
        }
        Ok(())
    }
}

/// The file of a folder, and what it says.
fn read(folder: &Path) -> Result<(PathBuf, Map<String, Value>)> {
    let path = folder.join("scheduler_config.json");
    let text = read_text(&path)?;
    let json = serde_json::from_str(&finite(&text)).map_err(|error| PeftError::bad_file(&path, error))?;
    Ok((path, json))
}

/// The text with Python's infinities as strings, which JSON has no numbers for. diffusers writes them.
fn finite(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|it| !in_string && rest.starts_with(it));
        if let Some(word) = word {
            result.push_str(&format!("\"{word}\""));
            rest = &rest[word.len()..];
            continue;
        }
        match first {
            '"' if !escaped => in_string = !in_string,
            _ => {}
        }
        escaped = in_string && first == '\\' && !escaped;
        result.push(first);
        rest = &rest[first.len_utf8()..];
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<SchedulerConfig> {
        SchedulerConfig::from_json(serde_json::from_str(&finite(text)).unwrap())
    }

    #[test]
    fn infinities_of_python_are_read() {
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "x": "a\"NaN"}"#;
        assert_eq!(finite(text), text.replace("-Infinity", "\"-Infinity\""));
        assert_eq!(config(text).unwrap().lambda_min_clipped, f64::NEG_INFINITY);
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1}"#;
        assert_eq!(config(text).unwrap().lambda_min_clipped, -5.1);
    }

    #[test]
    fn defaults_are_those_of_the_class() {
        let ddim = config(r#"{"_class_name": "DDIMScheduler"}"#).unwrap();
        assert!(ddim.set_alpha_to_one && ddim.timestep_spacing == TimestepSpacing::Leading);
        let pndm = config(r#"{"_class_name": "PNDMScheduler"}"#).unwrap();
        assert!(!pndm.set_alpha_to_one && !pndm.skip_prk_steps);
        let euler = config(r#"{"_class_name": "EulerDiscreteScheduler"}"#).unwrap();
        assert_eq!(euler.timestep_spacing, TimestepSpacing::Linspace);
    }

    #[test]
    fn what_cannot_be_computed_is_refused() {
        for (text, word) in [
            (r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#, "thresholding"),
            (r#"{"_class_name": "LCMScheduler"}"#, "LCMScheduler"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}"#, "interpolation_type"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#, "solver_order"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#, "sde-dpmsolver"),
            (r#"{"_class_name": "PNDMScheduler", "prediction_type": "sample"}"#, "prediction_type"),
            (r#"{"_class_name": "DDPMScheduler", "variance_type": "learned_range"}"#, "learned_range"),
            (r#"{"_class_name": "DDPMScheduler", "num_train_timesteps": 0}"#, "num_train_timesteps"),
        ] {
            let error = config(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
