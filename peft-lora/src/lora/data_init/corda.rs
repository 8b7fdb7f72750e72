//! CorDA: a start from the directions of a weight that matter, or matter least, for given data. Source: arXiv 2406.05223,
//! `peft/tuners/lora/corda.py` and `corda_init` in `layer.py`.
//!
//! With `C` the covariance of a layer's input, `U S Vᵀ = W C` is cut to the first directions (`ipm`: learn the task of
//! the data) or the last (`kpm`: keep what the data knows), and the factors are `√(S/s) Vᵀ C⁻¹` and `U √(S/s)`. The
//! reference subtracts them from the base weight. Here the base stays as it is and they are subtracted in the update, as
//! PiSSA's are; since they do not follow from the base alone, a folder holds plain LoRA of twice the rank, which is what
//! the reference writes with `path_initial_model_for_weight_conversion`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::Tensor;
use faer::Mat;
use faer::linalg::solvers::DenseSolveCore;
use peft_core::files::checkpoint::{Stored, TensorFile};
use peft_core::forward::LinearBelow;
use peft_core::model::state;
use peft_core::{ParamKind, PeftError, PeftModel, Result, ops};

use crate::lora::config::LoraConfig;
use crate::lora::data_init::calibration::{DataInit, InitialFactors, unseen, watched};
pub use crate::lora::data_init::config::{CordaConfig, CordaMethod};
use crate::svd::{self, to_mat, to_tensor};

/// The configuration with factors from data, for [`PeftModel::add_adapter`].
///
/// `forward` runs the model on a batch; what it computes does not matter. As in the reference every batch counts the
/// same, whatever its size, and its input is divided by its largest element; there a batch is one row without padding.
///
/// # Errors
/// If the configuration does not say `corda` or does not go with the model, or an input is not finite.
pub fn start<M: Module, B>(
    peft: &PeftModel<M>,
    config: LoraConfig,
    batches: impl IntoIterator<Item = B>,
    mut forward: impl FnMut(&M, &B),
) -> Result<LoraConfig> {
    if config.init_lora_weights != "corda" {
        return Err(PeftError::config("init_lora_weights", "must be `corda` for a start with CorDA"));
    }
    let corda = config.corda_config.clone().unwrap_or_default();
    if corda.use_float16_for_covariance {
        return Err(PeftError::config(
            "corda_config",
            "asks for covariances in half precision, which are not known here",
        ));
    }
    let (layers, _) = config.layers(peft.spec())?;
    for layer in &layers {
        let (module, (d_in, d_out)) = (&layer.param.module, layer.param.features());
        if !matches!(layer.param.kind, ParamKind::Linear(_)) {
            let reason = format!("names `{module}`, {}; CorDA starts linear layers only", layer.param.kind);
            return Err(PeftError::config("target_modules", reason));
        }
        if layer.rank > d_in.min(d_out) {
            let reason = format!("is {}, more than `{module}` has directions ({})", layer.rank, d_in.min(d_out));
            return Err(PeftError::config("r", reason));
        }
    }
    let spec: Vec<_> = layers.iter().map(|it| it.param.clone()).collect();
    let seen: Arc<Mutex<HashMap<String, Inputs>>> = Arc::default();
    let into = Arc::clone(&seen);
    let model = watched(peft, &spec, move |below, input| {
        let mut all = into.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(below.param().module.clone()).or_insert_with(|| Inputs::of(below)).add(input);
    });
    for batch in batches {
        forward(&model, &batch);
    }
    let mut seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    let mut given = HashMap::new();
    for layer in &layers {
        let module = &layer.param.module;
        let inputs = seen.remove(module).ok_or_else(|| unseen(module))?;
        let (device, weight) = (inputs.weight.device(), to_mat(&ops::to_f32(inputs.weight.clone())));
        let covariance = inputs.covariance().ok_or_else(|| {
            PeftError::NotFinite(format!("an input of `{module}` is not finite: look at the calibration data"))
        })?;
        let (a, b) = factors(&weight, &covariance, layer.rank, layer.scale, corda.corda_method);
        given.insert(
            module.clone(),
            InitialFactors { a: to_tensor(&a, &device), b: Some(to_tensor(&b, &device)), stays: false },
        );
    }
    Ok(LoraConfig { data_init: Some(DataInit::new(given)), corda_config: Some(corda), ..config })
}

/// What one layer was given.
struct Inputs {
    /// `[out, in]`, as it is stored
    weight: Tensor<2>,
    /// Sum over batches, `[in, in]`.
    sum: Tensor<2>,
    count: usize,
}

