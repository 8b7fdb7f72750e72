//! Steps of AdamW.

use burn::tensor::Tensor;

use super::{assert_close, is_on_flex, numbers, values};
use crate::ops::{self};

/// The kernel of cards against Burn's optimizer.
#[test]
fn a_step_of_adamw_is_that_of_burn() {
    use burn::optim::{AdamWConfig, Optimizer};
    for shape in [[1, 1], [3, 17], [40, 64]] {
        let mut parameter: Tensor<2> = numbers(shape, 1);
        if !ops::has_adamw_step(&parameter) {
            assert!(is_on_flex() || std::env::var("PEFT_TEST_DEVICE").as_deref() == Ok("tch"));
            continue;
        }
        let burns = AdamWConfig::new().with_beta_2(0.99).with_weight_decay(0.1).build();
        let (mut theirs, mut state) = (parameter.clone(), None);
        let mut moments = [(); 2].map(|()| parameter.zeros_like());
        for time in 1..5 {
            let grad: Tensor<2> = numbers(shape, 10 + time as usize);
            let betas = [0.9, 0.99];
            let step = ops::AdamWStep { rate: 0.01, betas, epsilon: 1e-5, decay: 0.1, time };
            (parameter, moments) = ops::adamw_step(parameter, grad.clone(), moments, step);
            (theirs, state) = burns.step(0.01, theirs, grad, state);
            assert_close("a step of AdamW", &values(parameter.clone()), &values(theirs.clone()));
        }
        let state = state.expect("moments");
        let [first, second] = moments;
        assert_close("the first moment", &values(first), &values(state.momentum.moment_1));
        assert_close("the second moment", &values(second), &values(state.momentum.moment_2));
    }
}
