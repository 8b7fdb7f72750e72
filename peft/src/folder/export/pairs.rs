//! A LoRA folder as pairs of factors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_core::files::checkpoint::{Dtype, FloatType};
use peft_core::model::state::KEY_PREFIX;
use peft_core::{AdapterFolder, CONFIG_FILE, Patterns, PeftError, Result};
use peft_lora::LoraConfig;
use serde_json::{Map, Value};

/// What to do about a number that cannot be written.
pub(super) const INSPECT: &str = "look at the adapter with `peft inspect`";

/// What a pair belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Linear,
    Conv,
    Table,
}

/// The factors of one layer.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) module: String,
    pub(super) kind: Kind,
    pub(super) rank: usize,
    /// `[rank, in…]`, row by row.
    pub(super) a: Vec<f32>,
    /// `[out, rank]`, row by row.
    pub(super) b: Vec<f32>,
    /// Axes of `A` behind the rank: `[in]`, and the kernel of a convolution.
    pub(super) inner: Vec<usize>,
    pub(super) out: usize,
    /// What the product is multiplied with.
    pub(super) scale: f64,
    /// DoRA's magnitudes.
    pub(super) magnitude: Option<TensorData>,
    /// The bias of `B`.
    pub(super) bias: Option<Vec<f32>>,
}

impl Pair {
    /// Factors of a rank that may be higher, `lora_B` times `factor`: `A` `[rank, in…]` and `B` `[out, rank]`.
    pub(super) fn padded(&self, rank: usize, factor: f64) -> (Vec<f32>, Vec<f32>) {
        let width: usize = self.inner.iter().product();
        let mut a = self.a.clone();
        a.resize(rank * width, 0.0);
        let mut b = vec![0.0; self.out * rank];
        for (wide, narrow) in b.chunks_mut(rank).zip(self.b.chunks(self.rank)) {
            for (to, from) in wide.iter_mut().zip(narrow) {
                *to = scaled(*from, factor);
            }
        }
        (a, b)
    }

    /// The same factors with zeros in them, for another layer.
    pub(super) fn nothing(&self, module: String) -> Self {
        let zeros = |it: &[f32]| vec![0.0; it.len()];
        Self { module, a: zeros(&self.a), b: zeros(&self.b), ..self.clone() }
    }

    /// Shape of `A` at a rank.
    pub(super) fn shape_a(&self, rank: usize) -> Vec<usize> {
        [&[rank], self.inner.as_slice()].concat()
    }

    /// Shape of `B` at a rank.
    pub(super) fn shape_b(&self, rank: usize) -> Vec<usize> {
        [&[self.out, rank], vec![1; self.inner.len() - 1].as_slice()].concat()
    }
}

/// Multiplied in double precision: a factor of 1 changes nothing, any other rounds once.
pub(super) fn scaled(value: f32, factor: f64) -> f32 {
    (f64::from(value) * factor) as f32
}

/// A folder, taken apart.
#[derive(Debug)]
pub(super) struct Pairs {
    /// The file of the tensors.
    file: PathBuf,
    pub(super) config: LoraConfig,
    pub(super) json: Map<String, Value>,
    pub(super) pairs: Vec<Pair>,
    /// Tensors that belong to no pair.
    pub(super) rest: Vec<String>,
    /// What the factors are stored in, and are written in again. Single precision if they differ.
    pub(super) float: FloatType,
}

