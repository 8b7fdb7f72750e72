//! EVA: `A` starts with the principal directions of what a layer is given, and layers whose input those explain best get
//! the ranks. Source: arXiv 2410.07170, `peft/tuners/lora/eva.py` and `peft/utils/incremental_pca.py`.
//!
//! The directions are those of an incremental principal component analysis, batch by batch, until every layer's have
//! stopped turning. The trained adapter is plain LoRA on an unchanged base.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use faer::Mat;
use indexmap::IndexMap;
use peft_core::forward::LinearBelow;
use peft_core::{Names, ParamKind, PeftError, PeftModel, Result, TorchGenerator};

use crate::lora::config::LoraConfig;
use crate::lora::data_init::calibration::{DataInit, InitialFactors, unseen, watched};
pub use crate::lora::data_init::config::EvaConfig;
use crate::lora::layers::Layer;
use crate::svd;

/// Above this `rho` is cut to what the largest side of the model allows.
const LARGE_RHO: f64 = 1000.0;

/// The configuration with ranks and factors from data, for [`PeftModel::add_adapter`].
///
/// `batches` are gone through again and again until the directions stand still. `forward` runs the model on one; what
/// it computes does not matter. `counted` says which of a batch's positions count, numbered as
/// `row · sequence + position`; those of padding, and with `use_label_mask` those without a label, should not. `None`
/// counts all.
///
/// Embeddings and convolutions start as LoRA does.
///
/// # Errors
/// If the configuration does not say `eva` or does not go with the model, there are no batches, or all are too small.
pub fn start<M: Module, B>(
    peft: &PeftModel<M>,
    config: LoraConfig,
    batches: impl Iterator<Item = B> + Clone,
    mut forward: impl FnMut(&M, &B),
    counted: impl Fn(&B) -> Option<Vec<usize>>,
) -> Result<LoraConfig> {
    if config.init_lora_weights != "eva" {
        return Err(PeftError::config("init_lora_weights", "must be `eva` for a start with EVA"));
    }
    let eva = config.eva_config.clone().unwrap_or_default();
    eva.check()?;
    let (layers, _) = config.layers(peft.spec())?;
    let (linear, others): (Vec<&Layer>, Vec<&Layer>) =
        layers.iter().partition(|it| matches!(it.param.kind, ParamKind::Linear(_)));
    let Some(first) = batches.clone().next() else {
        return Err(PeftError::Invalid("a start with EVA needs data: there are no batches".into()));
    };
    let widest = peft.spec().iter().flat_map(|it| it.shape.iter().copied()).max().unwrap_or(1);
    let rho = if eva.rho > LARGE_RHO { eva.rho.min((widest / config.r) as f64) } else { eva.rho };

    let state = Arc::new(Mutex::new(State { tau: eva.tau, ..State::default() }));
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let spec: Vec<_> = linear.iter().map(|it| it.param.clone()).collect();
    let into = Arc::clone(&state);
    let model = watched(peft, &spec, move |below, input| {
        into.lock().unwrap_or_else(PoisonError::into_inner).see(below, input);
    });
    let mut run = |batch: &B| -> Result<()> {
        lock().counted = counted(batch);
        forward(&model, batch);
        lock().error.take().map_or(Ok(()), Err)
    };

    // Layers that are given the same, as those of queries and keys, share one analysis.
    run(&first)?;
    let hashes = std::mem::take(&mut lock().hashes);
    let mut leaders: IndexMap<u64, Vec<&str>> = IndexMap::new();
    let mut components: HashMap<&str, usize> = HashMap::new();
    for layer in &linear {
        let module = layer.param.module.as_str();
        leaders.entry(*hashes.get(module).ok_or_else(|| unseen(module))?).or_default().push(module);
        components.insert(module, (layer.rank as f64 * rho).round_ties_even() as usize);
    }
    let mut led_by: IndexMap<&str, &str> = leaders.values().map(|it| (it[0], it[0])).collect();
    for group in leaders.values() {
        let most = group.iter().map(|it| components[it]).max().unwrap_or(0);
        for module in group {
            components.insert(module, most);
        }
    }
    for group in leaders.values() {
        led_by.extend(group[1..].iter().map(|it| (*it, group[0])));
    }
    for layer in &linear {
        let (module, d_in) = (layer.param.module.as_str(), layer.param.features().0);
        if components[module] > d_in {
            let reason = format!(
                "with rho gives `{module}` {} directions, but its input has {d_in}: lower one of them",
                components[module]
            );
            return Err(PeftError::config("r", reason));
        }
        if led_by[module] == module {
            lock().analyses.insert(module.to_owned(), Analysis::new(components[module]));
        }
    }

    let budget: usize = linear.iter().map(|it| it.rank).sum();
    let mut ranks: HashMap<&str, usize> = components.clone();
    let mut passes = batches.clone();
    let mut without_news = true;
    loop {
        let Some(batch) = passes.next() else {
            if std::mem::replace(&mut without_news, true) {
                let reason = "no batch has as many counted positions as `r` · rho: use larger ones or a lower rank";
                return Err(PeftError::config("eva_config", reason));
            }
            passes = batches.clone();
            continue;
        };
        if lock().settle(|module| ranks[module]) {
            break;
        }
        run(&batch)?;
        let state = lock();
        without_news &= !state.has_news;
        drop(state);
        lock().has_news = false;
        let state = lock();
        if state.analyses.values().all(|it| it.directions.is_some()) {
            ranks = share_out(&state.analyses, &led_by, &components, budget);
        }
    }

    let (state, device) = (lock(), peft.device().without_autodiff());
    let mut given = HashMap::new();
    let (mut targets, mut rank_pattern, mut alpha_pattern) = (Vec::new(), IndexMap::new(), IndexMap::new());
    for layer in linear.iter().chain(&others) {
        let module = layer.param.module.as_str();
        let is_linear = led_by.contains_key(module);
        let rank = if is_linear { ranks[module] } else { layer.rank };
        if rank == 0 {
            continue;
        }
        if is_linear {
            let a = state.analyses[led_by[module]].factor(rank, eva.whiten, &device);
            given.insert(module.to_owned(), InitialFactors { a, b: None, stays: false });
        }
        let adjusted = rank != layer.rank && eva.adjust_scaling_factors;
        let alpha = if adjusted { layer.alpha * rank as f64 / layer.rank as f64 } else { layer.alpha };
        targets.push(module.to_owned());
        if rank != config.r {
            rank_pattern.insert(module.to_owned(), rank);
        }
        if alpha != config.lora_alpha {
            alpha_pattern.insert(module.to_owned(), alpha);
        }
    }
    Ok(LoraConfig {
        data_init: Some(DataInit::new(given)),
        target_modules: Some(Names::List(targets)),
        // The targets are whole paths now; what chose them has done its work.
        exclude_modules: None,
        layers_to_transform: None,
        layers_pattern: None,
        rank_pattern,
        alpha_pattern,
        eva_config: Some(eva),
        ..config
    })
}

