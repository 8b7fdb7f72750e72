//! Dropout on the CPU.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use crate::ops::kernel::{self, Kernel, PIECE};
use crate::ops::random::drawn;

/// What decides which numbers are dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed {
    low: u32,
    high: u32,
    /// Numbers below are dropped.
    threshold: u32,
    scale: f32,
}

impl Seed {
    /// Draws from the generator of a CPU device.
    pub(crate) fn draw(device: &Device, probability: f64) -> Self {
        let drawn = drawn(2, device);
        // A uniform f32 has 24 random bits.
        let bits = |x: f32| (x * 16_777_216.0) as u32;
        Self {
            low: bits(drawn[0]),
            high: bits(drawn[1]),
            threshold: (probability * 4_294_967_296.0) as u32,
            scale: (1.0 / (1.0 - probability)) as f32,
        }
    }

    /// What the number at a place is multiplied by: a hash of the place (lowbias32 by Chris Wellons) against the
    /// threshold.
    #[inline(always)]
    pub(crate) fn factor(self, place: u32) -> f32 {
        let mut hash = place.wrapping_mul(0x9e37_79b9) ^ self.low.wrapping_mul(0x85eb_ca6b);
        hash ^= hash >> 16;
        hash = hash.wrapping_add(self.high).wrapping_mul(0x7feb_352d);
        hash ^= hash >> 15;
        hash = hash.wrapping_mul(0x846c_a68b);
        hash ^= hash >> 16;
        if hash < self.threshold { 0.0 } else { self.scale }
    }

    /// Drops from a contiguous tensor, in its memory if that is free.
    pub(crate) fn apply(self, tensor: FlexTensor) -> FlexTensor {
        struct Drop<'a>(&'a mut [f32], u32, Seed);
        impl Kernel for Drop<'_> {
            type Output = ();
            #[inline(always)]
            fn run(self) {
                let Self(numbers, first, seed) = self;
                for (at, x) in (0u32..).zip(numbers) {
                    *x *= seed.factor(first.wrapping_add(at));
                }
            }
        }
        kernel::overwrite(tensor, |numbers| {
            numbers.par_chunks_mut(PIECE).enumerate().for_each(|(piece, numbers)| {
                kernel::simd(Drop(numbers, (piece * PIECE) as u32, self));
            });
        })
    }
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait DropoutOps: Backend {
    fn drop_seeded(input: FloatTensor<Self>, seed: Seed) -> FloatTensor<Self>;
}

impl DropoutOps for Flex {
    fn drop_seeded(input: FlexTensor, seed: Seed) -> FlexTensor {
        seed.apply(input)
    }
}

impl<C: CheckpointStrategy> DropoutOps for Autodiff<Flex, C> {
    fn drop_seeded(input: FloatTensor<Self>, seed: Seed) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct DropBackward(Seed);
        impl Backward<Flex, 1> for DropBackward {
            type State = ();
            fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                unary::<Flex, _>(ops.parents, ops.node, grads, |grad| self.0.apply(grad));
            }
        }
        let (input, node) = input.into_parts();
        DropBackward(seed).prepare::<C>([node]).compute_bound().stateless(seed.apply(input))
    }
}

pub(crate) fn dropout<const D: usize>(input: Tensor<D>, seed: Seed) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::drop_seeded(input.into_dispatch(), seed))
}
