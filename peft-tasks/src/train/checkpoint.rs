//! Checkpoints of a run: the adapter, the optimizer's state and the counters, in a folder `checkpoint-N` each.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::tensor::Bytes;
use peft_core::files::checkpoint::{FloatType, Stored, TensorFile, write_atomically, write_tensors};
use peft_core::model::state;
use peft_core::{AdapterFolder, AfterStep, PeftError, PeftModel, Result};
use serde::{Deserialize, Serialize};

use crate::train::config::TrainConfig;

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.bpk";
const HOOK_FILE: &str = "after_step.safetensors";
const BEST_FILE: &str = "best.safetensors";

/// How far a run has come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    pub(crate) step: usize,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    /// Lowest loss of an evaluation.
    pub(crate) best: Option<f64>,
    #[serde(default)]
    pub(crate) best_step: usize,
    pub(crate) evaluations_without_gain: usize,
    config: TrainConfig,
}

impl TrainerState {
    pub(crate) fn new(config: &TrainConfig) -> Self {
        Self {
            step: 0,
            tokens: 0,
            seconds: 0.0,
            best: None,
            best_step: 0,
            evaluations_without_gain: 0,
            config: config.clone(),
        }
    }
}

/// The adapter as it was when its evaluation was best.
pub(crate) struct BestAdapter {
    tensors: Vec<Stored>,
    /// State of the method's [`AfterStep`] at that step.
    hook: Vec<Stored>,
}

impl BestAdapter {
    pub(crate) fn of<M: Module>(model: &M, name: &str, hook: Option<&dyn AfterStep>) -> Self {
        Self { tensors: state::tensors(model, name), hook: hook.map_or(Vec::new(), AfterStep::state) }
    }

    /// Puts its values into the model and the hook.
    pub(crate) fn put_back<M: Module>(self, model: M, name: &str, hook: Option<&mut Box<dyn AfterStep>>) -> Result<M> {
        let values = self.tensors.into_iter().map(|it| (it.key, it.data)).collect();
        if let Some(hook) = hook {
            hook.restore(self.hook)?;
        }
        Ok(state::assign(model, name, values))
    }
}

/// What a checkpoint holds beside the adapter.
pub(crate) struct Snapshot<'a> {
    pub(crate) state: &'a TrainerState,
    pub(crate) optimizer: &'a ModuleOptimizer,
    pub(crate) hook: Option<&'a dyn AfterStep>,
    pub(crate) best: Option<&'a BestAdapter>,
}

impl Snapshot<'_> {
    /// Writes `checkpoint-N` into the folder of the run. Removes the oldest ones if there are more than `limit`, which is
    /// 0 for no limit.
    pub(crate) fn save<M: Module>(&self, peft: &PeftModel<M>, name: &str, folder: &Path, limit: usize) -> Result<()> {
        // Written under another name and moved when whole: a checkpoint that has its name can be resumed from.
        let partial = folder.join(format!(".checkpoint-{}.partial", self.state.step));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(PeftError::io("remove", &partial))?;
        }
        peft.save_adapter(&partial, name)?;
        if let Some(hook) = self.hook {
            // The adapter folder may hold less than the run goes on from.
            let mut tensors = peft.adapter_tensors(name)?;
            tensors.extend(hook.state());
            write_tensors(partial.join(HOOK_FILE), tensors, FloatType::F32)?;
        }
        if let Some(best) = self.best {
            let tensors = best.tensors.iter().chain(&best.hook).cloned().collect();
            write_tensors(partial.join(BEST_FILE), tensors, FloatType::F32)?;
        }
        let bytes = self.optimizer.into_bytes();
        let bytes =
            bytes.map_err(|error| PeftError::Invalid(format!("the optimizer's state cannot be saved: {error}")))?;
        write_atomically(partial.join(OPTIMIZER_FILE), &bytes)?;
        let json = serde_json::to_string_pretty(self.state).map_err(|error| PeftError::Invalid(error.to_string()))?;
        write_atomically(partial.join(STATE_FILE), json.as_bytes())?;
        let whole = folder.join(format!("checkpoint-{}", self.state.step));
        if whole.exists() {
            fs::remove_dir_all(&whole).map_err(PeftError::io("remove", &whole))?;
        }
        fs::rename(&partial, &whole).map_err(PeftError::io("write", &whole))?;
        remove_oldest(folder, limit)
    }
}

