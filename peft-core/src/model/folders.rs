//! Adapters that come from folders and go into them.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Gradients;
use serde_json::{Map, Value};

use crate::adapter::slots;
use crate::config::peft_config::{MethodRegistry, PeftConfig};
use crate::error::{LoadReport, PeftError, Result};
use crate::files::dtype::{Dtype, FloatType};
use crate::files::folder::{AdapterFolder, CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE, write_adapter};
use crate::files::safetensors::{Stored, TensorFile};
use crate::model::add::Planned;
use crate::model::peft_model::{AdapterInfo, DEFAULT_ADAPTER, PeftModel, REFERENCE_VERSION, check_together};
use crate::model::state;
use crate::model::values::{HALF_PRECISION, is_close, value_of};
use crate::spec::{ModelSpec, ParamKind, ParamSpec, base_reference, frozen_path};

impl<M: Module> PeftModel<M> {
    /// Loads an adapter folder and adds the adapter, active beside those that are active already.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshapen, or anything else does not fit; then nothing has changed.
    pub fn load_adapter(&mut self, folder: impl AsRef<Path>, name: &str, methods: &MethodRegistry) -> Result<()> {
        let folder = AdapterFolder::open(folder)?.in_names_of(&self.spec)?;
        self.check_free(name)?;
        let file = folder.path.join(CONFIG_FILE);
        let config = methods.parse(folder.config.clone()).map_err(|it| it.in_file(&file))?;
        let planned = self.planned(name, config.as_ref()).map_err(|it| it.in_file(&file))?;
        let Planned { model, spec, mut plan } = planned;
        let spec = spec.unwrap_or_else(|| self.spec.clone());
        if folder.encoder.is_none() {
            plan = plan.without_encoders();
        }
        let model = plan.apply(model, name, 0, &self.device());
        let model = filled(model, &spec, name, &folder, config.as_ref())?;
        let wrong = slots::collect(&model).iter().find_map(|set| set.get(name)?.check(set.param()).err());
        if let Some(reason) = wrong {
            return Err(PeftError::bad_file(&folder.path, reason));
        }
        let mut active = self.active.clone();
        active.push(name.to_owned());
        check_together(&model, &active)?;
        self.model = slots::edit(model, |set| {
            set.map_adapters(|it, adapter| if it == name { adapter.set_trainable(true) } else { adapter })
        });
        self.spec = spec;
        let info = AdapterInfo { config, plan, trainable: true, labels: folder.labels, made_here: false };
        self.adapters.insert(name.to_owned(), info);
        self.set_active(&active)
    }

    /// Overwrites the tensors of an adapter with those of a folder that [`PeftModel::save_adapter`] wrote for it.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshapen; then nothing has changed.
    pub fn restore_adapter(&mut self, name: &str, folder: &AdapterFolder) -> Result<()> {
        self.check_known(name)?;
        let config = self.adapters[name].config.as_ref();
        if let Some(tensors) = config.read_back(&folder.tensors)? {
            return self.assign_adapter(name, tensors);
        }
        self.model = filled(self.model.clone(), &self.spec, name, folder, config)?;
        Ok(())
    }

    /// The tensors of an adapter, keyed as in its file.
    pub fn adapter_tensors(&self, name: &str) -> Result<Vec<Stored>> {
        self.check_known(name)?;
        Ok(state::tensors(&self.model, name))
    }

    /// Overwrites tensors of an adapter; every key of the adapter must be there.
    pub fn assign_adapter(&mut self, name: &str, tensors: Vec<Stored>) -> Result<()> {
        self.check_known(name)?;
        let shapes = tensors.iter().map(|it| (it.key.as_str(), it.data.shape().as_slice()));
        let report: LoadReport = state::compare(&self.model, name, shapes);
        if !report.is_clean() {
            return Err(PeftError::DoesNotFit { what: format!("state of adapter `{name}`"), report });
        }
        let values = tensors.into_iter().map(|it| (it.key, it.data)).collect();
        self.model = state::assign(self.model.clone(), name, values);
        Ok(())
    }

    /// The gradients of an adapter, keyed as its tensors.
    pub fn adapter_gradients(&self, name: &str, gradients: &Gradients) -> Result<Vec<Stored>> {
        self.check_known(name)?;
        Ok(state::gradients(&self.model, name, gradients))
    }

    /// The adapter's configuration as `adapter_config.json` holds it.
    pub fn adapter_config(&self, name: &str) -> Result<Map<String, Value>> {
        self.check_known(name)?;
        self.described(name, self.adapters[name].config.to_json()?)
    }

    fn described(&self, name: &str, mut json: Map<String, Value>) -> Result<Map<String, Value>> {
        let AdapterInfo { config, plan, made_here, .. } = &self.adapters[name];
        for (field, value) in &plan.derived {
            if json.get(field).is_none_or(Value::is_null) {
                json.insert(field.clone(), value.clone());
            }
        }
        json.insert("peft_type".into(), config.peft_type().into());
        json.insert("inference_mode".into(), true.into());
        json.insert("peft_version".into(), REFERENCE_VERSION.into());
        // A configuration may be a template that names the base of another adapter.
        if *made_here && self.spec.base_name.is_some() {
            json.insert("base_model_name_or_path".into(), Value::Null);
            json.insert("revision".into(), Value::Null);
        }
        let (base, revision) = self.spec.base_name.as_deref().map(base_reference).unzip();
        let task_type = self.spec.task_type.as_deref();
        // A revision is one of the base that it is written with.
        let revision = revision.flatten().filter(|_| json.get("base_model_name_or_path").is_none_or(Value::is_null));
        for (field, value) in [("base_model_name_or_path", base), ("task_type", task_type), ("revision", revision)] {
            if json.get(field).is_none_or(Value::is_null) {
                json.insert(field.into(), value.into());
            }
        }
        json.entry("auto_mapping").or_insert(Value::Null);
        Ok(json)
    }

