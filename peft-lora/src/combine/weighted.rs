//! A new LoRA adapter from a weighted combination of others. Source: `add_weighted_adapter` in
//! `peft/tuners/lora/model.py` and `peft/utils/merge_utils.py`.

use burn::module::Module;
use burn::tensor::TensorData;
use faer::Mat;
use peft_core::adapter::slots;
use peft_core::files::checkpoint::Stored;
use peft_core::{AdapterSet, Layout, Names, ParamKind, ParamSpec, PeftError, PeftModel, Result, TorchGenerator};
use serde_json::Value;

use crate::lora::config::LoraConfig;
use crate::lora::conv::LoraConv;
use crate::lora::embedding::LoraEmbedding;
use crate::lora::linear::LoraLinear;
use crate::svd;

/// How pruned values are chosen and what happens to their signs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Merge {
    /// The weighted sum.
    Linear,
    /// The weighted sum of the largest values; `density` is the share that is kept.
    MagnitudePrune {
        /// Share of values that are kept.
        density: f64,
    },
    /// Largest values, of which those with the majority's sign are averaged (arXiv 2306.01708).
    Ties {
        /// Share of values that are kept.
        density: f64,
        /// Whose majority.
        sign: Majority,
    },
    /// The weighted sum of values that are kept at random and scaled up (arXiv 2311.03099).
    DareLinear {
        /// Share of values that are kept.
        density: f64,
    },
    /// Values at random, of which those with the majority's sign are averaged.
    DareTies {
        /// Share of values that are kept.
        density: f64,
        /// Whose majority.
        sign: Majority,
    },
}

/// What decides on a sign.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Majority {
    /// The sum of the values.
    #[default]
    Total,
    /// The number of values.
    Frequency,
}

/// What is combined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Combination {
    /// The factors one beside the other. Exact; the rank is the sum of the ranks.
    Cat,
    /// The factors, `A` and `B` each for itself, which must have one rank. Cheap, but the product of two sums is not the
    /// sum of the products.
    Factors(Merge),
    /// The updates, factored again. Ranks may differ. `None` takes the highest of them.
    Svd {
        /// How updates are merged.
        merge: Merge,
        /// Rank of the new adapter.
        rank: Option<usize>,
        /// Quantile beyond which the new factors are cut off. It is taken of the values with their signs, as the
        /// reference does, so that it depends on the signs of singular vectors, which are arbitrary.
        clamp: Option<f64>,
    },
}

impl Combination {
    /// From the names that the reference has: `linear`, `cat`, `svd`, `ties`, `ties_svd`, ….
    ///
    /// # Errors
    /// If the name is unknown, or `density` is missing where it is needed.
    pub fn parse(name: &str, density: Option<f64>, sign: Majority, rank: Option<usize>) -> Result<Self> {
        let (kind, is_svd) = match name {
            "cat" => return Ok(Self::Cat),
            "svd" => ("linear", true),
            other => other.strip_suffix("_svd").map_or((other, false), |it| (it, true)),
        };
        let density = || {
            let given = density.ok_or_else(|| PeftError::config("density", format!("must be given for `{name}`")))?;
            // Below or at 0 nothing would be kept.
            if given > 0.0 && given <= 1.0 {
                return Ok(given);
            }
            Err(PeftError::config("density", format!("is {given}, expected a share above 0 and at most 1")))
        };
        let merge = match kind {
            "linear" => Merge::Linear,
            "magnitude_prune" => Merge::MagnitudePrune { density: density()? },
            "ties" => Merge::Ties { density: density()?, sign },
            "dare_linear" => Merge::DareLinear { density: density()? },
            "dare_ties" => Merge::DareTies { density: density()?, sign },
            _ => {
                let known = "svd, linear, cat, ties, dare_linear, dare_ties, magnitude_prune and these with _svd";
                return Err(PeftError::config("combination_type", format!("is `{name}`; known are {known}")));
            }
        };
        Ok(if is_svd { Self::Svd { merge, rank, clamp: None } } else { Self::Factors(merge) })
    }
}

