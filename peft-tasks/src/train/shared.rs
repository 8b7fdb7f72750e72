//! What the processes of a run share in every step, and must have in common before the first.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{PeftError, PeftModel, Result};
use serde_json::{Map, Value, json};

use crate::parallel::group::{ProcessGroup, gathered};
use crate::train::identity::{Differences, differences};

/// Adds up the losses and gradients of all processes in one message, and says whether any of them was asked to end.
///
/// A parameter that has a gradient in one process has one in all: some may have had no rows.
pub(crate) fn sum<M: Module>(
    group: &dyn ProcessGroup,
    model: &M,
    loss: f64,
    mut gradients: GradientsParams,
    asked: bool,
) -> Result<(f64, GradientsParams, bool)> {
    struct Collect<'a> {
        gradients: &'a GradientsParams,
        numbers: Vec<f32>,
        there: Vec<f32>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            let gradient = self.gradients.get::<D>(param.id);
            self.there.push(if gradient.is_some() { 1.0 } else { 0.0 });
            match gradient {
                Some(gradient) => self.numbers.extend(gradient.into_data().convert::<f32>().iter::<f32>()),
                None => self.numbers.resize(self.numbers.len() + param.shape().num_elements(), 0.0),
            }
        }
    }
    struct PutBack<'a> {
        gradients: &'a mut GradientsParams,
        numbers: &'a [f32],
        there: &'a [f32],
    }
    impl ModuleVisitor for PutBack<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            let (shape, device) = (param.shape(), param.device().without_autodiff());
            let (own, rest) = self.numbers.split_at(shape.num_elements());
            let (there, others) = self.there.split_at(1);
            (self.numbers, self.there) = (rest, others);
            self.gradients.remove::<D>(param.id);
            if there[0] > 0.0 {
                let data = TensorData::new(own.to_vec(), shape);
                self.gradients.register(param.id, Tensor::<D>::from_data(data, &device));
            }
        }
    }
    let mut own = Collect { gradients: &gradients, numbers: Vec::new(), there: Vec::new() };
    model.visit(&mut own);
    let Collect { mut numbers, there, .. } = own;
    let (count, parameters) = (numbers.len(), there.len());
    numbers.extend(there);
    numbers.extend([loss as f32, if asked { 1.0 } else { 0.0 }]);
    group.all_reduce(&mut numbers)?;
    let (sums, rest) = numbers.split_at(count);
    let (there, rest) = rest.split_at(parameters);
    model.visit(&mut PutBack { gradients: &mut gradients, numbers: sums, there });
    Ok((f64::from(rest[0]), gradients, rest[1] > 0.0))
}

/// Whether something holds in all processes.
pub(crate) fn all(group: &dyn ProcessGroup, own: bool) -> Result<bool> {
    Ok(gathered(group, &own)?.into_iter().all(|it| it))
}

/// Gives every process the adapter of rank 0: where starting values were computed, another processor may have rounded them
/// otherwise.
pub(crate) fn start_alike<M: Module>(group: &dyn ProcessGroup, peft: &mut PeftModel<M>, name: &str) -> Result<()> {
    let mut tensors = peft.adapter_tensors(name)?;
    let own = tensors.iter().flat_map(|it| it.data.iter::<f32>()).flat_map(f32::to_le_bytes).collect();
    let first = group.broadcast(own)?;
    let mut numbers = first.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]]));
    for tensor in &mut tensors {
        let shape = tensor.data.shape().clone();
        let values: Vec<f32> = numbers.by_ref().take(shape.num_elements()).collect();
        if values.len() < shape.num_elements() {
            return Err(PeftError::Invalid("rank 0 has another adapter".to_owned()));
        }
        tensor.data = TensorData::new(values, shape);
    }
    peft.assign_adapter(name, tensors)
}

/// Refuses a run whose processes are not the same program on the same data and devices of one kind.
///
/// # Errors
/// If one differs: which one, and in what.
pub(crate) fn check_same(group: &dyn ProcessGroup, identity: &Map<String, Value>, device: &Device) -> Result<()> {
    let mut own = identity.clone();
    own.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    // Their numbers differ from process to process.
    let kind: String = format!("{device:?}").chars().filter(|it| !it.is_ascii_digit()).collect();
    own.insert("device".to_owned(), json!(kind));
    let all = gathered(group, &own)?;
    for (rank, other) in all.iter().enumerate().skip(1) {
        let Differences { allowed, refused } = differences(&all[0], other);
        let found = [refused, allowed].concat();
        if !found.is_empty() {
            let reason = format!("rank {rank} does not run what rank 0 runs: {}", found.join(", "));
            return Err(PeftError::Invalid(reason.replace(" was ", " is ").replace(" and is ", " there, and ")));
        }
    }
    Ok(())
}
