//! LoftQ on a base that is quantised already: factors from the weights of its files.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::files::checkpoint::Checkpoint;
use peft_core::ops;
use peft_core::spec::{PathStack, VisitParams};
use peft_core::{ParamKind, ParamSpec, PeftError, PeftModel, Result, visit_params};

use crate::lora::config::LoraConfig;
use crate::lora::data_init::calibration::{DataInit, InitialFactors};
use crate::lora::loftq::factors;
use crate::svd::{to_mat, to_tensor};

/// Lets a configuration start from what was lost when the base was quantised: factors for the difference between the weights of its
/// `checkpoint` and those that are in memory. The adapter is an ordinary one then, on that base.
///
/// Source: `replace_lora_weights_loftq` of the reference.
///
/// # Errors
/// If `loftq_iter` is not 1, since the base keeps its codes, or the checkpoint does not hold the weights in full.
pub fn start<M: Module>(peft: &PeftModel<M>, config: LoraConfig, checkpoint: &Checkpoint) -> Result<LoraConfig> {
    let rounds = config.loftq_config.as_ref().map_or(1, |it| it.loftq_iter);
    if rounds != 1 {
        let reason = format!(
            "is {rounds}, and a base that is quantised already keeps its codes: give 1, or load the base in full precision"
        );
        return Err(PeftError::config("loftq_iter", reason));
    }
    let (layers, _) = config.layers(peft.spec())?;
    let ranks = layers.iter().map(|it| (it.param.path(), (it.param.clone(), it.rank))).collect();
    let mut compare = Compare { checkpoint, ranks, given: HashMap::new(), error: None };
    visit_params(peft.model(), &mut compare);
    match compare.error {
        Some(error) => Err(error),
        None => {
            let data_init = Some(DataInit::new(compare.given));
            Ok(LoraConfig { data_init, init_lora_weights: true.into(), loftq_config: None, ..config })
        }
    }
}

struct Compare<'a> {
    checkpoint: &'a Checkpoint,
    ranks: HashMap<String, (Arc<ParamSpec>, usize)>,
    given: HashMap<String, InitialFactors>,
    error: Option<PeftError>,
}

impl Compare<'_> {
    fn factors(&self, param: &ParamSpec, rank: usize, base: Tensor<2>) -> Result<InitialFactors> {
        let device = base.device().without_autodiff();
        let whole = self.checkpoint.floats_of(&param.path())?;
        if whole.shape().as_slice() != param.shape_on_disk() || !matches!(param.kind, ParamKind::Linear(_)) {
            let reason = format!("`{}` is no linear layer that LoftQ knows", param.module);
            return Err(PeftError::config("target_modules", reason));
        }
        let whole = Tensor::<2>::from_data(whole, &device);
        let whole = if param.is_transposed_on_disk() { whole.transpose() } else { whole };
        let rest = param.out_in(whole - base);
        let (a, b) = factors(&to_mat(&rest), rank.min(rest.dims()[0].min(rest.dims()[1])));
        Ok(InitialFactors { a: to_tensor(&a, &device), b: Some(to_tensor(&b, &device)), stays: true })
    }
}

impl VisitParams for Compare<'_> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
        let path = at.path();
        let Some((spec, rank)) = self.ranks.get(&path).filter(|_| self.error.is_none() && !at.in_adapters()) else {
            return;
        };
        let base = ops::to_f32(param.base().without_autodiff());
        if D != 2 {
            return;
        }
        match self.factors(spec, *rank, Tensor::from_dispatch(base.into_dispatch())) {
            Ok(factors) => drop(self.given.insert(spec.module.clone(), factors)),
            Err(error) => self.error = Some(error),
        }
    }
}
