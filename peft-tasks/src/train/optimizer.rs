//! The optimizer of a run: AdamW, its moments perhaps in 8 bits, or what tells LoRA's factors apart.
//!
//! - LoRA+ (arXiv 2402.12354, `peft/optimizers/loraplus.py`): `B` and all vectors learn faster than `A`.
//! - LoRA-FA (arXiv 2308.03303, `peft/optimizers/lorafa.py`): `A` is frozen, the gradient of `B` is projected, and AdamW is
//!   the older one of transformers, which corrects the step and not the moments, and decays after it.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, Param, ParamGroup, ParamId};
use burn::optim::{AdaptiveMomentumState, LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};
use peft_core::adapter::slots;
use peft_core::model::state;
use peft_core::{PeftError, PeftModel, Result};

use crate::train::adamw::FusedAdamW;
use crate::train::adamw_8bit::AdamW8bit;
use crate::train::config::{Optim, TrainConfig};
use crate::train::placed::Placed;

/// The optimizer for the adapter `name` of a model, and the parameters that it wants frozen.
///
/// # Errors
/// If LoRA-FA is asked for and the adapter is not LoRA, or a kind of it that it does not know.
pub fn optimizer<M: Module>(
    config: &TrainConfig,
    peft: &PeftModel<M>,
    name: &str,
) -> Result<(ModuleOptimizer, HashSet<ParamId>)> {
    if config.lora_fa {
        return lora_fa(config, peft, name);
    }
    let adamw = |decay: f64| FusedAdamW::new([config.adam_beta1, config.adam_beta2], config.adam_epsilon, decay);
    let in_8_bits = |decay: f64| AdamW8bit {
        beta_1: config.adam_beta1,
        beta_2: config.adam_beta2,
        epsilon: config.adam_epsilon,
        decay,
        whole: adamw(decay).composed(),
    };
    let Some(ratio) = config.loraplus_lr_ratio else {
        let optimizer = match config.optim {
            Optim::AdamW => ModuleOptimizer::from(Placed(adamw(config.weight_decay))),
            Optim::AdamW8bit => ModuleOptimizer::from(Placed(in_8_bits(config.weight_decay))),
        };
        return Ok((optimizer, HashSet::new()));
    };
    let optimizer = match config.optim {
        Optim::AdamW => lora_plus(config, ratio, peft, name, adamw),
        Optim::AdamW8bit => lora_plus(config, ratio, peft, name, in_8_bits),
    };
    Ok((optimizer, HashSet::new()))
}

/// LoRA+ on an optimizer that is made for a weight decay.
fn lora_plus<M: Module, O: Optimizer>(
    config: &TrainConfig,
    ratio: f64,
    peft: &PeftModel<M>,
    name: &str,
    optimizer: impl Fn(f64) -> O,
) -> ModuleOptimizer {
    let decay = config.loraplus_weight_decay;
    let of_tables = config.loraplus_lr_embedding / config.learning_rate;
    let mut groups: [Vec<ParamId>; 3] = Default::default();
    for parameter in state::parameters(peft.model(), name) {
        match Group::of(&parameter) {
            Group::A => {}
            Group::Table => groups[0].push(parameter.id),
            Group::B => groups[1].push(parameter.id),
            Group::Undecayed => groups[2].push(parameter.id),
        }
    }
    let faster = |decay, factor| Placed(Faster { optimizer: optimizer(decay), factor });
    let mut all = ModuleOptimizer::from(faster(decay, 1.0));
    for (ids, (decay, factor)) in groups.into_iter().zip([(decay, of_tables), (decay, ratio), (0.0, ratio)]) {
        all = all.with_group(ParamGroup::from_ids(ids), faster(decay, factor), None);
    }
    all
}

