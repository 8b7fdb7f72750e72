//! AdamW, in one pass over each parameter where the device has a kernel for that.

use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};
use peft_core::ops::{AdamWStep, adamw_step, has_adamw_step};

/// Burn's AdamW, or the same in one kernel.
#[derive(Clone)]
pub(crate) struct FusedAdamW {
    betas: [f32; 2],
    epsilon: f32,
    decay: f32,
    composed: AdamW,
}

impl FusedAdamW {
    pub(crate) fn new(betas: [f64; 2], epsilon: f64, decay: f64) -> Self {
        let (betas, epsilon, decay) = (betas.map(|it| it as f32), epsilon as f32, decay as f32);
        let composed = AdamWConfig::new()
            .with_beta_1(betas[0])
            .with_beta_2(betas[1])
            .with_epsilon(epsilon)
            .with_weight_decay(decay)
            .build();
        Self { betas, epsilon, decay, composed }
    }

    /// Burn's.
    pub(crate) fn composed(self) -> AdamW {
        self.composed
    }
}

impl Optimizer for FusedAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        if !has_adamw_step(&tensor) {
            return self.composed.step(lr, tensor, grad, state);
        }
        let (time, moments) = match state.map(|it| it.momentum) {
            Some(it) => (it.time + 1, [it.moment_1, it.moment_2]),
            None => (1, [(); 2].map(|()| tensor.zeros_like())),
        };
        let Self { betas, epsilon, decay, .. } = *self;
        let step = AdamWStep { rate: lr as f32, betas, epsilon, decay, time: time as i32 };
        let (tensor, [first, second]) = adamw_step(tensor, grad, moments, step);
        (tensor, Some(AdamWState::new(AdaptiveMomentumState::new(time, first, second))))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        AdamW::to_device(state, device)
    }
}
