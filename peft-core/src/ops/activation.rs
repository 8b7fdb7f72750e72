//! Activation functions.

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::kernel;
use super::plain;

/// `x · Φ(x)`, exact: transformers' `gelu`.
pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernel::fits(&input) {
        return fused::activation(input, fused::Curve::Gelu);
    }
    plain::gelu(input)
}

/// The approximation of GELU by a hyperbolic tangent: transformers' `gelu_new` and `gelu_pytorch_tanh`.
pub fn gelu_tanh<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernel::fits(&input) {
        return fused::activation(input, fused::Curve::GeluTanh);
    }
    plain::gelu_tanh(input)
}

/// `x · σ(1.702 x)`: transformers' `quick_gelu`.
pub fn quick_gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernel::fits(&input) {
        return fused::activation(input, fused::Curve::QuickGelu);
    }
    plain::quick_gelu(input)
}

/// `x · σ(x)`: transformers' `silu` and `swish`.
pub fn silu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernel::fits(&input) {
        return fused::activation(input, fused::Curve::Silu);
    }
    plain::silu(input)
}

/// `silu(gate) · up`, the middle of a gated MLP.
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernel::fits(&gate) && kernel::fits(&up) && gate.dims() == up.dims() {
        return fused::gate(gate, up, fused::Curve::Silu);
    }
    plain::silu_mul(gate, up)
}

#[cfg(feature = "flex")]
mod fused {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::flex::FlexTensor;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
    use burn::tensor::Tensor;

    use crate::ops::kernel::{self, math};

    /// A function of one number.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Curve {
        Gelu,
        GeluTanh,
        QuickGelu,
        Silu,
    }

    /// Value and slope of `x · s(x)`, given `s` and its slope.
    #[inline(always)]
    fn product(x: f32, s: f32, slope: f32) -> (f32, f32) {
        (x * s, s + x * slope)
    }

    #[inline(always)]
    fn gelu(x: f32) -> (f32, f32) {
        let (below, density) = math::normal(x);
        product(x, below, density)
    }

    #[inline(always)]
    fn gelu_tanh(x: f32) -> (f32, f32) {
        // ½ (1 + tanh u) is σ(2u), which keeps its relative accuracy in the tail.
        const TWICE: f32 = 2.0 * 0.797_884_6;
        let s = math::sigmoid(TWICE * (x + 0.044_715 * x * x * x));
        product(x, s, s * (1.0 - s) * TWICE * (1.0 + 3.0 * 0.044_715 * x * x))
    }

    #[inline(always)]
    fn quick_gelu(x: f32) -> (f32, f32) {
        let s = math::sigmoid(1.702 * x);
        product(x, s, 1.702 * s * (1.0 - s))
    }

    #[inline(always)]
    fn silu(x: f32) -> (f32, f32) {
        let s = math::sigmoid(x);
        product(x, s, s * (1.0 - s))
    }

    /// Calls `$body` with `$f` bound to the function of a curve, compiled for each curve.
    macro_rules! with_curve {
        ($curve:expr, $f:ident => $body:expr) => {
            match $curve {
                Curve::Gelu => {
                    let $f = gelu;
                    $body
                }
                Curve::GeluTanh => {
                    let $f = gelu_tanh;
                    $body
                }
                Curve::QuickGelu => {
                    let $f = quick_gelu;
                    $body
                }
                Curve::Silu => {
                    let $f = silu;
                    $body
                }
            }
        };
    }

    #[backend_extension(Flex, Autodiff)]
    pub(crate) trait ActivationOps: Backend {
        /// `f(x)`
        fn curve(input: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;
        /// `f(gate) · up`
        fn gated_curve(gate: FloatTensor<Self>, up: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;
    }

    impl ActivationOps for Flex {
        fn curve(input: FlexTensor, curve: Curve) -> FlexTensor {
            with_curve!(curve, f => kernel::map(input, #[inline(always)] |x| f(x).0))
        }

        fn gated_curve(gate: FlexTensor, up: FlexTensor, curve: Curve) -> FlexTensor {
            with_curve!(curve, f => kernel::zip(up, &gate, #[inline(always)] |up, gate| f(gate).0 * up))
        }
    }

    impl<C: CheckpointStrategy> ActivationOps for Autodiff<Flex, C> {
        fn curve(input: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct CurveBackward;
            impl Backward<Flex, 1> for CurveBackward {
                type State = (FlexTensor, Curve);
                fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                    let (input, curve) = ops.state;
                    let grad = grads.consume::<Flex>(&ops.node);
                    if let [Some(parent)] = ops.parents {
                        let grad =
                            with_curve!(curve, f => kernel::zip(grad, &input, #[inline(always)] |g, x| g * f(x).1));
                        grads.register::<Flex>(parent.id, grad);
                    }
                }
            }
            let (input, node) = input.into_parts();
            match CurveBackward.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((input.clone(), curve), Flex::curve(input, curve)),
                OpsKind::UnTracked(prep) => prep.finish(Flex::curve(input, curve)),
            }
        }

        fn gated_curve(gate: FloatTensor<Self>, up: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct GatedBackward;
            impl Backward<Flex, 2> for GatedBackward {
                type State = (FlexTensor, FlexTensor, Curve);
                fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                    let (gate, up, curve) = ops.state;
                    let grad = grads.consume::<Flex>(&ops.node);
                    let [to_gate, to_up] = ops.parents;
                    if let Some(parent) = to_gate {
                        let slope =
                            with_curve!(curve, f => kernel::zip(up, &gate, #[inline(always)] |up, x| up * f(x).1));
                        let grad = kernel::zip(
                            slope,
                            &grad,
                            #[inline(always)]
                            |s, g| s * g,
                        );
                        grads.register::<Flex>(parent.id, grad);
                    }
                    if let Some(parent) = to_up {
                        let grad =
                            with_curve!(curve, f => kernel::zip(grad, &gate, #[inline(always)] |g, x| g * f(x).0));
                        grads.register::<Flex>(parent.id, grad);
                    }
                }
            }
            let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
            match GatedBackward.prepare::<C>([gate_node, up_node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => {
                    let state = (gate.clone(), up.clone(), curve);
                    prep.finish(state, Flex::gated_curve(gate, up, curve))
                }
                OpsKind::UnTracked(prep) => prep.finish(Flex::gated_curve(gate, up, curve)),
            }
        }
    }

    pub(crate) fn activation<const D: usize>(input: Tensor<D>, curve: Curve) -> Tensor<D> {
        Tensor::from_dispatch(Dispatch::curve(input.into_dispatch(), curve))
    }

    pub(crate) fn gate<const D: usize>(gate: Tensor<D>, up: Tensor<D>, curve: Curve) -> Tensor<D> {
        Tensor::from_dispatch(Dispatch::gated_curve(gate.into_dispatch(), up.into_dispatch(), curve))
    }
}