/// Adapters as things to calculate with.
pub trait Combine {
    /// Adds a LoRA adapter, `name`, that is the weighted combination of others. What is active stays so.
    ///
    /// The result has the numbers of the reference's `add_weighted_adapter`, with a scale of 1. `seed` matters to the
    /// random choices of `dare_*` only. They are those that the reference makes on a CPU if `torch.manual_seed(seed)` comes
    /// after the start of the new adapter, for which it draws numbers too.
    ///
    /// # Errors
    /// If an adapter is unknown or not plain LoRA (DoRA, trained biases and saved modules are not), or ranks differ where
    /// they must not; then nothing has changed.
    fn combine(&mut self, name: &str, adapters: &[(&str, f64)], how: Combination, seed: u64) -> Result<()>;
}

/// The factors of one adapter on one parameter: `A` `[rank, in]`, `B` `[out, rank]`, and their scale.
struct Part {
    a: Mat<f32>,
    b: Mat<f32>,
    scale: f64,
    weight: f64,
}

impl<M: Module> Combine for PeftModel<M> {
    fn combine(&mut self, name: &str, adapters: &[(&str, f64)], how: Combination, seed: u64) -> Result<()> {
        if adapters.is_empty() {
            return Err(PeftError::Invalid("there is nothing to combine: name at least one adapter".into()));
        }
        let mut configs = Vec::new();
        for (adapter, weight) in adapters {
            if !weight.is_finite() {
                return Err(PeftError::config("weights", format!("of `{adapter}` is {weight}")));
            }
            configs.push(plain_lora(self, adapter)?);
        }
        let how = if adapters.len() == 1 { Combination::Factors(Merge::Linear) } else { how };
        let ranks: Vec<usize> =
            configs.iter().map(|it| it.rank_pattern.values().copied().fold(it.r, usize::max)).collect();
        let rank = match how {
            Combination::Cat => ranks.iter().sum(),
            Combination::Svd { rank, .. } => rank.unwrap_or_else(|| ranks.iter().copied().max().unwrap_or(1)),
            Combination::Factors(_) => {
                if ranks.iter().any(|it| *it != ranks[0]) {
                    let reason = format!("differs ({ranks:?}): take `cat`, `svd` or a kind that ends in `_svd`");
                    return Err(PeftError::config("r", reason));
                }
                ranks[0]
            }
        };
        if let Combination::Svd { rank: Some(rank), .. } = how {
            svd::check_rank(rank, self.spec())?;
        }
        let mut random = TorchGenerator::new(seed as i64);
        let mut tensors = Vec::new();
        let mut modules = Vec::new();
        for set in slots::collect(self.model()) {
            let parts: Vec<Part> = adapters.iter().filter_map(|(it, weight)| part(&set, it, *weight)).collect();
            if parts.is_empty() {
                continue;
            }
            let param = set.param();
            let (a, b) = combined(&parts, how, rank, &mut random, param)?;
            if !(svd::is_finite(&a) && svd::is_finite(&b)) {
                let reason = format!(
                    "the factors of `{}` would hold NaN or infinity: look at the weights, or at the adapters with \
                     `peft inspect`",
                    param.module
                );
                return Err(PeftError::NotFinite(reason));
            }
            modules.push(param.module.clone());
            tensors.extend(stored(param, rank, &a, &b));
        }
        let config = LoraConfig {
            r: rank,
            lora_alpha: rank as f64,
            target_modules: Some(targets(&configs).unwrap_or(Names::List(modules))),
            exclude_modules: None,
            layers_to_transform: configs[0].layers_to_transform.clone().filter(|_| same_layers(&configs)),
            layers_pattern: configs[0].layers_pattern.clone().filter(|_| same_layers(&configs)),
            task_type: configs[0].task_type.clone(),
            fan_in_fan_out: configs[0].fan_in_fan_out,
            // A model has one.
            layer_replication: configs[0].layer_replication.clone(),
            ..LoraConfig::default()
        };
        self.add_adapter_with(name, config, tensors)
    }
}