/// Ranks by how much of a layer's input each direction explains. Equal layers keep theirs in order, the leader first.
fn share_out<'a>(
    analyses: &HashMap<String, Analysis>,
    led_by: &IndexMap<&'a str, &'a str>,
    components: &HashMap<&'a str, usize>,
    budget: usize,
) -> HashMap<&'a str, usize> {
    let mut shares: Vec<(&str, f64)> = Vec::new();
    for (module, leader) in led_by {
        let explained = &analyses[*leader].explained;
        shares.extend(explained.iter().take(components[leader]).map(|it| (*module, *it)));
    }
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut ranks: HashMap<&str, usize> = led_by.keys().map(|it| (*it, 0)).collect();
    for (module, _) in shares.iter().take(budget) {
        *ranks.entry(module).or_default() += 1;
    }
    for (module, leader) in led_by {
        let (rank, leading) = (ranks[module], ranks[leader]);
        if leading < rank {
            ranks.insert(leader, rank);
            ranks.insert(module, leading);
        }
    }
    ranks
}

#[derive(Debug, Default)]
struct State {
    tau: f64,
    /// Positions of the current batch that count.
    counted: Option<Vec<usize>>,
    /// What the layers were given in the first forward; empty after it.
    hashes: HashMap<String, u64>,
    analyses: HashMap<String, Analysis>,
    has_news: bool,
    error: Option<PeftError>,
}