impl Pairs {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let folder = AdapterFolder::open(path)?;
        let file = path.join(CONFIG_FILE);
        let Some(kind) = folder.config.get("peft_type").and_then(Value::as_str) else {
            return Err(PeftError::bad_file(file, "it names no `peft_type`"));
        };
        if kind != peft_lora::PEFT_TYPE {
            let reason = "other programs read LoRA only: give a rank (--rank) and the base model (--model) to convert \
                it first, or merge it into the base";
            return Err(PeftError::unsupported(format!("exporting {kind}"), reason));
        }
        let config = LoraConfig::parse(folder.config.clone()).map_err(|it| it.in_file(&file))?;
        if config.counts_from_its_start() {
            let reason = format!(
                "it counts from where it started, which the original base does not have: give a rank (--rank {}, which \
                 is exact) and the base model (--model) to convert it",
                2 * config.r
            );
            let start = config.init_lora_weights.as_str().unwrap_or("this start");
            return Err(PeftError::unsupported(format!("exporting init_lora_weights = {start}"), reason));
        }
        if config.invocation().is_some() {
            let reason = "the form has no place for the tokens that it waits for: use the folder itself, where a program \
                          reads it, or train without alora_invocation_tokens";
            return Err(PeftError::unsupported("exporting an activated LoRA", reason));
        }
        if config.layer_replication.as_ref().is_some_and(|it| !it.is_empty()) {
            let reason = "other programs run the base's layers once each: merge the adapter into the base";
            return Err(PeftError::unsupported("exporting `layer_replication`", reason));
        }
        if config.target_parameters.as_ref().is_some_and(|it| !it.is_empty()) {
            let reason = "other programs read LoRA on layers: give a rank (--rank) and the base model (--model) to \
                          convert it first, or merge it into the base";
            return Err(PeftError::unsupported("exporting `target_parameters`", reason));
        }
        let float = float_of(&folder);
        let (file, json) = (folder.tensors.path().to_path_buf(), folder.config.clone());
        let mut pairs = Self { file, json, config, pairs: Vec::new(), rest: Vec::new(), float };
        pairs.collect(&folder)?;
        if pairs.pairs.is_empty() {
            return Err(PeftError::bad_file(path, "it holds no pair of factors"));
        }
        Ok(pairs)
    }

    fn collect(&mut self, folder: &AdapterFolder) -> Result<()> {
        let ranks = Patterns::new("rank_pattern", &self.config.rank_pattern)?;
        let alphas = Patterns::new("alpha_pattern", &self.config.alpha_pattern)?;
        let mut keys: BTreeMap<String, ()> = folder.tensors.keys().into_iter().map(|key| (key, ())).collect();
        let mut take = |key: &str| keys.remove(key).map(|()| folder.tensors.floats(key)).transpose();
        for key in folder.tensors.keys() {
            let Some(path) = key.strip_prefix(KEY_PREFIX) else { continue };
            let linear = path.strip_suffix(".lora_A.weight");
            let table = path.strip_suffix(".lora_embedding_A");
            let Some(module) = linear.or(table) else { continue };
            let partner = match linear {
                Some(_) => format!("{KEY_PREFIX}{module}.lora_B.weight"),
                None => format!("{KEY_PREFIX}{module}.lora_embedding_B"),
            };
            let (Some(a), Some(b)) = (take(&key)?, take(&partner)?) else {
                return Err(PeftError::bad_file(&folder.path, format!("`{partner}` is missing")));
            };
            let (a_shape, b_shape) = (a.shape().as_slice().to_vec(), b.shape().as_slice().to_vec());
            let ones = b_shape.get(2..).is_some_and(|it| it.iter().all(|axis| *axis == 1));
            if a_shape.len() < 2 || b_shape.len() != a_shape.len() || a_shape[0] != b_shape[1] || !ones {
                let reason = format!("`{key}` {a_shape:?} and `{partner}` {b_shape:?} are no pair");
                return Err(PeftError::bad_file(&folder.path, reason));
            }
            let rank = a_shape[0];
            let told = ranks.get(module)?.copied().unwrap_or(self.config.r);
            if rank != told {
                let reason = format!("`{key}` has the rank {rank}, but the configuration says {told}");
                return Err(PeftError::bad_file(&folder.path, reason));
            }
            let alpha = alphas.get(module)?.copied().unwrap_or(self.config.lora_alpha);
            let root = if self.config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            self.pairs.push(Pair {
                kind: match (table, a_shape.len()) {
                    (Some(_), _) => Kind::Table,
                    (None, 2) => Kind::Linear,
                    _ => Kind::Conv,
                },
                rank,
                a: a.iter::<f32>().collect(),
                b: b.iter::<f32>().collect(),
                inner: a_shape[1..].to_vec(),
                out: b_shape[0],
                scale: alpha / root,
                magnitude: take(&format!("{KEY_PREFIX}{module}.lora_magnitude_vector"))?,
                bias: take(&format!("{KEY_PREFIX}{module}.lora_B.bias"))?.map(|it| it.iter::<f32>().collect()),
                module: module.to_owned(),
            });
        }
        // A copy of the frozen table that is beside LoRA on it.
        self.rest = keys.into_keys().filter(|key| !key.ends_with(".base_layer.weight")).collect();
        Ok(())
    }

    pub(super) fn largest_rank(&self) -> usize {
        self.pairs.iter().map(|it| it.rank).max().unwrap_or(1)
    }

    /// Refuses what no form but PEFT's own has, and what `form` has not.
    pub(super) fn refuse(&self, form: &str, allowed: Allowed) -> Result<()> {
        let refuse = |what: String, reason: &str| {
            Err(PeftError::unsupported(format!("{what} of {} in {form}", self.file.display()), reason))
        };
        let again = "merge the adapter into the base, or convert it to plain LoRA (--rank, --model)";
        if let Some(key) = self.rest.first() {
            let more = if self.rest.len() > 1 { format!(" and {} more", self.rest.len() - 1) } else { String::new() };
            let next = "it is trained whole, which the form cannot say: merge the adapter into the base";
            return refuse(format!("`{key}`{more}"), next);
        }
        for pair in &self.pairs {
            let module = &pair.module;
            if pair.kind == Kind::Table {
                let next = "readers disagree about tables, above all where one is the head too: merge the adapter \
                    into the base, or train without the table";
                return refuse(format!("LoRA on the table `{module}`"), next);
            }
            if pair.kind == Kind::Conv && !allowed.convolutions {
                return refuse(format!("LoRA on the convolution `{module}`"), "merge the adapter into the base");
            }
            if pair.magnitude.is_some() && !allowed.magnitudes {
                return refuse(format!("DoRA on `{module}`"), again);
            }
            if pair.bias.is_some() && !allowed.biases {
                return refuse(format!("lora_bias on `{module}`"), "merge the adapter into the base");
            }
        }
        Ok(())
    }
}

/// What all tensors of a folder are stored in.
fn float_of(folder: &AdapterFolder) -> FloatType {
    let dtypes: BTreeSet<FloatType> = folder
        .tensors
        .keys()
        .iter()
        .filter_map(|key| match folder.tensors.dtype(key)? {
            Dtype::F16 => Some(FloatType::F16),
            Dtype::BF16 => Some(FloatType::BF16),
            _ => Some(FloatType::F32),
        })
        .collect();
    dtypes.first().copied().filter(|_| dtypes.len() == 1).unwrap_or_default()
}

/// What a form has beyond factors of linear layers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Allowed {
    pub(super) convolutions: bool,
    pub(super) magnitudes: bool,
    pub(super) biases: bool,
}