    /// Writes the folder of the adapter [`DEFAULT_ADAPTER`], or of the only one there is. PEFT reads it.
    ///
    /// # Errors
    /// If there are several adapters with other names, or none, or as [`PeftModel::save_adapter`].
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let names: Vec<&str> = self.adapters.keys().map(String::as_str).collect();
        let name = match names[..] {
            [only] => only,
            _ if names.contains(&DEFAULT_ADAPTER) => DEFAULT_ADAPTER,
            [] => return Err(PeftError::AdapterName("there is no adapter to save: add or load one first".into())),
            _ => {
                let reason = format!(
                    "there are several adapters, {}: save one of them by its name with `save_adapter`",
                    names.join(", ")
                );
                return Err(PeftError::AdapterName(reason));
            }
        };
        self.save_adapter(folder, name)
    }

    /// Writes the folder of an adapter. PEFT reads it.
    ///
    /// # Errors
    /// If a value is not finite or the disk says no; a folder that was there stays whole.
    pub fn save_adapter(&self, folder: impl AsRef<Path>, name: &str) -> Result<()> {
        self.check_known(name)?;
        let config = self.described(name, self.adapters[name].config.to_file_json()?)?;
        let mut saved = self.adapters[name].config.to_file(state::saved(&self.model, name));
        saved.extend(self.tables_to_save(name));
        let encoder = state::encoders(&self.model, name).1;
        write_adapter(
            folder.as_ref(),
            &config,
            saved,
            encoder,
            FloatType::F32,
            Some(self.adapters[name].labels.as_ref()),
        )
    }
}

/// Refuses integers in place of floats: they are what was left when something cut the numbers off.
fn check_dtypes<M: Module>(model: &M, name: &str, rows: &[(String, &TensorFile)]) -> Result<()> {
    let is_float = |it: &Dtype| matches!(it, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16);
    let integers = rows.iter().filter_map(|(key, file)| Some((key, file, file.dtype(key).filter(|it| !is_float(it))?)));
    let integers: Vec<_> = integers.collect();
    // Hardly any file has one, and to look at the adapter's own copies all of it.
    if integers.is_empty() {
        return Ok(());
    }
    let own = state::tensors(model, name);
    let wants_floats = |key: &str| own.iter().any(|it| it.key == key && it.data.dtype().is_float());
    match integers.into_iter().find(|(key, ..)| wants_floats(key)) {
        Some((key, file, dtype)) => {
            Err(PeftError::bad_file(file.path(), format!("`{key}` is stored as {dtype:?}, expected floats")))
        }
        None => Ok(()),
    }
}

/// A model with the values of a folder in the adapter `name`.
fn filled<M: Module>(
    model: M,
    spec: &ModelSpec,
    name: &str,
    folder: &AdapterFolder,
    config: &dyn PeftConfig,
) -> Result<M> {
    let made: Vec<String> = state::encoders(&model, name).0.into_iter().map(|it| it.key).collect();
    let mut rows: Vec<(String, &TensorFile)> = Vec::new();
    for file in [Some(&folder.tensors), folder.encoder.as_ref()].into_iter().flatten() {
        rows.extend(file.keys().into_iter().filter(|key| !made.contains(key)).map(|key| (key, file)));
    }
    check_dtypes(&model, name, &rows)?;
    let shapes = rows.iter().map(|(key, file)| (key.as_str(), file.shape(key).unwrap_or(&[])));
    let mut report = state::compare(&model, name, shapes);
    report.missing.extend(made.into_iter().filter(|key| folder.tensors.shape(key).is_none()));
    // The reference adds the frozen table when an embedding is a target, or when the vocabulary was resized.
    report.unexpected.retain(|key| !folder.is_copy(key, spec) && !config.passes_over(key));
    for (key, file) in &rows {
        let Some(path) = frozen_path(key) else { continue };
        let holds_words = |it: &ParamSpec| it.kind == ParamKind::Embedding || spec.heads.contains(&it.module);
        let Some(param) = spec.get(&path).filter(|it| holds_words(it)) else { continue };
        if state::has_key(&model, name, key) {
            continue;
        }
        let wanted = param.shape_on_disk();
        if file.shape(key) != Some(&wanted[..])
            || !is_close(&file.floats(key)?, &value_of(&model, param), HALF_PRECISION)
        {
            let reason = format!(
                "holds another `{path}` than the base has, as for a vocabulary that was resized: take it with \
                 `adopt_tables` before adapters are added"
            );
            return Err(PeftError::bad_file(&folder.path, reason));
        }
    }
    if !report.is_clean() {
        return Err(PeftError::DoesNotFit { what: format!("adapter {}", folder.path.display()), report });
    }
    let values = rows.into_iter().map(|(key, file)| Ok((key.clone(), file.floats(&key)?)));
    let model = state::assign(model, name, values.collect::<Result<HashMap<_, _>>>()?);
    for Stored { key, data } in state::encoders(&model, name).0 {
        if !is_close(&data, &folder.tensors.floats(&key)?, 1e-3) {
            let reason = format!(
                "{ENCODER_FILE} does not give the `{key}` of {WEIGHTS_FILE}: they are of two adapters; without the \
                 first the prompt loads as it is"
            );
            return Err(PeftError::bad_file(&folder.path, reason));
        }
    }
    Ok(model)
}
