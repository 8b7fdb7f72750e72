//! A new IA3 adapter whose vectors are weighted sums of those of others. Source: `add_weighted_adapter` in
//! `peft/tuners/ia3/model.py`.

use burn::module::Module;
use burn::tensor::TensorData;
use peft_core::files::checkpoint::Stored;
use peft_core::{Names, PeftError, PeftModel, Result};
use serde_json::Value;
use std::collections::BTreeMap;

use crate::config::{Ia3Config, PEFT_TYPE};

/// IA3 adapters as things to calculate with.
pub trait CombineIa3 {
    /// Adds an IA3 adapter, `name`, whose vectors are the weighted sums of those of others. What is active stays so.
    ///
    /// As in the reference, a layer that an adapter leaves out counts as zeros and not as ones, so that weights whose sum
    /// is not 1 shrink or stretch activations.
    ///
    /// # Errors
    /// If an adapter is unknown, is not IA3 or saves modules, or the adapters disagree about feed-forward modules; then
    /// nothing has changed.
    fn combine_ia3(&mut self, name: &str, adapters: &[(&str, f64)]) -> Result<()>;
}

impl<M: Module> CombineIa3 for PeftModel<M> {
    fn combine_ia3(&mut self, name: &str, adapters: &[(&str, f64)]) -> Result<()> {
        if adapters.is_empty() {
            return Err(PeftError::Invalid("there is nothing to combine: name at least one adapter".into()));
        }
        let mut configs = Vec::new();
        let mut sums: BTreeMap<String, (Vec<f32>, Vec<usize>)> = BTreeMap::new();
        for (adapter, weight) in adapters {
            let refused = |reason: &str| PeftError::unsupported(format!("combining `{adapter}`"), reason);
            if !weight.is_finite() {
                return Err(PeftError::config("weights", format!("of `{adapter}` is {weight}")));
            }
            let json = self.adapter_config(adapter)?;
            if json.get("peft_type").and_then(Value::as_str) != Some(PEFT_TYPE) {
                return Err(refused("it is not IA3"));
            }
            configs.push(Ia3Config::parse(json)?);
            for Stored { key, data } in self.adapter_tensors(adapter)? {
                if !key.ends_with(".ia3_l") {
                    return Err(refused("it saves modules whole"));
                }
                let shape = data.shape().as_slice().to_vec();
                let (sum, wanted) = sums.entry(key).or_insert_with(|| (vec![0.0; data.num_elements()], shape.clone()));
                if *wanted != shape {
                    return Err(refused("it has another idea of which modules are feed-forward ones"));
                }
                for (sum, value) in sum.iter_mut().zip(data.iter::<f32>()) {
                    *sum += value * *weight as f32;
                }
            }
        }
        let union = |field: fn(&Ia3Config) -> &Option<Names>| {
            if configs.iter().all(|it| field(it) == field(&configs[0])) {
                return Ok(field(&configs[0]).clone());
            }
            let mut all: Vec<String> = Vec::new();
            for config in &configs {
                let Some(Names::List(names)) = field(config) else {
                    let reason = "differ, and not all of them are lists: write them as lists of names";
                    return Err(PeftError::config("target_modules", reason));
                };
                all.extend(names.iter().filter(|it| !all.contains(it)).cloned().collect::<Vec<_>>());
            }
            Ok(Some(Names::List(all)))
        };
        let config = Ia3Config {
            target_modules: union(|it| &it.target_modules)?,
            feedforward_modules: union(|it| &it.feedforward_modules)?,
            exclude_modules: union(|it| &it.exclude_modules)?,
            ..configs[0].clone()
        };
        let tensors = sums.into_iter().map(|(key, (sum, shape))| Stored { key, data: TensorData::new(sum, shape) });
        self.add_adapter_with(name, config, tensors.collect())
    }
}
