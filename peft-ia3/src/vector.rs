//! The vector of one layer: `y = l ∘ (x W + b)`, or `y = (l ∘ x) W + b` where the layer is a feed-forward module.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::forward::LinearBelow;
use peft_core::{Adapter, AdapterBuilder, AnyAdapter, BaseTensor, BiasAdapter, Init, Layout, ParamKind, ParamSpec};

/// What the features of one layer are multiplied by.
#[derive(Module, Debug)]
pub struct Ia3<const D: usize> {
    /// Linear layers: `[out, 1]`, feed-forward `[1, in]`. Convolutions: `[1, out, 1…]`, feed-forward `[1, in, 1…]`.
    pub ia3_l: Param<Tensor<D>>,
    is_feedforward: bool,
}

impl<const K: usize> Ia3<K> {
    fn vector(&self) -> Tensor<1> {
        let length = self.ia3_l.lazy_shape().num_elements();
        self.ia3_l.val().reshape([length])
    }

    /// The axis of the weight that the vector runs along.
    fn axis(&self, param: &ParamSpec) -> usize {
        let out_first = param.kind != ParamKind::Linear(Layout::InOut);
        usize::from(out_first == self.is_feedforward)
    }
}

impl<const K: usize> Adapter for Ia3<K> {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, param: &ParamSpec) -> Tensor<D> {
        let vector = self.vector();
        let mut shape = [1; D];
        shape[self.axis(param)] = vector.dims()[0];
        weight * vector.reshape(shape)
    }

    fn as_bias(&self) -> Option<&dyn BiasAdapter> {
        (!self.is_feedforward).then_some(self as &dyn BiasAdapter)
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let vector = self.vector().unsqueeze();
        if self.is_feedforward { below.forward(input * vector) } else { below.forward(input) * vector }
    }
}

impl<const D: usize> BiasAdapter for Ia3<D> {
    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        bias * self.vector()
    }

    fn needs_bias(&self) -> bool {
        false
    }
}

/// Builds [`Ia3`].
#[derive(Debug, Clone)]
pub(crate) struct BuildIa3 {
    pub(crate) is_feedforward: bool,
    /// Ones, which change nothing; otherwise normal numbers.
    pub(crate) identity: bool,
}

impl BuildIa3 {
    /// Trained numbers of a layer.
    pub(crate) fn length(&self, param: &ParamSpec) -> usize {
        let (d_in, d_out) = match param.kind {
            ParamKind::Conv => (param.shape[1], param.shape[0]),
            _ => param.features(),
        };
        if self.is_feedforward { d_in } else { d_out }
    }

    fn vector<const D: usize>(&self, param: &ParamSpec, init: &mut Init) -> AnyAdapter {
        // A file holds the vector of a linear layer in the place that it has in `[out, in]`.
        let is_column = param.kind != ParamKind::Conv && !self.is_feedforward;
        let mut shape = [1; D];
        shape[usize::from(!is_column)] = self.length(param);
        let ia3_l = if self.identity { init.constant(shape, 1.0) } else { init.normal(shape, 1.0) };
        AnyAdapter::new(Ia3 { ia3_l, is_feedforward: self.is_feedforward })
    }
}

impl AdapterBuilder for BuildIa3 {
    fn build(&self, base: BaseTensor, init: &mut Init) -> AnyAdapter {
        let param = base.param().clone();
        match param.shape.len() {
            2 => self.vector::<2>(&param, init),
            3 => self.vector::<3>(&param, init),
            4 => self.vector::<4>(&param, init),
            _ => self.vector::<5>(&param, init),
        }
    }
}