fn plain_lora<M: Module>(peft: &PeftModel<M>, name: &str) -> Result<LoraConfig> {
    let json = peft.adapter_config(name)?;
    if json.get("peft_type").and_then(Value::as_str) != Some(crate::PEFT_TYPE) {
        let reason = "it is not LoRA; convert it first";
        return Err(PeftError::unsupported(format!("combining `{name}`"), reason));
    }
    let config = LoraConfig::parse(json)?;
    if config.counts_from_its_start() {
        let reason = "it counts from where it started (pissa, olora, corda); convert it to LoRA first";
        return Err(PeftError::unsupported(format!("combining `{name}`"), reason));
    }
    if config.invocation().is_some() {
        let reason = "it acts on some tokens of a row only (alora_invocation_tokens): keep it an adapter of its own";
        return Err(PeftError::unsupported(format!("combining `{name}`"), reason));
    }
    if !config.parameter_names().is_empty() {
        let reason = "it targets parameters (`target_parameters`), as PEFT refuses; convert it to LoRA on layers first";
        return Err(PeftError::unsupported(format!("combining `{name}`"), reason));
    }
    let has_more = |set: &AdapterSet| set.get(name).is_some() && part(set, name, 1.0).is_none();
    if config.use_dora || config.lora_bias || slots::collect(peft.model()).iter().any(has_more) {
        let reason = "it has more than factors: DoRA's magnitudes, trained biases or saved modules";
        return Err(PeftError::unsupported(format!("combining `{name}`"), reason));
    }
    Ok(config)
}

/// The union of the targets, where all are lists.
fn targets(configs: &[LoraConfig]) -> Option<Names> {
    let mut union = Vec::new();
    for config in configs {
        let Some(Names::List(names)) = &config.target_modules else { return None };
        union.extend(names.iter().filter(|it| !union.contains(*it)).cloned().collect::<Vec<_>>());
    }
    let is_narrowed = |it: &LoraConfig| it.exclude_modules.is_some();
    (!configs.iter().any(is_narrowed) && same_layers(configs)).then_some(Names::List(union))
}

fn same_layers(configs: &[LoraConfig]) -> bool {
    let first = &configs[0];
    configs
        .iter()
        .all(|it| it.layers_to_transform == first.layers_to_transform && it.layers_pattern == first.layers_pattern)
        && configs.iter().all(|it| matches!(it.target_modules, Some(Names::List(_))))
}

fn part(set: &AdapterSet, name: &str, weight: f64) -> Option<Part> {
    let adapter = set.get(name)?;
    let of = |(a, b): (burn::tensor::Tensor<2>, burn::tensor::Tensor<2>), scale: f64| Part {
        a: svd::to_mat(&a),
        b: svd::to_mat(&b),
        scale,
        weight,
    };
    if let Some(it) = adapter.downcast_ref::<LoraLinear>() {
        return Some(of((it.lora_A.weight.val(), it.lora_B.weight.val()), it.scale()));
    }
    if let Some(it) = adapter.downcast_ref::<LoraEmbedding>() {
        return Some(of((it.lora_embedding_A.val(), it.lora_embedding_B.val()), it.scale()));
    }
    if let Some(it) = adapter.downcast_ref::<LoraConv<3>>() {
        return Some(of(it.factors(), it.scale()));
    }
    if let Some(it) = adapter.downcast_ref::<LoraConv<4>>() {
        return Some(of(it.factors(), it.scale()));
    }
    adapter.downcast_ref::<LoraConv<5>>().map(|it| of(it.factors(), it.scale()))
}

