//! Every fused operation against its plain composition, forward and backward: `cargo bench --workspace --bench ops`.
//! On a card: `PEFT_TEST_DEVICE=cuda cargo bench -p peft-core --features cuda --bench ops`.
//!
//! The two run in turn, so that a busy machine slows both, and the ratio of medians is what counts. Criterion would
//! time one after the other, and its features make Burn compile once more.

#![allow(clippy::print_stdout)] // what a bench is for

#[path = "support/device.rs"]
mod device;

use std::time::Instant;

use burn::optim::{AdamWConfig, Optimizer};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use peft_core::Layout;
use peft_core::ops::{self, AdamWStep, AttentionMask, Convolution, LowRank, Pairing, RotaryTable, Visibility, plain};
use peft_core::quant::{FourBit, QuantFormat, Rounding, quantized};

const ROUNDS: usize = 15;

/// Seconds of a piece of work, which is over when the device has done it, and what it gives.
fn timed<R>(device: &Device, run: impl FnOnce() -> R) -> (f64, R) {
    device.sync().expect("the device works");
    let begun = Instant::now();
    let result = run();
    device.sync().expect("the device works");
    (begun.elapsed().as_secs_f64(), result)
}

/// Seconds of one forward and backward pass.
fn time<const D: usize, const N: usize>(inputs: &[Tensor<D>; N], f: &dyn Fn([Tensor<D>; N]) -> Tensor<D>) -> f64 {
    let tracked = inputs.clone().map(|it| it.autodiff().require_grad());
    let (seconds, gradients) = timed(&inputs[0].device(), || f(tracked.clone()).sum().backward());
    assert!(tracked[0].grad(&gradients).is_some());
    seconds
}

fn compare<const D: usize, const N: usize>(
    name: &str,
    inputs: [Tensor<D>; N],
    fused: impl Fn([Tensor<D>; N]) -> Tensor<D>,
    composed: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) {
    // On a card, what the composed form calls might have kernels of ours, too.
    compare_times(name, || time(&inputs, &fused), || plain::only(|| time(&inputs, &composed)));
}

/// What the two of them take by turns, if the operation was asked for.
fn compare_times(name: &str, fused: impl Fn() -> f64, composed: impl Fn() -> f64) {
    if std::env::args().skip(1).any(|it| !it.starts_with('-') && !name.contains(&it)) {
        return;
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(fused());
        theirs.push(composed());
    }
    let median = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        1e3 * seconds[ROUNDS / 2]
    };
    let (ours, theirs) = (median(ours), median(theirs));
    println!("{name:<24} {ours:>9.2} ms  composed {theirs:>9.2} ms  ratio {:.2}", ours / theirs);
}

