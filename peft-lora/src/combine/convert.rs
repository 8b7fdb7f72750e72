//! Any weight method as LoRA of a given rank. Source: `convert_to_lora` in `peft/tuners/lora/conversion.py`.

use burn::module::Module;
use peft_core::{Names, PeftError, PeftModel, Result};
use serde_json::Value;

use crate::combine::weighted::stored;
use crate::lora::config::LoraConfig;
use crate::svd;

/// How well one parameter's update survived.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversion {
    /// Path of the layer.
    pub module: String,
    /// Rank that it got.
    pub rank: usize,
    /// Norm of what was lost over the norm of the update: 0 is exact, 1 is nothing left.
    pub error: f64,
    /// Norm of the update.
    pub norm: f64,
    /// The lowest rank that keeps all but a millionth of the update.
    pub rank_needed: usize,
}

/// Turns adapters into LoRA.
pub trait ConvertToLora {
    /// Adds a LoRA adapter `name` of this rank, scale 1, that is the best approximation of the update of `adapter`, and
    /// says what each layer lost. What is active stays so.
    ///
    /// Any method that changes weights can be converted, also one that multiplies. Modules that it saves whole and
    /// trained biases go along.
    ///
    /// # Errors
    /// If the adapter is unknown, changes a bias or a norm by its method, or nothing is left to convert.
    fn convert_to_lora(&mut self, adapter: &str, name: &str, rank: Rank) -> Result<Vec<Conversion>>;
}

/// How ranks are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rank {
    /// One for all layers.
    Fixed(usize),
    /// For each layer the lowest that keeps this share of the sum of the squares of the update, above 0 and at most 1.
    Share(f64),
}

impl Rank {
    /// The rank of a layer whose update has these singular values, largest first.
    fn of(self, values: &[f32]) -> usize {
        match self {
            Self::Fixed(rank) => rank,
            Self::Share(share) => {
                let wanted = share * energy(values);
                let enough = |rank: &usize| energy(&values[..*rank]) >= wanted;
                (1..values.len()).find(enough).unwrap_or(values.len()).max(1)
            }
        }
    }
}

fn energy(values: &[f32]) -> f64 {
    values.iter().map(|it| f64::from(*it).powi(2)).sum()
}

impl<M: Module> ConvertToLora for PeftModel<M> {
    fn convert_to_lora(&mut self, adapter: &str, name: &str, rank: Rank) -> Result<Vec<Conversion>> {
        match rank {
            Rank::Fixed(rank) => {
                svd::check_rank(rank, self.spec())?;
            }
            Rank::Share(share) if !(share > 0.0 && share <= 1.0) => {
                return Err(PeftError::config("keep", format!("is {share}, expected a share above 0 and at most 1")));
            }
            Rank::Share(_) => {}
        }
        let mut report: Vec<Conversion> = Vec::new();
        let mut tensors = Vec::new();
        let mut whole = Vec::new();
        for update in self.updates(adapter)? {
            let param = &update.param;
            if let Some(reason) = update.unmergeable {
                return Err(PeftError::unsupported(format!("converting `{adapter}` to LoRA"), reason));
            }
            if let Some(key) = update.replacement {
                whole.push(key);
                continue;
            }
            if !param.is_layer_weight() || update.touches_bias {
                let reason = format!("it changes more than the weight of `{}`", param.module);
                return Err(PeftError::unsupported(format!("converting `{adapter}` to LoRA"), reason));
            }
            let matrix = svd::to_mat(&update.delta);
            if !svd::is_finite(&matrix) {
                let reason = format!(
                    "the update of `{}` by `{adapter}` is not finite: NaN or infinity is in the adapter or in the base",
                    param.module
                );
                return Err(PeftError::NotFinite(reason));
            }
            let svd = svd::thin(&matrix);
            let rank = rank.of(&svd.1);
            let (a, b) = svd::leading(&svd, rank);
            let values = svd.1;
            let all = energy(&values);
            let lost = energy(&values[rank.min(values.len())..]);
            let rank_needed =
                (0..=values.len()).find(|it| energy(&values[*it..]) <= 1e-12 * all).unwrap_or(values.len());
            let error = if all > 0.0 { (lost / all).sqrt() } else { 0.0 };
            report.push(Conversion { module: param.module.clone(), rank, error, norm: all.sqrt(), rank_needed });
            tensors.extend(stored(param, rank, &a, &b));
        }
        if report.is_empty() {
            return Err(PeftError::unsupported(
                format!("converting `{adapter}` to LoRA"),
                "it adapts no layer's weight",
            ));
        }
        let json = self.adapter_config(adapter)?;
        let mut config = serde_json::Map::new();
        for field in
            ["modules_to_save", "bias", "task_type", "base_model_name_or_path", "revision", "layer_replication"]
        {
            config.extend(json.get(field).filter(|it| !it.is_null()).map(|it| (field.to_owned(), it.clone())));
        }
        if config.get("bias").and_then(Value::as_str).is_some_and(|it| it.ends_with("_only")) {
            config.insert("bias".into(), "lora_only".into());
        }
        let rank = report.iter().map(|it| it.rank).max().unwrap_or(1);
        // Every rank is its own alpha: the scale is 1.
        let unlike = || report.iter().filter(|it| it.rank != rank).map(|it| (format!("^{}", it.module), it.rank));
        let config = LoraConfig {
            r: rank,
            lora_alpha: rank as f64,
            rank_pattern: unlike().collect(),
            alpha_pattern: unlike().map(|(module, rank)| (module, rank as f64)).collect(),
            target_modules: Some(Names::List(report.iter().map(|it| it.module.clone()).collect())),
            ..LoraConfig::parse(config)?
        };
        tensors.extend(self.adapter_tensors(adapter)?.into_iter().filter(|it| whole.contains(&it.key)));
        self.add_adapter_with(name, config, tensors)?;
        Ok(report)
    }
}