fn combined(
    parts: &[Part],
    how: Combination,
    rank: usize,
    random: &mut TorchGenerator,
    param: &ParamSpec,
) -> Result<(Mat<f32>, Mat<f32>)> {
    let scaled = |it: &Part| (it.weight * it.scale) as f32;
    Ok(match how {
        Combination::Cat => {
            let (a, b) = (&parts[0].a, &parts[0].b);
            let (mut at, mut all_a, mut all_b) = (0, Mat::zeros(rank, a.ncols()), Mat::zeros(b.nrows(), rank));
            for part in parts {
                let own = part.a.nrows();
                all_a.submatrix_mut(at, 0, own, a.ncols()).copy_from(&part.a * faer::Scale(scaled(part)));
                all_b.submatrix_mut(0, at, b.nrows(), own).copy_from(&part.b);
                at += own;
            }
            (all_a, all_b)
        }
        Combination::Factors(merge) => {
            let root = |it: &Part| f64::from(scaled(it)).abs().sqrt();
            let sign = |it: &Part| if scaled(it) >= 0.0 { 1.0 } else { -1.0 };
            let a: Vec<(&Mat<f32>, f64)> = parts.iter().map(|it| (&it.a, root(it) * sign(it))).collect();
            let b: Vec<(&Mat<f32>, f64)> = parts.iter().map(|it| (&it.b, root(it))).collect();
            (merged(&a, merge, random), merged(&b, merge, random))
        }
        Combination::Svd { merge, clamp, .. } => {
            // Masks are drawn for the update as the weight lies.
            let turned = matches!(param.kind, ParamKind::Embedding | ParamKind::Linear(Layout::InOut));
            let update = |it: &Part| (&it.b * &it.a) * faer::Scale(it.scale as f32);
            let updates: Vec<Mat<f32>> =
                parts.iter().map(update).map(|it| if turned { it.transpose().to_owned() } else { it }).collect();
            let weighted: Vec<(&Mat<f32>, f64)> =
                updates.iter().zip(parts).map(|(update, part)| (update, part.weight)).collect();
            let merged = merged(&weighted, merge, random);
            let (a, b, _) = svd::factors(&if turned { merged.transpose().to_owned() } else { merged }, rank);
            match clamp {
                Some(quantile) => clamped(a, b, quantile)?,
                None => (a, b),
            }
        }
    })
}

/// Cuts both factors off at the quantile of all their entries.
fn clamped(a: Mat<f32>, b: Mat<f32>, quantile: f64) -> Result<(Mat<f32>, Mat<f32>)> {
    if !(0.0..=1.0).contains(&quantile) {
        return Err(PeftError::config("svd_clamp", format!("is {quantile}, expected a share from 0 to 1")));
    }
    let entries = |it: &Mat<f32>| {
        (0..it.nrows() * it.ncols()).map(|at| it[(at / it.ncols(), at % it.ncols())]).collect::<Vec<_>>()
    };
    let mut all = [entries(&a), entries(&b)].concat();
    all.sort_by(f32::total_cmp);
    let place = quantile * (all.len() - 1) as f64;
    let (below, above) = (all[place.floor() as usize], all[place.ceil() as usize]);
    let high = below + (above - below) * place.fract() as f32;
    let cut =
        |it: &Mat<f32>| Mat::from_fn(it.nrows(), it.ncols(), |row, column| it[(row, column)].min(high).max(-high));
    Ok((cut(&a), cut(&b)))
}

fn merged(parts: &[(&Mat<f32>, f64)], merge: Merge, random: &mut TorchGenerator) -> Mat<f32> {
    let (rows, columns) = (parts[0].0.nrows(), parts[0].0.ncols());
    let flat = |it: &Mat<f32>| (0..rows * columns).map(|at| it[(at / columns, at % columns)]).collect::<Vec<f32>>();
    let mut values: Vec<Vec<f32>> = parts.iter().map(|(it, _)| flat(it)).collect();
    let sign = match merge {
        Merge::Linear => None,
        Merge::MagnitudePrune { density } => {
            values.iter_mut().for_each(|it| keep_largest(it, density));
            None
        }
        Merge::Ties { density, sign } => {
            values.iter_mut().for_each(|it| keep_largest(it, density));
            Some(sign)
        }
        Merge::DareLinear { density } => {
            values.iter_mut().for_each(|it| keep_random(it, density, random));
            None
        }
        Merge::DareTies { density, sign } => {
            values.iter_mut().for_each(|it| keep_random(it, density, random));
            Some(sign)
        }
    };
    let entry = |at: usize| {
        let column: Vec<f32> = values.iter().map(|it| it[at]).collect();
        let weighted = |index: usize| column[index] * parts[index].1 as f32;
        let Some(sign) = sign else { return (0..column.len()).map(weighted).sum() };
        let vote: f32 = match sign {
            Majority::Total => column.iter().sum(),
            Majority::Frequency => column.iter().map(|it| signum(*it)).sum(),
        };
        let majority = if vote >= 0.0 { 1.0 } else { -1.0 };
        let agreeing: Vec<usize> = (0..column.len()).filter(|it| signum(column[*it]) == majority).collect();
        agreeing.iter().map(|it| weighted(*it)).sum::<f32>() / agreeing.len().max(1) as f32
    };
    Mat::from_fn(rows, columns, |row, column| entry(row * columns + column))
}

