//! New tokens: a larger embedding matrix and head, and tables that an adapter folder brings along.
//!
//! The reference resizes the base model before adapters are added, and writes resized tables into every adapter folder
//! (`save_embedding_layers`, `peft/utils/save_and_load.py`). The model that is resized here is a new value, as always:
//! clones of the base keep theirs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use serde_json::Value;

use crate::adapter::slots;
use crate::error::{PeftError, Result};
use crate::files::checkpoint::Stored;
use crate::files::folder::AdapterFolder;
use crate::model::peft_model::PeftModel;
use crate::model::state;
use crate::model::values::{HALF_PRECISION, is_close, value_of};
use crate::ops;
use crate::plan::replacement::is_replacement;
use crate::spec::{
    KEY_PREFIX, MapParams, ModelSpec, ParamKind, ParamSpec, PathStack, WRAPPED, WRAPPED_ROWS, map_params,
};

impl<M: Module> PeftModel<M> {
    /// Gives the embedding matrix, and a head and its bias that have as many rows, another number of rows. New ones are
    /// the mean of the old ones; the reference adds noise of a variance of 1e-9 to it.
    ///
    /// # Errors
    /// If there are adapters already, which were made for the old size, or the model has no table.
    pub fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        crate::config::fields::check_positive("vocabulary", rows)?;
        self.check_no_adapters()?;
        let tables = Tables::of(self.spec())?;
        let resized = |path: &str, value: TensorData| {
            let shape = value.shape().as_slice().to_vec();
            // The bias of BART's logits is a buffer, `[1, rows]`, whose new elements are zero.
            let is_buffer = tables.buffers.iter().any(|it| it.path() == path);
            let (count, width) = if is_buffer { (shape[1], 1) } else { (shape[0], shape[1..].iter().product()) };
            let old = value.convert::<f32>();
            let old = old.as_slice::<f32>().expect("converted to f32");
            let mean = |column: usize| {
                let sum: f64 = (0..count).map(|row| f64::from(old[row * width + column])).sum();
                if is_buffer { 0.0 } else { (sum / count as f64) as f32 }
            };
            let mean: Vec<f32> = (0..width).map(mean).collect();
            let new = (0..rows * width).map(|at| old.get(at).copied().unwrap_or(mean[at % width])).collect();
            let shape = if is_buffer { vec![1, rows] } else { [&[rows], &shape[1..]].concat() };
            TensorData::new::<f32, _>(new, shape)
        };
        let paths: Vec<String> = tables.all().map(|it| it.path()).collect();
        self.change_base(&paths, |path, value| Ok(resized(path, value)))
    }

    /// Takes the embedding matrices that a folder brings along, as the reference does when it loads one: those of a
    /// vocabulary that was resized for the adapter. True if there were any that the base does not have already.
    ///
    /// # Errors
    /// If there are adapters already, or a tensor cannot be read.
    pub fn adopt_tables(&mut self, folder: &AdapterFolder) -> Result<bool> {
        let Ok(tables) = Tables::of(self.spec()) else { return Ok(false) };
        let mut brought = HashMap::new();
        for param in tables.all() {
            let is_whole = is_saved_whole(&folder.config, param);
            let wrappers: &[&str] = if is_whole { &[".original_module", ""] } else { &["", WRAPPED, WRAPPED_ROWS] };
            let mut keys = wrappers.iter().map(|it| format!("{KEY_PREFIX}{}{it}.{}", param.module, param.name));
            let own = keys.find(|it| folder.tensors.shape(it).is_some());
            let Some(key) = own.or_else(|| decoder_bias(folder, param)) else { continue };
            // A table that is trained whole has other numbers anyway.
            if is_whole && folder.tensors.shape(&key) == Some(&param.shape_on_disk()[..]) {
                continue;
            }
            let data = folder.tensors.floats(&key)?;
            if data.shape().rank() == param.shape.len()
                && !is_close(&data, &value_of(self.model(), param), HALF_PRECISION)
            {
                brought.insert(param.path(), data);
            }
        }
        if brought.is_empty() {
            return Ok(false);
        }
        self.check_no_adapters()?;
        let rows = brought.get(&tables.table.path()).map_or(tables.table.shape[0], |it| it.shape()[0]);
        let mut paths: Vec<String> = brought.keys().cloned().collect();
        for param in tables.all().filter(|it| !brought.contains_key(&it.path())) {
            if rows == tables.table.shape[0] {
                break;
            }
            if param.shape.len() > 1 && param.kind != ParamKind::Buffer {
                let reason = format!(
                    "it brings a `{}` of {rows} rows, and no `{}` that goes with it",
                    tables.table.path(),
                    param.path()
                );
                return Err(PeftError::bad_file(&folder.path, reason));
            }
            paths.push(param.path());
        }
        self.change_base(&paths, |path, old| {
            Ok(brought.get(path).cloned().unwrap_or_else(|| resized_bias(old, rows)))
        })?;
        Ok(true)
    }

    fn check_no_adapters(&self) -> Result<()> {
        match self.adapters().keys().next() {
            Some(name) => Err(PeftError::Invalid(format!(
                "the vocabulary cannot change under the adapter `{name}`: change it before adapters are added"
            ))),
            None => Ok(()),
        }
    }

    fn change_base(&mut self, paths: &[String], change: impl Fn(&str, TensorData) -> Result<TensorData>) -> Result<()> {
        struct Change<'a, F> {
            paths: &'a [String],
            change: F,
            error: Option<PeftError>,
        }
        impl<F: Fn(&str, TensorData) -> Result<TensorData>> MapParams for Change<'_, F> {
            fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let path = at.path();
                if at.in_adapters() || !self.paths.contains(&path) {
                    return param;
                }
                let (value, device) = (ops::to_f32(param.base()), param.lazy_device());
                match (self.change)(&path, value.to_data()) {
                    Ok(data) => {
                        let is_trained = param.is_require_grad();
                        Param::initialized(param.id, Tensor::from_data(data, &device)).set_require_grad(is_trained)
                    }
                    Err(error) => {
                        self.error.get_or_insert(error);
                        param
                    }
                }
            }
        }
        let mut mapper = Change { paths, change, error: None };
        let model = map_params(self.model().clone(), &mut mapper);
        if let Some(error) = mapper.error {
            return Err(error);
        }
        let spec = self.spec().with_parameters_of(&model);
        self.replace_base(model, spec);
        Ok(())
    }

    /// The tables that the folder of an adapter holds beside its own tensors.
    pub(crate) fn tables_to_save(&self, name: &str) -> Vec<Stored> {
        let Ok(tables) = Tables::of(self.spec()) else { return Vec::new() };
        let resized = || {
            let config = Path::new(self.spec().base_name.as_deref()?).join("config.json");
            let config: Value = serde_json::from_str(&std::fs::read_to_string(config).ok()?).ok()?;
            config.get("vocab_size")?.as_u64()
        };
        let rows = tables.table.shape[0] as u64;
        if !self.save_embedding_layers.unwrap_or_else(|| resized().is_some_and(|it| it != rows)) {
            return Vec::new();
        }
        let sets = slots::collect(self.model());
        let parameters = state::parameters(self.model(), name);
        let stored = |param: &Arc<ParamSpec>| {
            let set = sets.iter().find(|it| it.param().path() == param.path());
            let is_whole = set.and_then(|it| it.get(name)).is_some_and(|it| is_replacement(it, param.shape.len()));
            let has_rows =
                parameters.iter().any(|it| it.param.path() == param.path() && it.key.contains(".token_adapter."));
            let inner = match set.is_some_and(|it| it.get(name).is_some()) {
                true if has_rows => WRAPPED_ROWS,
                true => WRAPPED,
                false => "",
            };
            let key = format!("{KEY_PREFIX}{}{inner}.{}", param.module, param.name);
            (!is_whole).then(|| Stored { key, data: value_of(self.model(), param) })
        };
        [&tables.table].into_iter().chain(&tables.heads).filter_map(stored).collect()
    }
}