impl State {
    /// `input` is `[rows, in]`.
    fn see(&mut self, below: &LinearBelow<'_>, input: &Tensor<2>) {
        let module = &below.param().module;
        let is_first = self.analyses.is_empty();
        if !is_first && self.analyses.get(module).is_none_or(|it| it.is_settled) {
            return;
        }
        let [rows, d_in] = input.dims();
        let data = input.to_data().convert::<f32>();
        let values = data.as_slice::<f32>().expect("converted to f32");
        let counted: Vec<usize> = self.counted.clone().unwrap_or_else(|| (0..rows).collect());
        if let Some(beyond) = counted.iter().find(|it| **it >= rows) {
            let reason = format!(
                "position {beyond} counts, but `{module}` is given {rows}: EVA needs layers that see every position"
            );
            self.error.get_or_insert(PeftError::config("target_modules", reason));
            return;
        }
        if is_first {
            let mut hasher = DefaultHasher::new();
            counted
                .iter()
                .for_each(|row| values[row * d_in..][..d_in].iter().for_each(|it| it.to_bits().hash(&mut hasher)));
            self.hashes.entry(module.clone()).or_insert_with(|| hasher.finish());
            return;
        }
        let Some(analysis) = self.analyses.get_mut(module) else { return };
        let states = Mat::from_fn(counted.len(), d_in, |row, column| f64::from(values[counted[row] * d_in + column]));
        if !svd::is_finite(&states) {
            let reason = format!("an input of `{module}` is not finite: look at the calibration data");
            self.error.get_or_insert(PeftError::NotFinite(reason));
            return;
        }
        self.has_news |= analysis.fit(states, self.tau);
    }

    /// Whether all layers have found the directions that they need.
    fn settle(&mut self, rank: impl Fn(&str) -> usize) -> bool {
        for (module, analysis) in &mut self.analyses {
            analysis.is_settled = analysis.found.iter().take(rank(module)).all(|it| *it);
        }
        self.analyses.values().all(|it| it.is_settled)
    }
}

/// The principal directions of one layer's input, so far.
#[derive(Debug)]
struct Analysis {
    components: usize,
    seen: f64,
    mean: Vec<f64>,
    variance: Vec<f64>,
    /// Singular values, and directions as rows.
    directions: Option<(Vec<f64>, Mat<f64>)>,
    /// Share of the variance that each direction explains.
    explained: Vec<f64>,
    /// Which directions no longer turn.
    found: Vec<bool>,
    is_settled: bool,
}

impl Analysis {
    fn new(components: usize) -> Self {
        Self {
            components,
            seen: 0.0,
            mean: Vec::new(),
            variance: Vec::new(),
            directions: None,
            explained: Vec::new(),
            found: vec![false; components],
            is_settled: false,
        }
    }