fn lora_fa<M: Module>(
    config: &TrainConfig,
    peft: &PeftModel<M>,
    name: &str,
) -> Result<(ModuleOptimizer, HashSet<ParamId>)> {
    let adam = AdamThenDecay {
        beta_1: config.adam_beta1,
        beta_2: config.adam_beta2,
        epsilon: config.adam_epsilon,
        decay: config.weight_decay,
        projection: None,
    };
    let mut optimizer = ModuleOptimizer::from(Placed(adam.clone()));
    let mut frozen = HashSet::new();
    let known = peft.adapters().get(name);
    let known = known.ok_or_else(|| PeftError::AdapterName(format!("there is no adapter `{name}` to train")))?;
    let Some(method) = known.config.as_gradient_projection() else {
        let reason = format!("it is for LoRA, and this adapter is {}; train without it", known.config.peft_type());
        return Err(PeftError::unsupported("LoRA-FA", reason));
    };
    for pair in method.pairs(&slots::collect(peft.model()), name)? {
        frozen.insert(pair.frozen);
        let projected = Placed(AdamThenDecay { projection: Some(pair.projection), ..adam.clone() });
        optimizer = optimizer.with_group(ParamGroup::from_ids(vec![pair.trained]), projected, None);
    }
    Ok((optimizer, frozen))
}

/// The model with these parameters frozen, or trained again.
pub fn set_frozen<M: Module>(model: M, ids: &HashSet<ParamId>, frozen: bool) -> M {
    struct SetFrozen<'a>(&'a HashSet<ParamId>, bool);
    impl ModuleMapper for SetFrozen<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.0.contains(&param.id) { param.set_require_grad(!self.1) } else { param }
        }
    }
    if ids.is_empty() { model } else { model.map(&mut SetFrozen(ids, frozen)) }
}

/// LoRA+'s groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    A,
    /// The factors on an embedding.
    Table,
    B,
    /// As `B`, without weight decay: biases, and what belongs to a `LayerNorm`.
    Undecayed,
}

impl Group {
    fn of(parameter: &state::Parameter) -> Self {
        let key = &parameter.key;
        if key.contains("lora_embedding_") {
            Self::Table
        } else if !key.contains("lora_B") && parameter.rank != 1 {
            Self::A
        } else if key.contains("bias") || parameter.param.owner == "LayerNorm" {
            Self::Undecayed
        } else {
            Self::B
        }
    }
}

/// An optimizer at a multiple of the learning rate.
#[derive(Clone)]
struct Faster<O> {
    optimizer: O,
    factor: f64,
}

impl<O: Optimizer> Optimizer for Faster<O> {
    type State<const D: usize> = O::State<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        self.optimizer.step(lr * self.factor, tensor, grad, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        O::to_device(state, device)
    }
}

/// Adam whose step, not whose moments, is corrected, and weight decay after it.
#[derive(Clone)]
struct AdamThenDecay {
    beta_1: f64,
    beta_2: f64,
    epsilon: f64,
    decay: f64,
    /// `[rank, rank]`, for gradients `[out, rank]`.
    projection: Option<Tensor<2>>,
}

impl Optimizer for AdamThenDecay {
    type State<const D: usize> = AdaptiveMomentumState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let grad = match &self.projection {
            Some(projection) => {
                let dims = grad.dims();
                let matrix = grad.reshape([dims[0], dims[1]]);
                let projection = projection.clone().to_device(&matrix.device());
                matrix.matmul(projection).reshape(dims)
            }
            None => grad,
        };
        let mut state = state.unwrap_or_else(|| AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()));
        state.time += 1;
        state.moment_1 = state.moment_1.mul_scalar(self.beta_1) + grad.clone().mul_scalar(1.0 - self.beta_1);
        state.moment_2 = state.moment_2.mul_scalar(self.beta_2) + grad.square().mul_scalar(1.0 - self.beta_2);
        let time = i32::try_from(state.time).unwrap_or(i32::MAX);
        let rate = lr * (1.0 - self.beta_2.powi(time)).sqrt() / (1.0 - self.beta_1.powi(time));
        let step = state.moment_1.clone() / state.moment_2.clone().sqrt().add_scalar(self.epsilon);
        let moved = tensor - step.mul_scalar(rate);
        (moved.mul_scalar(1.0 - lr * self.decay), Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.to_device(device)
    }
}
