//! Convolutions over height and width.

use burn::tensor::Tensor;

use super::convolution::Convolution;
#[cfg(feature = "flex")]
use super::kernel;

/// The convolution of pictures: torch's `conv2d` without a dilation.
///
/// # Shapes
/// - input: `[batch, in, height, width]`
/// - weight: `[out, in / groups, rows, columns]`
/// - bias: `[out]`
/// - output: `[batch, out, ..]`, rows and columns as [`Convolution::output_size`] says
pub fn conv2d(input: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, how: Convolution) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if fused::can(&input, &weight, bias.as_ref(), how) {
        return fused::conv2d(input, weight, bias, how);
    }
    super::plain::conv2d(input, weight, bias, how)
}

#[cfg(feature = "flex")]
pub(crate) mod fused {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::flex::FlexTensor;
    use burn::backend::ops::FloatTensorOps;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::Tensor;

    use super::kernel;
    use crate::ops::convolution::Convolution;
    use crate::ops::kernel::convolution::{convolution, input_gradient, weight_gradient};

    /// An empty picture or kernel is left to Burn, which knows what comes out.
    pub(super) fn can(input: &Tensor<4>, weight: &Tensor<4>, bias: Option<&Tensor<1>>, how: Convolution) -> bool {
        let ([_, channels, height, width], [d_output, d_input, rows, columns]) = (input.dims(), weight.dims());
        let is_empty = input.dims().contains(&0)
            || weight.dims().contains(&0)
            || how.output_size([height, width], [rows, columns]).contains(&0);
        let fits = kernel::fits(input) && kernel::fits(weight) && bias.is_none_or(kernel::fits);
        fits && !is_empty && channels == d_input * how.groups && d_output % how.groups == 0
    }

    #[backend_extension(Flex, Autodiff)]
    pub(crate) trait ConvOps: Backend {
        fn conv(input: FloatTensor<Self>, weight: FloatTensor<Self>, how: Convolution) -> FloatTensor<Self>;
        fn conv_biased(
            input: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            how: Convolution,
        ) -> FloatTensor<Self>;
    }

    impl ConvOps for Flex {
        fn conv(input: FlexTensor, weight: FlexTensor, how: Convolution) -> FlexTensor {
            convolution(input, weight, None, how)
        }

        fn conv_biased(input: FlexTensor, weight: FlexTensor, bias: FlexTensor, how: Convolution) -> FlexTensor {
            convolution(input, weight, Some(bias), how)
        }
    }

    /// The input and its shape, kept only for the gradient of kernels that are trained, the kernels, and how they move.
    #[derive(Debug, Clone)]
    struct State {
        input: Option<FlexTensor>,
        size: [usize; 4],
        weight: FlexTensor,
        how: Convolution,
    }

    #[derive(Debug)]
    struct ConvBackward;

    fn register<const N: usize>(ops: Ops<State, N>, grads: &mut Gradients) {
        let State { input, size, weight, how } = ops.state;
        let grad = grads.consume::<Flex>(&ops.node);
        let id = |at: usize| ops.parents.get(at).and_then(Option::as_ref).map(|it| it.id);
        if let Some(id) = id(2) {
            let [batch, d_output, rows, columns] = grad.shape().dims::<4>();
            let sums =
                Flex::float_sum_dim(Flex::float_reshape(grad.clone(), [batch, d_output, rows * columns].into()), 2);
            let sum = Flex::float_sum_dim(Flex::float_reshape(sums, [batch, d_output].into()), 0);
            grads.register::<Flex>(id, Flex::float_reshape(sum, [d_output].into()));
        }
        if let (Some(id), Some(input)) = (id(1), input) {
            let kernels = weight.shape().dims::<4>();
            grads.register::<Flex>(id, weight_gradient(grad.clone(), input, kernels, how));
        }
        if let Some(id) = id(0) {
            grads.register::<Flex>(id, input_gradient(grad, weight, size, how));
        }
    }

    impl Backward<Flex, 2> for ConvBackward {
        type State = State;
        fn backward(self, ops: Ops<State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            register(ops, grads);
        }
    }

    impl Backward<Flex, 3> for ConvBackward {
        type State = State;
        fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            register(ops, grads);
        }
    }

    impl<C: CheckpointStrategy> ConvOps for Autodiff<Flex, C> {
        fn conv(input: FloatTensor<Self>, weight: FloatTensor<Self>, how: Convolution) -> FloatTensor<Self> {
            let keeps_input = weight.is_tracked();
            let ((x, x_node), (w, w_node)) = (input.into_parts(), weight.into_parts());
            let output = Flex::conv(x.clone(), w.clone(), how);
            match Backward::<Flex, 2>::prepare::<C>(ConvBackward, [x_node, w_node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => {
                    let size = x.shape().dims::<4>();
                    prep.finish(State { input: keeps_input.then_some(x), size, weight: w, how }, output)
                }
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }

        fn conv_biased(
            input: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            how: Convolution,
        ) -> FloatTensor<Self> {
            let keeps_input = weight.is_tracked();
            let ((x, x_node), (w, w_node), (b, b_node)) = (input.into_parts(), weight.into_parts(), bias.into_parts());
            let output = Flex::conv_biased(x.clone(), w.clone(), b, how);
            let nodes = [x_node, w_node, b_node];
            match Backward::<Flex, 3>::prepare::<C>(ConvBackward, nodes).compute_bound().stateful() {
                OpsKind::Tracked(prep) => {
                    let size = x.shape().dims::<4>();
                    prep.finish(State { input: keeps_input.then_some(x), size, weight: w, how }, output)
                }
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    pub(super) fn conv2d(input: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, how: Convolution) -> Tensor<4> {
        let (input, weight) = (input.into_dispatch(), weight.into_dispatch());
        Tensor::from_dispatch(match bias {
            Some(bias) => Dispatch::conv_biased(input, weight, bias.into_dispatch(), how),
            None => Dispatch::conv(input, weight, how),
        })
    }
}
