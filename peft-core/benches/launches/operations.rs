//! Operations with a kernel of their own, on any device and at any size.

use burn::tensor::{Device, Distribution, Int, Tensor};
use peft_core::ops::{self, AttentionMask, Layout, LowRank, Pairing, RotaryTable, Visibility, linear_low_rank};

pub(crate) type Operation = Box<dyn Fn() -> Tensor<3>>;

/// What an operation works on.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) batch: usize,
    pub(crate) length: usize,
    pub(crate) heads: usize,
    /// Numbers of a head, an even count.
    pub(crate) width: usize,
    pub(crate) vocabulary: usize,
    pub(crate) rank: usize,
}

/// Two rows of 256 tokens as wide as those of GPT-2. All of it fits into what a driver in software gives away at once.
pub(crate) const WIDE: Size = Size { batch: 2, length: 256, heads: 12, width: 64, vocabulary: 20_000, rank: 8 };

impl Size {
    /// How many numbers the tensor has that an operation is about: scores, logits, or rows of a hidden state.
    pub(crate) fn numbers(self, operation: &str) -> usize {
        match operation {
            "attention, causal" => self.batch * self.heads * self.length * self.length,
            "linear_cross_entropy" => self.batch * self.length * self.vocabulary,
            _ => self.batch * self.length * self.heads * self.width,
        }
    }
}

/// Labels count up: there must be as many tokens in the vocabulary as there are rows.
pub(crate) fn operations(device: &Device, size: Size) -> Vec<(&'static str, Operation)> {
    let Size { batch, length, heads, width, vocabulary, rank } = size;
    let auto = device.clone().autodiff();
    let (rows, all) = (batch * length, heads * width);
    let numbers = |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Default, &auto).require_grad();
    let vector = |width: usize| Tensor::<1>::random([width], Distribution::Default, &auto);
    let matrix = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &auto);
    let (x, y) = (numbers([batch, length, all]), numbers([batch, length, all]));
    let split = move |x: &Tensor<3>| x.clone().reshape([batch, length, heads, width]).swap_dims(1, 2);
    let flat = move |x: Tensor<4>| x.swap_dims(1, 2).reshape([batch, length, all]);
    let (weight, bias) = (vector(all), vector(all));
    let (head, labels) = (matrix([vocabulary, all]), Tensor::<1, Int>::arange(0..rows as i64, device));
    let (frozen, a, b) = (matrix([all, all]), matrix([rank, all]).require_grad(), matrix([all, rank]).require_grad());
    let positions = Tensor::<1, Int>::arange(0..length as i64, device).reshape([1, length as i32]);
    let frequencies: Vec<f32> = (0..width / 2).map(|at| 0.7f32.powi(at as i32)).collect();
    let table = RotaryTable::new(positions, &frequencies, 1.0, Pairing::HalfSplit);
    let mask = AttentionMask::new(Visibility::around(0..length, None, 0, device), false);

    vec![
        (
            "gelu_tanh",
            Box::new({
                let x = x.clone();
                move || ops::gelu_tanh(x.clone())
            }),
        ),
        (
            "silu_mul",
            Box::new({
                let (x, y) = (x.clone(), y.clone());
                move || ops::silu_mul(x.clone(), y.clone())
            }),
        ),
        (
            "rms_norm",
            Box::new({
                let (x, weight) = (x.clone(), weight.clone());
                move || ops::rms_norm(x.clone(), weight.clone(), 1e-6)
            }),
        ),
        (
            "layer_norm",
            Box::new({
                let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
                move || ops::layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5)
            }),
        ),
        (
            "rotate",
            Box::new({
                let x = x.clone();
                move || table.rotate(split(&x)).reshape([batch * heads, length, width])
            }),
        ),
        (
            "dropout",
            Box::new({
                let x = x.clone();
                move || ops::dropout(x.clone(), 0.1)
            }),
        ),
        (
            "attention, causal",
            Box::new({
                let (x, y) = (x.clone(), y.clone());
                move || flat(ops::attention(split(&x), split(&y), split(&y), Some(&mask), 0.25, 0.0))
            }),
        ),
        (
            "linear_cross_entropy",
            Box::new({
                let x = x.clone();
                move || {
                    let hidden = x.clone().reshape([rows, all]);
                    ops::linear_cross_entropy(hidden, head.clone(), labels.clone(), 0.0).unsqueeze()
                }
            }),
        ),
        (
            "linear_low_rank",
            Box::new({
                let x = x.clone();
                move || {
                    let update = LowRank { a: a.clone(), b: b.clone(), scale: 2.0, dropout: 0.0 };
                    linear_low_rank(x.clone().reshape([rows, all]), frozen.clone(), None, Layout::OutIn, update)
                        .unsqueeze()
                }
            }),
        ),
    ]
}