/// A checkpoint in the folder of a run.
pub(crate) struct Checkpoint(PathBuf);

impl Checkpoint {
    /// The last one, if there is one.
    pub(crate) fn last(folder: &Path) -> Result<Option<Self>> {
        Ok(checkpoints(folder)?.pop().map(|(_, path)| Self(path)))
    }

    /// Puts the adapter back, and the state of what changes it after every step.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the settings are others than those that it was written with.
    pub(crate) fn restore<M: Module>(
        &self,
        peft: &mut PeftModel<M>,
        name: &str,
        config: &TrainConfig,
        hook: Option<&mut Box<dyn AfterStep>>,
    ) -> Result<TrainerState> {
        let path = self.0.join(STATE_FILE);
        let text = fs::read_to_string(&path).map_err(PeftError::io("read", &path))?;
        let state: TrainerState = serde_json::from_str(&text).map_err(|error| PeftError::bad_file(&path, error))?;
        // Through JSON as the saved one went: its reader may miss the last bit of a number.
        let text = serde_json::to_string(config).map_err(|error| PeftError::Invalid(error.to_string()))?;
        let config = serde_json::from_str(&text).map_err(|error| PeftError::Invalid(error.to_string()))?;
        if !state.config.gives_numbers_of(&config) {
            let reason = "it was written with other settings; resume with the same ones, or start in a new folder";
            return Err(PeftError::bad_file(&self.0, reason));
        }
        match hook {
            Some(hook) => {
                let (tensors, own) = adapter_and_hook(&self.0.join(HOOK_FILE))?;
                peft.assign_adapter(name, tensors)?;
                hook.restore(own)?;
                peft.set_config(name, hook.config())?;
            }
            None => peft.restore_adapter(name, &AdapterFolder::open(&self.0)?)?,
        }
        Ok(state)
    }

    /// The best adapter so far: a resumed run may never be as good again.
    pub(crate) fn best(&self, state: &TrainerState) -> Result<Option<BestAdapter>> {
        let path = self.0.join(BEST_FILE);
        if state.best.is_none() || !path.is_file() {
            return Ok(None);
        }
        let (tensors, hook) = adapter_and_hook(&path)?;
        Ok(Some(BestAdapter { tensors, hook }))
    }

    /// An optimizer for the same parameters, with its state.
    pub(crate) fn optimizer(&self, optimizer: ModuleOptimizer) -> Result<ModuleOptimizer> {
        let path = self.0.join(OPTIMIZER_FILE);
        let bytes = fs::read(&path).map_err(PeftError::io("read", &path))?;
        let loaded = optimizer.from_bytes(Bytes::from_bytes_vec(bytes));
        loaded.map_err(|error| PeftError::bad_file(&path, format!("{error:?}")))
    }
}

/// The tensors of an adapter, and those of what changes it after every step, from one file.
fn adapter_and_hook(path: &Path) -> Result<(Vec<Stored>, Vec<Stored>)> {
    let file = TensorFile::open(path)?;
    let read = |key: String| Ok(Stored { data: file.floats(&key)?, key });
    let stored = file.keys().into_iter().map(read).collect::<Result<Vec<_>>>()?;
    Ok(stored.into_iter().partition(|it| it.key.starts_with("base_model.")))
}

/// `checkpoint-N` folders, oldest first.
fn checkpoints(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder).map_err(PeftError::io("read", folder))? {
            let path = entry.map_err(PeftError::io("read", folder))?.path();
            let number = path.file_name().and_then(|it| it.to_str()?.strip_prefix("checkpoint-")?.parse().ok());
            found.extend(number.map(|number| (number, path)));
        }
    }
    found.sort();
    Ok(found)
}

fn remove_oldest(folder: &Path, limit: usize) -> Result<()> {
    let found = checkpoints(folder)?;
    let excess = if limit == 0 { 0 } else { found.len().saturating_sub(limit) };
    for (_, path) in found.into_iter().take(excess) {
        fs::remove_dir_all(&path).map_err(PeftError::io("remove", &path))?;
    }
    Ok(())
}
