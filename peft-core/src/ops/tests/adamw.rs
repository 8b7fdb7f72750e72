//! Steps of AdamW.

use burn::tensor::Tensor;

use super::{assert_close, is_libtorch, is_on_flex, numbers, values};
use crate::ops::{self, AdamWStep};

/// The kernel of cards against Burn's optimizer.
#[test]
fn a_step_of_adamw_is_that_of_burn() {
    use burn::optim::{AdamWConfig, Optimizer};
    for shape in [[1, 1], [3, 17], [40, 64]] {
        let mut parameter: Tensor<2> = numbers(shape, 1);
        if !ops::has_adamw_step(&parameter) {
            assert!(is_on_flex() || is_libtorch());
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

/// Many parameters together are each for itself, those that others look at stay what they are, and rates keep apart.
#[test]
fn steps_together_are_those_of_each_parameter() {
    // The last one has more vectors than there are units.
    let shapes = (0..90).map(|at| [1 + at % 5, 1 + at * 7 % 40]).chain([[4200, 512]]);
    let parameters: Vec<Tensor<2>> = shapes.enumerate().map(|(at, it)| numbers(it, at)).collect();
    if !parameters.iter().all(ops::has_adamw_step) {
        assert!(is_on_flex() || is_libtorch());
        return;
    }
    let run = |keeps: bool| {
        let mut all: Vec<_> =
            parameters.iter().map(|it| (it.clone() * 1.0, [it.zeros_like(), it.zeros_like()])).collect();
        let mut kept = Vec::new();
        for time in 1..4 {
            let step = |at: usize, (parameter, moments): (Tensor<2>, [Tensor<2>; 2])| {
                let rate = if at.is_multiple_of(3) { 0.1 } else { 0.01 };
                let step = AdamWStep { rate, betas: [0.9, 0.99], epsilon: 1e-6, decay: 0.1, time };
                let grad = numbers(parameter.dims(), at + 100 * time as usize);
                // A view of a gradient, as products give.
                ops::adamw_step(parameter, grad.transpose().transpose(), moments, step)
            };
            if keeps {
                kept = all.iter().map(|(it, _)| (it.clone(), values(it.clone()))).collect();
                all = ops::together(|| all.into_iter().enumerate().map(|(at, it)| step(at, it)).collect());
            } else {
                all = all.into_iter().enumerate().map(|(at, it)| step(at, it)).collect();
            }
        }
        for (tensor, before) in kept {
            assert_eq!(values(tensor), before, "a parameter that was looked at has changed");
        }
        let numbers =
            |(parameter, [first, second]): (Tensor<2>, [Tensor<2>; 2])| [parameter, first, second].map(values);
        all.into_iter().map(numbers).collect::<Vec<_>>()
    };
    let (alone, together) = (run(false), run(true));
    assert_eq!(alone, together);
    let in_place: Vec<_> = ops::together(|| {
        let step = AdamWStep { rate: 0.1, betas: [0.9, 0.99], epsilon: 1e-6, decay: 0.1, time: 1 };
        let moved =
            |it: &Tensor<2>| ops::adamw_step(it.clone() * 1.0, it.clone(), [it.zeros_like(), it.zeros_like()], step).0;
        parameters.iter().map(moved).collect()
    });
    for (before, after) in parameters.iter().zip(in_place) {
        for (x, y) in values(before.clone()).into_iter().zip(values(after)) {
            // The first step of Adam is the rate in the direction of the gradient, which is the parameter here.
            let wanted = x * (1.0 - 0.01) - 0.1 * x / (x.abs() + 1e-6);
            assert!((y - wanted).abs() < 1e-5, "{y} is not {wanted}");
        }
    }
}
