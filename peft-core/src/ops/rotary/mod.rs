//! Rotary position embedding.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(any(feature = "flex", feature = "cube"))]
mod fused;
mod pairing;

use burn::tensor::{Device, Int, Tensor, TensorData};

#[cfg(any(feature = "flex", feature = "cube"))]
use super::fits::fits;
pub use pairing::Pairing;

/// Cosines and sines of a batch of positions.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// `[batch or 1, 1, seq, d_rotary / 2]`
    cos: Tensor<4>,
    /// `[batch or 1, 1, seq, d_rotary / 2]`
    sin: Tensor<4>,
    pairing: Pairing,
}

impl RotaryTable {
    /// Angles `position · frequency`; cosines and sines times `scale` (1 except for YaRN and its like).
    ///
    /// # Shapes
    /// - positions: `[batch or 1, seq]`
    /// - frequencies: `d_rotary / 2` numbers
    pub fn new(positions: Tensor<2, Int>, frequencies: &[f32], scale: f64, pairing: Pairing) -> Self {
        let device: Device = positions.device();
        let [batch, seq] = positions.dims();
        let half = frequencies.len();
        let frequencies = Tensor::<1>::from_data(TensorData::new(frequencies.to_vec(), [half]), &device);
        let angles = positions.float().reshape([batch, 1, seq, 1]) * frequencies.reshape([1, 1, 1, half]);
        Self { cos: angles.clone().cos().mul_scalar(scale), sin: angles.sin().mul_scalar(scale), pairing }
    }

    /// Rotates the first `d_rotary` coordinates of every head; the others pass.
    ///
    /// # Shapes
    /// - input, output: `[batch, heads, seq, d_head]`
    pub fn rotate(&self, input: Tensor<4>) -> Tensor<4> {
        #[cfg(any(feature = "flex", feature = "cube"))]
        if fits(&input)
            && [&self.cos, &self.sin].into_iter().all(|it| fits(it) && it.dtype() == burn::tensor::DType::F32)
        {
            return fused::rotate(input, self.cos.clone(), self.sin.clone(), self.pairing);
        }
        self.rotate_plain(input)
    }

    /// [`RotaryTable::rotate`] composed of Burn's own operations.
    #[doc(hidden)]
    pub fn rotate_plain(&self, input: Tensor<4>) -> Tensor<4> {
        let [batch, heads, seq, d_head] = input.dims();
        let half = self.cos.dims()[3];
        let rotary = 2 * half;
        let (turned, rest) = if rotary < d_head {
            (input.clone().narrow(3, 0, rotary), Some(input.narrow(3, rotary, d_head - rotary)))
        } else {
            (input, None)
        };
        let turned = match self.pairing {
            Pairing::HalfSplit => {
                let left = turned.clone().narrow(3, 0, half);
                let right = turned.narrow(3, half, half);
                let (left, right) = self.turn(left, right);
                Tensor::cat(vec![left, right], 3)
            }
            Pairing::Neighbours => {
                let pairs = turned.reshape([batch, heads, seq, half, 2]);
                let even = pairs.clone().narrow(4, 0, 1).reshape([batch, heads, seq, half]);
                let odd = pairs.narrow(4, 1, 1).reshape([batch, heads, seq, half]);
                let (even, odd) = self.turn(even, odd);
                Tensor::stack::<5>(vec![even, odd], 4).reshape([batch, heads, seq, rotary])
            }
        };
        match rest {
            Some(rest) => Tensor::cat(vec![turned, rest], 3),
            None => turned,
        }
    }

    fn turn(&self, a: Tensor<4>, b: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        (a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin)
    }
}
