//! LoftQ: factors that start from what quantising takes away (arXiv 2310.08659).
//!
//! A layer is quantised, its factors become the best ones for the rest, what is left without them is quantised again, and so on.
//! The reference puts the last codes in the place of the base weight. Here the base stays as it is, and the adapter holds the codes
//! and computes with them in its place. The update is not divided by its scale: the two make up the base where `lora_alpha` is `r`.
//!
//! Source: `peft/utils/loftq_utils.py`.

use burn::tensor::{Device, Tensor, TensorData};
use faer::Mat;
use peft_core::quant::{FourBit, QuantFormat, Quantized, Rounding, packed_tensor};
use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::svd;

/// More rounds than anybody takes; the paper has 5.
const MOST_ROUNDS: usize = 1000;

/// `loftq_config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoftqConfig {
    /// 4 for NF4, 8 for int8.
    #[serde(default = "default_bits")]
    pub loftq_bits: usize,
    /// How often the layer is quantised.
    #[serde(default = "default_rounds")]
    pub loftq_iter: usize,
    /// Fields that are not read. Written back as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn default_bits() -> usize {
    4
}

fn default_rounds() -> usize {
    1
}

impl Default for LoftqConfig {
    fn default() -> Self {
        Self { loftq_bits: default_bits(), loftq_iter: default_rounds(), other: Map::new() }
    }
}

/// LoftQ, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loftq {
    format: QuantFormat,
    rounds: usize,
}

impl Loftq {
    pub(crate) fn of(config: &LoftqConfig) -> Result<Self> {
        let format = match config.loftq_bits {
            4 => QuantFormat::FourBit(FourBit::Nf4),
            8 => QuantFormat::Int8,
            bits => return Err(PeftError::config("loftq_bits", format!("is {bits}, expected 4 or 8"))),
        };
        match config.loftq_iter {
            rounds @ 1..=MOST_ROUNDS => Ok(Self { format, rounds }),
            rounds => {
                Err(PeftError::config("loftq_iter", format!("is {rounds}, expected a number from 1 to {MOST_ROUNDS}")))
            }
        }
    }

    /// The factors `A` and `B` of a weight `[out, in]`, and the codes that they are beside.
    ///
    /// Of a weight that is not finite all are NaN, or missing: what is made of it is refused by the name of its tensor.
    pub(crate) fn start(self, weight: &Tensor<2>, rank: usize) -> (Mat<f32>, Mat<f32>, Option<Quantized>) {
        let shape = weight.dims();
        let data = weight.to_data().convert::<f32>();
        let numbers = data.as_slice::<f32>().unwrap_or(&[]);
        let mut rest = numbers.to_vec();
        for round in 1.. {
            let Ok(codes) = Quantized::new(&rest, shape, self.format, false, Rounding::Single) else { break };
            let meant = codes.view().widened();
            let (a, b) = factors(&of_rows(shape, |at| numbers[at] - meant[at]), rank);
            if round == self.rounds {
                return (a, b, Some(codes));
            }
            let update = &b * &a;
            for (at, to) in rest.iter_mut().enumerate() {
                *to = numbers[at] - update[(at / shape[1], at % shape[1])];
            }
        }
        let (a, b) = factors(&of_rows(shape, |_| f32::NAN), rank);
        (a, b, None)
    }
}

fn of_rows([rows, columns]: [usize; 2], number: impl Fn(usize) -> f32) -> Mat<f32> {
    Mat::from_fn(rows, columns, |row, column| number(row * columns + column))
}

/// `A = √S Vᵀ` `[rank, in]` and `B = U √S` `[out, rank]`.
pub(crate) fn factors(rest: &Mat<f32>, rank: usize) -> (Mat<f32>, Mat<f32>) {
    let (u, s, v) = svd::thin(rest);
    let a = Mat::from_fn(rank, rest.ncols(), |row, column| s[row].sqrt() * v[(column, row)]);
    let b = Mat::from_fn(rest.nrows(), rank, |row, column| u[(row, column)] * s[column].sqrt());
    (a, b)
}

/// Codes as a weight `[out, in]`: packed where the device computes with them, else what they mean.
pub(crate) fn stored(codes: &Quantized, device: &Device) -> Tensor<2> {
    let matrix = codes.view();
    packed_tensor(&matrix, device)
        .unwrap_or_else(|_| Tensor::from_data(TensorData::new(matrix.widened(), [matrix.lines, matrix.width]), device))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::files::checkpoint::TensorFile;

    use super::*;
    use crate::svd::to_mat;

    #[test]
    fn codes_and_factors_are_those_of_the_reference() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quantised/loftq.safetensors");
        let file = TensorFile::open(file).unwrap();
        let weight = Tensor::<2>::from_data(file.floats("weight").unwrap(), &Device::default());
        for (bits, rounds) in [(4, 1), (4, 3), (8, 2)] {
            let config = LoftqConfig { loftq_bits: bits, loftq_iter: rounds, ..LoftqConfig::default() };
            let (a, b, codes) = Loftq::of(&config).unwrap().start(&weight, 4);
            let number = |what: &str| -> Vec<f32> {
                file.floats(&format!("{bits}.{rounds}.{what}")).unwrap().iter::<f32>().collect()
            };
            let meant = codes.unwrap().view().widened();
            let update = &b * &a;
            let update: Vec<f32> = (0..meant.len()).map(|at| update[(at / 64, at % 64)]).collect();
            for (what, ours, theirs) in [("meant", &meant, number("meant")), ("update", &update, number("update"))] {
                for (at, (x, y)) in ours.iter().zip(&theirs).enumerate() {
                    assert!((x - y).abs() <= 1e-5, "{bits} bits, {rounds} rounds, {what} {at}: {x} is not {y}");
                }
            }
        }
    }

    /// What is computed is nearer to the weight than codes alone are, and nearer with every round.
    #[test]
    fn factors_make_up_for_what_codes_lose() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quantised/loftq.safetensors");
        let weight = TensorFile::open(file).unwrap().floats("weight").unwrap();
        let weight = Tensor::<2>::from_data(weight, &Device::default());
        let whole = to_mat(&weight);
        let error = |rounds: usize| {
            let config = LoftqConfig { loftq_iter: rounds, ..LoftqConfig::default() };
            let (a, b, codes) = Loftq::of(&config).unwrap().start(&weight, 4);
            let meant = codes.unwrap().view().widened();
            let alone = &whole - &of_rows([24, 64], |at| meant[at]);
            ((&alone - &b * &a).norm_l2(), alone.norm_l2())
        };
        let [one, five] = [1, 5].map(error);
        assert!(one.0 < 0.9 * one.1, "{one:?}");
        assert!(five.0 < one.0, "{five:?} after {one:?}");
    }

    #[test]
    fn other_bits_and_rounds_are_refused() {
        let error = |config: LoftqConfig| Loftq::of(&config).unwrap_err().to_string();
        assert!(error(LoftqConfig { loftq_bits: 2, ..LoftqConfig::default() }).contains("`loftq_bits` is 2"));
        assert!(error(LoftqConfig { loftq_iter: 0, ..LoftqConfig::default() }).contains("`loftq_iter` is 0"));
    }

    #[test]
    fn what_is_not_finite_stops_nobody() {
        let weight = Tensor::<2>::from_data([[1.0, f32::NAN], [0.5, 2.0]], &Device::default());
        let (a, b, codes) = Loftq::of(&LoftqConfig::default()).unwrap().start(&weight, 1);
        assert!(codes.is_none() && a[(0, 0)].is_nan() && b[(0, 0)].is_nan());
    }
}