fn main() {
    let Some(device) = device::device() else {
        println!("name a device in PEFT_TEST_DEVICE that this build has");
        return;
    };
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let picture = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    // GPT-2's sizes, 4 × 128 tokens.
    let (rows, d_model, d_inner) = (512, 768, 3072);

    let wide = || [random([rows, d_inner])];
    compare("gelu", wide(), |[x]| ops::gelu(x), |[x]| plain::gelu(x));
    compare("gelu_tanh", wide(), |[x]| ops::gelu_tanh(x), |[x]| plain::gelu_tanh(x));
    compare("quick_gelu", wide(), |[x]| ops::quick_gelu(x), |[x]| plain::quick_gelu(x));
    compare("silu", wide(), |[x]| ops::silu(x), |[x]| plain::silu(x));
    let pair = [random([rows, d_inner]), random([rows, d_inner])];
    compare("silu_mul", pair, |[a, b]| ops::silu_mul(a, b), |[a, b]| plain::silu_mul(a, b));

    let ones = || Tensor::<1>::ones([d_model], &device);
    compare(
        "layer_norm",
        [random([rows, d_model])],
        |[x]| ops::layer_norm(x, ones(), ones(), 1e-5),
        |[x]| plain::layer_norm(x, ones(), ones(), 1e-5),
    );
    compare(
        "rms_norm",
        [random([rows, d_model])],
        |[x]| ops::rms_norm(x, ones(), 1e-5),
        |[x]| plain::rms_norm(x, ones(), 1e-5),
    );

    for (channels, size, groups) in [(320, 64, 1), (640, 32, 1), (1280, 8, 1), (128, 128, 128)] {
        let how = Convolution { stride: [1, 1], padding: [1, 1], groups };
        let weight = picture([channels, channels / groups, 3, 3]);
        compare(
            &format!("conv2d {channels}x{size}x{size} / {groups}"),
            [picture([1, channels, size, size])],
            |[x]| ops::conv2d(x, weight.clone(), None, how),
            |[x]| plain::conv2d(x, weight.clone(), None, how),
        );
    }

    for (d_in, d_out) in [(d_model, d_model), (d_model, d_inner), (d_inner, d_model)] {
        let weight = random([d_out, d_in]);
        compare(
            &format!("linear {d_in} to {d_out}"),
            [random([rows, d_in])],
            |[x]| ops::linear(x, weight.clone(), None, Layout::OutIn),
            |[x]| plain::linear(x, weight.clone().transpose(), None),
        );
    }

    // Codes, against the numbers that they stand for.
    let whole = random([d_inner, d_model]);
    for (name, format) in [("NF4", QuantFormat::FourBit(FourBit::Nf4)), ("int8", QuantFormat::Int8)] {
        let Ok(codes) = quantized(&whole, format, true, Rounding::Single) else { continue };
        for rows in [4, rows] {
            compare(
                &format!("linear {name}, {rows} rows"),
                [random([rows, d_model])],
                |[x]| ops::linear(x, codes.clone(), None, Layout::OutIn),
                |[x]| plain::linear(x, whole.clone().transpose(), None),
            );
        }
    }

    for rank in [8, 64] {
        compare(
            &format!("low_rank_update r{rank}"),
            [random([rows, d_inner]), random([rows, d_model]), random([rank, d_model]), random([d_inner, rank])],
            |[y, x, a, b]| ops::low_rank_update(y, x, LowRank { a, b, scale: 2.0, dropout: 0.0 }),
            |[y, x, a, b]| plain::low_rank_update(y, x, a, b, 2.0),
        );
    }
    for rank in [8, 64] {
        let weight = random([d_inner, d_model]);
        compare(
            &format!("linear_low_rank r{rank}"),
            [random([rows, d_model]), random([rank, d_model]), random([d_inner, rank])],
            |[x, a, b]| {
                let update = LowRank { a, b, scale: 2.0, dropout: 0.0 };
                ops::linear_low_rank(x, weight.clone(), None, Layout::OutIn, update)
            },
            |[x, a, b]| {
                let output = plain::linear(x.clone(), weight.clone().transpose(), None);
                plain::low_rank_update(output, x, a, b, 2.0)
            },
        );
    }
    let joint = |parts: [Tensor<2>; 3]| Tensor::cat(parts.into_iter().rev().collect(), 1);
    compare(
        "split",
        [random([rows, 3 * d_model])],
        |[x]| joint(ops::split(x * 0.5, [d_model; 3])),
        |[x]| joint(plain::split(x * 0.5, [d_model; 3])),
    );
    compare(
        "dropout",
        [random([rows, d_model])],
        |[x]| ops::dropout(x, 0.1),
        |[x]| {
            let kept = Distribution::Bernoulli(0.9);
            x * Tensor::<2>::random([rows, d_model], kept, &device).mul_scalar(1.0 / 0.9)
        },
    );

    let heads = |batch: usize, heads: usize, seq: usize| {
        Tensor::<4>::random([batch, seq, heads, 64], Distribution::Normal(0.0, 1.0), &device).swap_dims(1, 2)
    };
    for pairing in [Pairing::HalfSplit, Pairing::Neighbours] {
        let positions = Tensor::<1, Int>::arange(0..256, &device).unsqueeze();
        let table = RotaryTable::new(positions, &[0.5; 32], 1.0, pairing);
        compare(&format!("rotate {pairing:?}"), [heads(2, 9, 256)], |[x]| table.rotate(x), |[x]| table.rotate_plain(x));
    }
    for (name, batch, query_heads, kv_heads, seq) in
        [("attention", 4, 12, 12, 128), ("attention grouped", 2, 9, 3, 256), ("attention long", 1, 9, 3, 1024)]
    {
        let mask = AttentionMask::new(Visibility::around(0..seq, None, 0, &device), false);
        compare(
            name,
            [heads(batch, query_heads, seq), heads(batch, kv_heads, seq), heads(batch, kv_heads, seq)],
            |[q, k, v]| ops::attention(q, k, v, Some(&mask), 0.125, 0.0),
            |[q, k, v]| ops::attention_plain(q, k, v, Some(&mask), 0.125, None, 0.0),
        );
    }

    let vocab = 50_257;
    let labels: Vec<i64> = (0..rows as i64).map(|row| row * 97 % vocab as i64).collect();
    let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [rows]), &device);
    let weight = random([vocab, d_model]).mul_scalar(0.02);
    compare(
        "linear_cross_entropy",
        [random([rows, d_model])],
        |[x]| ops::linear_cross_entropy(x, weight.clone(), labels.clone(), 0.0).unsqueeze(),
        |[x]| {
            let logits = x.matmul(weight.clone().transpose());
            plain::cross_entropy(logits, labels.clone(), 0.0).unsqueeze()
        },
    );

    // Where there is a kernel for it, for low-rank factors on all linear layers.
    let parameters: Vec<_> = (0..48).flat_map(|_| [random([8, d_model]), random([d_inner, 8])]).collect();
    if parameters.iter().all(ops::has_adamw_step) {
        let moments: Vec<_> = parameters.iter().map(|it| [it.zeros_like(), it.zeros_like()]).collect();
        let step = AdamWStep { rate: 1e-3, betas: [0.9, 0.999], epsilon: 1e-8, decay: 0.01, time: 1 };
        let ours = || {
            let all = parameters.iter().zip(&moments);
            let moved = |(it, moments): (&Tensor<2>, &[Tensor<2>; 2])| {
                ops::adamw_step(it.clone(), it.clone(), moments.clone(), step)
            };
            drop(ops::together(|| all.map(moved).collect::<Vec<_>>()));
        };
        let optimizer = AdamWConfig::new().with_weight_decay(0.01).build();
        let states: Vec<_> = parameters.iter().map(|it| optimizer.step(1e-3, it.clone(), it.clone(), None).1).collect();
        let burns = || {
            let all = parameters.iter().zip(&states);
            let moved =
                |(it, state): (&Tensor<2>, &Option<_>)| optimizer.step(1e-3, it.clone(), it.clone(), state.clone());
            drop(all.map(moved).collect::<Vec<_>>());
        };
        compare_times("AdamW, 96 matrices", || timed(&device, ours).0, || timed(&device, burns).0);
    }
}
