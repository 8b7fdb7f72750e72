//! What a model has in the way of adapters, as data.

use burn::module::Module;
use serde::Serialize;

use crate::adapter::AnyAdapter;
use crate::adapter::slots;
use crate::model::peft_model::PeftModel;

/// One adapter of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterStatus {
    /// Its name.
    pub name: String,
    /// Its `peft_type`.
    pub peft_type: String,
    /// Whether it acts.
    pub active: bool,
    /// Whether it is trained.
    pub trainable: bool,
    /// How strongly it acts: 1 as trained.
    pub strength: f64,
    /// Its trained elements.
    pub parameters: usize,
}

/// One parameter that has adapters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerStatus {
    /// Path of the parameter.
    pub path: String,
    /// The struct that it belongs to: `Projection`.
    pub owner: String,
    /// Shape in memory.
    pub shape: Vec<usize>,
    /// Adapters that it has.
    pub adapters: Vec<String>,
    /// Those of them that act, in order of application.
    pub active: Vec<String>,
}

/// A model and its adapters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelStatus {
    /// Whether adapters act at all.
    pub enabled: bool,
    /// The adapters, in the order in which they were added.
    pub adapters: Vec<AdapterStatus>,
    /// The parameters that have any.
    pub layers: Vec<LayerStatus>,
    /// Trained elements.
    pub trainable_parameters: usize,
    /// All elements, base and adapters.
    pub total_parameters: usize,
}

impl<M: Module> PeftModel<M> {
    /// What there is and what it does, as data.
    pub fn status(&self) -> ModelStatus {
        let sets = slots::collect(self.model());
        let strength = |name: &str| {
            let acting = |it: &&AnyAdapter| it.strength() != 1.0;
            sets.iter().filter_map(|it| it.get(name)).find(acting).map_or(1.0, AnyAdapter::strength)
        };
        let adapters = self.adapters().iter().map(|(name, info)| AdapterStatus {
            name: name.clone(),
            peft_type: info.config.peft_type().to_owned(),
            active: self.is_enabled() && self.active().contains(name),
            trainable: info.trainable,
            strength: strength(name),
            parameters: info.plan.trainable(),
        });
        let layers = sets.iter().filter(|it| !it.adapters().is_empty()).map(|set| LayerStatus {
            path: set.param().path(),
            owner: set.param().owner.clone(),
            shape: set.param().shape.clone(),
            adapters: set.adapters().iter().map(|it| it.name.clone()).collect(),
            active: set.active_names().map(str::to_owned).collect(),
        });
        let (trainable_parameters, total_parameters) = self.trainable();
        ModelStatus {
            enabled: self.is_enabled(),
            adapters: adapters.collect(),
            layers: layers.collect(),
            trainable_parameters,
            total_parameters,
        }
    }
}