/// The parameters of a model that have a row for every token.
struct Tables {
    table: Arc<ParamSpec>,
    /// Weight and bias of a head of its own.
    heads: Vec<Arc<ParamSpec>>,
    buffers: Vec<Arc<ParamSpec>>,
}

impl Tables {
    fn of(spec: &ModelSpec) -> Result<Self> {
        let table = spec
            .token_table()
            .cloned()
            .ok_or_else(|| PeftError::Invalid("the model has no embedding matrix whose rows could be tokens".into()))?;
        let rows = table.shape[0];
        // The bias of a masked language model's head lies beside the layer that is the head.
        let is_beside = |it: &ParamSpec| it.name == "bias" && spec.heads.contains(&format!("{}.decoder", it.module));
        let of_words = |it: &&Arc<ParamSpec>| {
            (spec.heads.contains(&it.module) || is_beside(it)) && it.shape.first() == Some(&rows)
        };
        let heads = spec.iter().filter(of_words).cloned().collect();
        let is_bias = |it: &&Arc<ParamSpec>| it.kind == ParamKind::Buffer && it.shape == [1, rows];
        Ok(Self { table, heads, buffers: spec.iter().filter(is_bias).cloned().collect() })
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ParamSpec>> {
        [&self.table].into_iter().chain(&self.heads).chain(&self.buffers)
    }
}

/// The key of a masked language model's bias, which the reference saves as that of the decoder beside it.
fn decoder_bias(folder: &AdapterFolder, param: &ParamSpec) -> Option<String> {
    let decoder = format!("{KEY_PREFIX}{}.decoder", param.module);
    let mut keys = ["", WRAPPED, WRAPPED_ROWS].iter().map(|it| format!("{decoder}{it}.bias"));
    keys.find(|it| param.name == "bias" && folder.tensors.shape(it).is_some())
}

/// A bias for another number of words: new ones have 0, as in the reference.
fn resized_bias(old: TensorData, rows: usize) -> TensorData {
    let mut shape = old.shape().as_slice().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = rows;
    }
    let values: Vec<f32> = old.iter::<f32>().chain(std::iter::repeat(0.0)).take(rows).collect();
    TensorData::new(values, shape)
}

/// Whether a folder trains the module whole, so that its tensor is the adapter's own.
fn is_saved_whole(config: &serde_json::Map<String, Value>, param: &ParamSpec) -> bool {
    let names = config.get("modules_to_save").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).any(|it| crate::plan::targets::is_saved_whole(&param.module, it))
}
