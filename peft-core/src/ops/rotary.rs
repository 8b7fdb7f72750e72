//! Rotary position embedding.

use burn::tensor::{Device, Int, Tensor, TensorData};

#[cfg(feature = "flex")]
use super::kernel;

/// How a checkpoint pairs the coordinates that are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `(i, i + d/2)`: LLaMA, Qwen2 and relatives, as stored on the hub.
    HalfSplit,
    /// `(2i, 2i + 1)`: GPT-J.
    Neighbours,
}

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
        #[cfg(feature = "flex")]
        if kernel::fits(&input) && kernel::fits(&self.cos) && kernel::fits(&self.sin) {
            return fused::rotate(input, self);
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

#[cfg(feature = "flex")]
mod fused {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
    use burn::backend::flex::FlexTensor;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::{Shape, Tensor};

    use super::{Pairing, RotaryTable};
    use crate::ops::kernel::{self, Kernel, Rows};

    #[backend_extension(Flex, Autodiff)]
    pub(crate) trait RotaryOps: Backend {
        fn turn_pairs(
            input: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            pairing: Pairing,
        ) -> FloatTensor<Self>;
    }

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
    fn turn(input: FlexTensor, cos: &FlexTensor, sin: &FlexTensor, direction: f32, pairing: Pairing) -> FlexTensor {
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
        fn turn_pairs(input: FlexTensor, cos: FlexTensor, sin: FlexTensor, pairing: Pairing) -> FlexTensor {
            turn(input, &cos, &sin, 1.0, pairing)
        }
    }

    impl<C: CheckpointStrategy> RotaryOps for Autodiff<Flex, C> {
        fn turn_pairs(
            input: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            pairing: Pairing,
        ) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct TurnBack;
            impl Backward<Flex, 1> for TurnBack {
                type State = (FlexTensor, FlexTensor, Pairing);
                fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                    let (cos, sin, pairing) = ops.state;
                    unary::<Flex, _>(ops.parents, ops.node, grads, |grad| turn(grad, &cos, &sin, -1.0, pairing));
                }
            }
            let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
            let (input, node) = input.into_parts();
            let output = turn(input, &cos, &sin, 1.0, pairing);
            match TurnBack.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((cos, sin, pairing), output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    pub(crate) fn rotate(input: Tensor<4>, table: &RotaryTable) -> Tensor<4> {
        let (cos, sin) = (table.cos.clone().into_dispatch(), table.sin.clone().into_dispatch());
        Tensor::from_dispatch(Dispatch::turn_pairs(input.into_dispatch(), cos, sin, table.pairing))
    }
}
