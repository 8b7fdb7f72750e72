//! Rotary position embedding on the CPU.

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;

use super::fused::RotaryOps;
use super::pairing::Pairing;
use crate::ops::kernel::{self, Kernel, Rows};

/// One head at one position; a direction of −1 turns back.
struct Turn<'a> {
    output: &'a mut [f32],
    input: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    direction: f32,
    pairing: Pairing,
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let half = self.cos.len();
        let (turned, passed) = self.output.split_at_mut(2 * half);
        let (input, rest) = self.input.split_at(2 * half);
        passed.copy_from_slice(rest);
        match self.pairing {
            Pairing::HalfSplit => {
                let (left, right) = turned.split_at_mut(half);
                let (a, b) = input.split_at(half);
                let angles = self.cos.iter().zip(self.sin);
                let pairs = left.iter_mut().zip(right).zip(a.iter().zip(b));
                for (((left, right), (a, b)), (cos, sin)) in pairs.zip(angles) {
                    let sin = sin * self.direction;
                    *left = a * cos - b * sin;
                    *right = b * cos + a * sin;
                }
            }
            Pairing::Neighbours => {
                let angles = self.cos.iter().zip(self.sin);
                for ((turned, pair), (cos, sin)) in turned.chunks_mut(2).zip(input.chunks(2)).zip(angles) {
                    let sin = sin * self.direction;
                    turned[0] = pair[0] * cos - pair[1] * sin;
                    turned[1] = pair[1] * cos + pair[0] * sin;
                }
            }
        }
    }
}

/// The result lies as `[batch, seq, heads, d_head]`, as projections write and read it.
fn turn(input: FlexTensor, cos: &FlexTensor, sin: &FlexTensor, pairing: Pairing, direction: f32) -> FlexTensor {
    let [batch, heads, seq, d_head] = input.shape().dims::<4>();
    let (input, cos, sin) = (kernel::visible(input), kernel::visible(cos.clone()), kernel::visible(sin.clone()));
    let batches = cos.shape()[0];
    let (input, cos, sin) = (Rows::new(&input), Rows::new(&cos), Rows::new(&sin));
    let width = (heads * d_head).max(1);
    let positions = kernel::rows_per_piece(width);
    let output = kernel::pieces(batch * heads * seq * d_head, positions * width, |piece, output| {
        for (at, output) in output.chunks_mut(width).enumerate() {
            let (row, position) = ((piece * positions + at) / seq, (piece * positions + at) % seq);
            let angles = [if batches == 1 { 0 } else { row }, 0, position];
            for (head, output) in output.chunks_mut(d_head).enumerate() {
                let input = input.row([row, head, position]);
                let (cos, sin) = (cos.row(angles), sin.row(angles));
                kernel::simd(Turn { output, input, cos, sin, direction, pairing });
            }
        }
    });
    kernel::permuted(kernel::tensor(output, Shape::new([batch, seq, heads, d_head])), &[0, 2, 1, 3])
}

impl RotaryOps for Flex {
    fn turn_pairs(input: FlexTensor, cos: FlexTensor, sin: FlexTensor, pairing: Pairing, direction: f32) -> FlexTensor {
        turn(input, &cos, &sin, pairing, direction)
    }
}