impl Inputs {
    fn of(below: &LinearBelow<'_>) -> Self {
        let weight = below.param().out_in(below.frozen().clone());
        let d_in = weight.dims()[1];
        Self { sum: Tensor::zeros([d_in, d_in], &weight.device()), weight, count: 0 }
    }

    /// `input` is `[rows, in]`.
    fn add(&mut self, input: &Tensor<2>) {
        // The absolute value of the largest element, not the largest absolute value.
        let input = input.clone() / input.clone().max().abs().unsqueeze();
        self.sum = self.sum.clone() + input.clone().transpose().matmul(input);
        self.count += 1;
    }

    /// The mean, if it is finite.
    fn covariance(&self) -> Option<Mat<f32>> {
        let mean = to_mat(&self.sum.clone().div_scalar(self.count as f64));
        svd::is_finite(&mean).then_some(mean)
    }
}

/// `A`, `[rank, in]`, and `B`, `[out, rank]`, for a weight `[out, in]`. In single precision, as the reference: whether
/// the covariance can be inverted depends on it.
fn factors(
    weight: &Mat<f32>,
    covariance: &Mat<f32>,
    rank: usize,
    scale: f64,
    method: CordaMethod,
) -> (Mat<f32>, Mat<f32>) {
    let (raised, inverse) = invertible(covariance);
    let (u, s, v) = svd::thin(&(weight * &raised));
    let first = match method {
        CordaMethod::Ipm => 0,
        CordaMethod::Kpm => s.len() - rank,
    };
    let root = |at: usize| (f64::from(s[first + at]) / scale).sqrt() as f32;
    let back = v.transpose() * &inverse;
    let a = Mat::from_fn(rank, weight.ncols(), |row, column| root(row) * back[(first + row, column)]);
    let b = Mat::from_fn(weight.nrows(), rank, |row, column| u[(row, first + column)] * root(column));
    (a, b)
}

/// The covariance with as much of its mean variance on the diagonal as its inverse needs, and the inverse.
fn invertible(covariance: &Mat<f32>) -> (Mat<f32>, Mat<f32>) {
    let size = covariance.nrows();
    let mean = (0..size).map(|at| covariance[(at, at)]).sum::<f32>() / size as f32;
    let mut damp = 0.01;
    loop {
        let raised = Mat::from_fn(size, size, |row, column| {
            covariance[(row, column)] + if row == column { mean * damp } else { 0.0 }
        });
        let inverse = raised.partial_piv_lu().inverse();
        let error = (&raised * &inverse - Mat::<f32>::identity(size, size)).norm_l2();
        // A layer whose input is always zero has no inverse at all; its product is zero with any.
        if error < 0.05 || mean == 0.0 {
            return (raised, inverse);
        }
        damp *= 2.0;
    }
}

/// The tensors of a folder: `[A; A₀]` and `[B, −B₀]` in place of the factors and what they are counted from.
pub(crate) fn to_file(data_init: &DataInit, mut tensors: Vec<Stored>) -> Vec<Stored> {
    for stored in &mut tensors {
        let Some((given, is_a)) = given(data_init, &stored.key) else { continue };
        let device = given.a.device();
        let own = Tensor::<2>::from_data(stored.data.clone(), &device);
        stored.data = match (&given.b, is_a) {
            (None, _) => continue,
            // What is not subtracted needs no rows of its own.
            _ if given.stays => continue,
            (Some(_), true) => Tensor::cat(vec![own, given.a.clone()], 0).into_data(),
            (Some(b), false) => Tensor::cat(vec![own, -b.clone()], 1).into_data(),
        };
    }
    tensors
}

/// The tensors of a folder that [`to_file`] wrote, as they were before.
pub(crate) fn from_file(data_init: &DataInit, file: &TensorFile) -> Result<Vec<Stored>> {
    let read = |key: String| {
        let data = file.floats(&key)?;
        let data = match given(data_init, &key) {
            Some((given, is_a)) if data.num_elements() == 2 * given.a.dims()[0] * data.shape()[usize::from(is_a)] => {
                let whole = Tensor::<2>::from_data(data, &given.a.device());
                whole.narrow(usize::from(!is_a), 0, given.a.dims()[0]).into_data()
            }
            _ => data,
        };
        Ok(Stored { key, data })
    };
    file.keys().into_iter().map(read).collect()
}

/// What a layer was given whose factor has this key, and whether that is `A`.
fn given<'a>(data_init: &'a DataInit, key: &str) -> Option<(&'a InitialFactors, bool)> {
    let path = key.strip_prefix(state::KEY_PREFIX)?;
    let (module, is_a) = match path.strip_suffix(".lora_A.weight") {
        Some(module) => (module, true),
        None => (path.strip_suffix(".lora_B.weight")?, false),
    };
    Some((data_init.get(module)?, is_a))
}