/// Zero for zero, unlike [`f32::signum`].
fn signum(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

fn keep_largest(values: &mut [f32], density: f64) {
    if density >= 1.0 {
        return;
    }
    let keep = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    for at in &order[keep..] {
        values[*at] = 0.0;
    }
}

/// The mask is `torch.bernoulli` of the density.
fn keep_random(values: &mut [f32], density: f64, random: &mut TorchGenerator) {
    if density >= 1.0 {
        return;
    }
    let density = density as f32;
    let draws = random.uniform(values.len(), 0.0, 1.0);
    for (value, draw) in values.iter_mut().zip(draws) {
        *value = if draw < density { *value / density } else { 0.0 };
    }
}

/// The tensors of a LoRA adapter on one parameter as its file has them, padded with zeros to `rank`.
pub(crate) fn stored(param: &ParamSpec, rank: usize, a: &Mat<f32>, b: &Mat<f32>) -> [Stored; 2] {
    let (own, d_in, d_out) = (a.nrows(), a.ncols(), b.nrows());
    let at = |it: &Mat<f32>, row: usize, column: usize| {
        if row < it.nrows() && column < it.ncols() { it[(row, column)] } else { 0.0 }
    };
    debug_assert!(own <= rank);
    let a: Vec<f32> = (0..rank * d_in).map(|it| at(a, it / d_in, it % d_in)).collect();
    let b: Vec<f32> = (0..d_out * rank).map(|it| at(b, it / rank, it % rank)).collect();
    let (names, a_shape, b_shape) = match param.kind {
        ParamKind::Embedding => (["lora_embedding_A", "lora_embedding_B"], vec![rank, d_in], vec![d_out, rank]),
        ParamKind::Conv => {
            let ones = param.shape[2..].iter().map(|_| 1);
            let a_shape = std::iter::once(rank).chain(param.shape[1..].iter().copied()).collect();
            (["lora_A.weight", "lora_B.weight"], a_shape, [d_out, rank].into_iter().chain(ones).collect())
        }
        _ => (["lora_A.weight", "lora_B.weight"], vec![rank, d_in], vec![d_out, rank]),
    };
    [
        Stored { key: param.file_key(names[0]), data: TensorData::new(a, a_shape) },
        Stored { key: param.file_key(names[1]), data: TensorData::new(b, b_shape) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.quantile(torch.cat([b.flatten(), a.flatten()]), q)` of torch 2.15, and `clamp` to both sides of it.
    #[test]
    fn factors_are_cut_off_at_the_quantile_of_their_values() {
        let a = Mat::from_fn(1, 3, |_, column| [0.5, -2.0, 3.0][column]);
        let b = Mat::from_fn(2, 1, |row, _| [-0.25, 1.5][row]);
        let cut = |quantile| {
            let (a, b) = clamped(a.clone(), b.clone(), quantile).unwrap();
            [a[(0, 0)], a[(0, 1)], a[(0, 2)], b[(0, 0)], b[(1, 0)]]
        };
        assert_eq!(cut(1.0), [0.5, -2.0, 3.0, -0.25, 1.5]);
        // Values in order: -2, -0.25, 0.5, 1.5, 3. A tenth below the top is 1.5 + 0.6 · 1.5.
        for (ours, torch) in cut(0.9).into_iter().zip([0.5, -2.0, 2.4, -0.25, 1.5]) {
            assert!((ours - torch).abs() < 1e-6, "{ours} for {torch}");
        }
        assert_eq!(cut(0.5), [0.5, -0.5, 0.5, -0.25, 0.5]);
        assert!(clamped(a.clone(), b.clone(), 1.5).is_err());
    }
}