    /// Takes in a batch, `[rows, in]`; false if it is too small, or its singular values do not converge.
    fn fit(&mut self, states: Mat<f64>, tau: f64) -> bool {
        let (rows, d_in) = (states.nrows(), states.ncols());
        if rows < self.components || rows == 0 {
            return false;
        }
        let count = rows as f64;
        let total = self.seen + count;
        let own: Vec<f64> = (0..d_in).map(|it| states.col(it).iter().sum::<f64>() / count).collect();
        let spread = |column: usize| states.col(column).iter().map(|it| (it - own[column]).powi(2)).sum::<f64>();
        let centred = Mat::from_fn(rows, d_in, |row, column| states[(row, column)] - own[column]);
        let (mean, variance, stacked) = match &self.directions {
            None => (own.clone(), (0..d_in).map(|it| spread(it) / total).collect::<Vec<f64>>(), centred),
            Some((values, directions)) => {
                let mean = (0..d_in).map(|it| (self.mean[it] * self.seen + own[it] * count) / total).collect();
                let between = |it: usize| (self.mean[it] - own[it]).powi(2) * self.seen * count / total;
                let variance = |it: usize| (self.variance[it] * self.seen + spread(it) + between(it)) / total;
                let correction = (self.seen / total * count).sqrt();
                let kept = values.len();
                let stacked = Mat::from_fn(kept + rows + 1, d_in, |row, column| {
                    if row < kept {
                        values[row] * directions[(row, column)]
                    } else if row < kept + rows {
                        centred[(row - kept, column)]
                    } else {
                        correction * (self.mean[column] - own[column])
                    }
                });
                (mean, (0..d_in).map(variance).collect(), stacked)
            }
        };
        let Some((values, directions)) = leading(&stacked, self.components, self.directions.is_none()) else {
            return false;
        };
        let whole = variance.iter().sum::<f64>() * total;
        self.explained = values.iter().map(|it| it * it / whole).collect();
        if let Some((_, before)) = &self.directions {
            let cosine = |at: usize| {
                let dot = |a: &Mat<f64>, b: &Mat<f64>| (0..d_in).map(|it| a[(at, it)] * b[(at, it)]).sum::<f64>();
                dot(&directions, before) / (dot(&directions, &directions) * dot(before, before)).sqrt().max(1e-8)
            };
            self.found = (0..self.components).map(|at| at < values.len() && cosine(at) >= tau).collect();
        }
        (self.seen, self.mean, self.variance) = (total, mean, variance);
        self.directions = Some((values, directions));
        true
    }

    /// The first directions, `[rank, in]`.
    fn factor(&self, rank: usize, whiten: bool, device: &Device) -> Tensor<2> {
        let (values, directions) = self.directions.as_ref().expect("directions that were found");
        let divisor = |row: usize| if whiten { values[row].sqrt() } else { 1.0 };
        let d_in = directions.ncols();
        let entry = |at: usize| (directions[(at / d_in, at % d_in)] / divisor(at / d_in)) as f32;
        let data: Vec<f32> = (0..rank * d_in).map(entry).collect();
        Tensor::from_data(TensorData::new(data, [rank, d_in]), device)
    }
}

/// The leading singular values and right directions, as rows whose largest element is positive; nothing if they do not
/// converge.
///
/// By subspace iteration from a random start (arXiv 0909.4061, algorithms 4.4 and 5.1), which is torch's: the reference
/// seeds `svd_lowrank` with 42, asks for twice as many directions as it keeps, and iterates four times. It draws in single
/// precision for the first batch and in double for the others, since its means are double.
fn leading(matrix: &Mat<f64>, components: usize, is_first: bool) -> Option<(Vec<f64>, Mat<f64>)> {
    let is_wide = matrix.nrows() < matrix.ncols();
    let tall = if is_wide { matrix.transpose().to_owned() } else { matrix.clone() };
    let width = 2 * components;
    let (mut generator, length) = (TorchGenerator::new(42), tall.ncols() * width);
    let drawn: Vec<f64> = if is_first {
        generator.normal(length).into_iter().map(f64::from).collect()
    } else {
        generator.normal_f64(length)
    };
    let probe = Mat::from_fn(tall.ncols(), width, |row, column| drawn[row * width + column]);
    let mut basis = (&tall * &probe).qr().compute_thin_Q();
    for _ in 0..4 {
        let back = (tall.transpose() * &basis).qr().compute_thin_Q();
        basis = (&tall * &back).qr().compute_thin_Q();
    }
    let found = (basis.transpose() * &tall).thin_svd().ok()?;
    let right = if is_wide { &basis * found.U() } else { found.V().to_owned() };
    let values: Vec<f64> = found.S().column_vector().iter().copied().take(components).collect();
    let sign = |direction: usize| {
        let largest = (0..right.nrows())
            .map(|it| right[(it, direction)])
            .fold(0.0f64, |max, it| if it.abs() > max.abs() { it } else { max });
        if largest < 0.0 { -1.0 } else { 1.0 }
    };
    let signs: Vec<f64> = (0..values.len()).map(sign).collect();
    let directions = Mat::from_fn(values.len(), right.nrows(), |row, column| signs[row] * right[(column, row)]);
    Some((values, directions))
}
