//! Checkpoints of a run: the adapter, the optimizer's state and the counters, in a folder `checkpoint-N` each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::tensor::{Bytes, Device};
use peft_core::files::checkpoint::{FloatType, Stored, TensorFile, write_atomically, write_tensors};
use peft_core::files::plain::read_bytes;
use peft_core::model::state;
use peft_core::{AdapterFolder, AfterStep, PeftError, PeftModel, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::train::folder::{checkpoints, partial, remove, whole};
use crate::train::identity::{Differences, differences, file_mark};
use crate::train::placed;
use crate::train::state::TrainerState;

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.bpk";
const HOOK_FILE: &str = "after_step.safetensors";
const BEST_FILE: &str = "best.safetensors";

/// `trainer_state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    state: TrainerState,
    /// What the checkpoint belongs to.
    identity: Map<String, Value>,
    /// Sizes and hashes of the other files: their readers take damaged numbers for good ones.
    files: BTreeMap<String, String>,
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
    pub(crate) identity: &'a Map<String, Value>,
    pub(crate) optimizer: &'a ModuleOptimizer,
    pub(crate) hook: Option<&'a dyn AfterStep>,
    pub(crate) best: Option<&'a BestAdapter>,
}

impl Snapshot<'_> {
    /// Writes `checkpoint-N` into the folder of the run, and says where. Removes the oldest ones if there are more than
    /// `limit`, which is 0 for no limit.
    pub(crate) fn save<M: Module>(
        &self,
        peft: &PeftModel<M>,
        name: &str,
        folder: &Path,
        limit: usize,
    ) -> Result<PathBuf> {
        // Written under another name and moved when whole: a checkpoint that has its name can be resumed from.
        let partial = partial(folder, self.state.step);
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
        let (state, identity) = (self.state.clone(), self.identity.clone());
        let file = StateFile { state, identity, files: marks(&partial)? };
        let json = serde_json::to_string_pretty(&file).map_err(|error| PeftError::Invalid(error.to_string()))?;
        write_atomically(partial.join(STATE_FILE), json.as_bytes())?;
        let whole = whole(folder, self.state.step);
        if whole.exists() {
            remove(&whole)?;
        }
        fs::rename(&partial, &whole).map_err(PeftError::io("write", &whole))?;
        remove_oldest(folder, limit)?;
        Ok(whole)
    }
}

/// A checkpoint in the folder of a run, whole.
pub(crate) struct Checkpoint {
    path: PathBuf,
    file: StateFile,
}

impl Checkpoint {
    /// Opens one.
    ///
    /// # Errors
    /// If a file is missing, or is not as it was written.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let state = path.join(STATE_FILE);
        let text = read_bytes(&state)?;
        let advice = "remove the checkpoint and go on from an earlier one, or start anew";
        let file: StateFile = serde_json::from_slice(&text)
            .map_err(|error| PeftError::bad_file(&state, format!("it is no state of a run ({error}): {advice}")))?;
        for (name, written) in &file.files {
            let damaged = path.join(name);
            if file_mark(&damaged)? != *written {
                return Err(PeftError::bad_file(&damaged, format!("it is not what was written: {advice}")));
            }
        }
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// What differs between the run that wrote it and one that is `identity`, and what of that may.
    ///
    /// # Errors
    /// If something differs that may not.
    pub(crate) fn compare(&self, identity: &Map<String, Value>) -> Result<Vec<String>> {
        // Through JSON as the other one went: its reader may miss the last bit of a number.
        let text = serde_json::to_string(identity).map_err(|error| PeftError::Invalid(error.to_string()))?;
        let identity = serde_json::from_str(&text).map_err(|error| PeftError::Invalid(error.to_string()))?;
        let Differences { allowed, refused } = differences(&self.file.identity, &identity);
        if refused.is_empty() {
            return Ok(allowed);
        }
        let reason = format!(
            "it was written with other settings: {}; resume with the same ones, or start in a new folder",
            refused.join(", ")
        );
        Err(PeftError::bad_file(&self.path, reason))
    }

    /// Puts the adapter back, and the state of what changes it after every step.
    ///
    /// # Errors
    /// If they do not fit.
    pub(crate) fn restore<M: Module>(
        &self,
        peft: &mut PeftModel<M>,
        name: &str,
        hook: Option<&mut Box<dyn AfterStep>>,
    ) -> Result<TrainerState> {
        match hook {
            Some(hook) => {
                let (tensors, own) = adapter_and_hook(&self.path.join(HOOK_FILE))?;
                peft.assign_adapter(name, tensors)?;
                hook.restore(own)?;
                peft.set_config(name, hook.config())?;
            }
            None => peft.restore_adapter(name, &AdapterFolder::open(&self.path)?)?,
        }
        Ok(self.file.state.clone())
    }

    /// The best adapter so far: a resumed run may never be as good again.
    ///
    /// # Errors
    /// If its file is not one of this adapter.
    pub(crate) fn best<M: Module>(&self, model: &M, name: &str) -> Result<Option<BestAdapter>> {
        if !self.file.files.contains_key(BEST_FILE) {
            return Ok(None);
        }
        let path = self.path.join(BEST_FILE);
        let (tensors, hook) = adapter_and_hook(&path)?;
        let shapes = tensors.iter().map(|it| (it.key.as_str(), it.data.shape().as_slice()));
        let report = state::compare(model, name, shapes);
        match report.is_clean() {
            true => Ok(Some(BestAdapter { tensors, hook })),
            false => Err(PeftError::DoesNotFit { what: path.display().to_string(), report }),
        }
    }

    /// An optimizer for the same parameters, with its state.
    pub(crate) fn optimizer(&self, optimizer: ModuleOptimizer, device: &Device) -> Result<ModuleOptimizer> {
        let path = self.path.join(OPTIMIZER_FILE);
        let bytes = fs::read(&path).map_err(PeftError::io("read", &path))?;
        let loaded = placed::load(optimizer, Bytes::from_bytes_vec(bytes), device);
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

/// Size and hash of every file of a folder.
fn marks(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut marks = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(PeftError::io("read", folder))? {
        let path = entry.map_err(PeftError::io("read", folder))?.path();
        if let Some(name) = path.file_name().and_then(|it| it.to_str()).filter(|_| path.is_file()) {
            marks.insert(name.to_owned(), file_mark(&path)?);
        }
    }
    Ok(marks)
}

fn remove_oldest(folder: &Path, limit: usize) -> Result<()> {
    let found = checkpoints(folder)?;
    let excess = if limit == 0 { 0 } else { found.len().saturating_sub(limit) };
    found.iter().take(excess).try_for_each(|(_, path)| remove(path))
}
