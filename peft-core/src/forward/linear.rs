//! Linear layers through their adapters.

use burn::module::Param;
use burn::tensor::Tensor;

use crate::adapter::{AdapterSet, AnyAdapter, Frozen, LinearBelow, mixed_batch, pending_bias};
use crate::ops::{self, Layout};

/// `y = x W + b` through the active adapters of `weight`.
///
/// Leading axes are folded into one, so that the product is a single matrix product.
///
/// # Shapes
/// - input: `[.., in]`
/// - weight: `[out, in]` or `[in, out]`, as `layout` says
/// - output: `[.., out]`
pub fn linear<const D: usize>(
    input: Tensor<D>,
    weight: &Param<Tensor<2>>,
    bias: Option<&Param<Tensor<1>>>,
    layout: Layout,
) -> Tensor<D> {
    let sets = [weight.reparameterization(), bias.and_then(|it| it.reparameterization())];
    mixed_batch::each(&sets, input, |input| through(input, weight, bias, layout))
}

/// The adapters of a parameter that act now.
pub(super) fn acting(set: Option<&AdapterSet>) -> Vec<&AnyAdapter> {
    set.map(mixed_batch::acting).unwrap_or_default()
}

/// The layer through the adapters that act now.
fn through<const D: usize>(
    input: Tensor<D>,
    weight: &Param<Tensor<2>>,
    bias: Option<&Param<Tensor<1>>>,
    layout: Layout,
) -> Tensor<D> {
    let mut dims = input.dims();
    let d_in = dims[D - 1];
    let rows = dims[..D - 1].iter().product::<usize>();
    let input = input.reshape([rows, d_in]);
    let base = unadapted(weight);
    pending_bias::forget();
    let bias = bias.map(|it| it.val());

    let set = weight.reparameterization::<AdapterSet>();
    let adapters = acting(set);
    let output = match set {
        Some(set) if !adapters.is_empty() => {
            let base = Frozen::new(base);
            LinearBelow { base: &base, bias: bias.as_ref(), layout, param: set.param(), adapters: &adapters }
                .forward(input)
        }
        _ => ops::linear(input, base, bias, layout),
    };
    dims[D - 1] = output.dims()[1];
    output.reshape(dims)
}

/// What a layer reads that computes with a whole parameter: `param.val()`, in single precision.
pub fn value<const D: usize>(param: &Param<Tensor<D>>) -> Tensor<D> {
    ops::to_f32(param.val())
}

/// What lies below the adapters: the frozen weight as it is stored, or what a reparameterization that is not ours makes of
/// its own.
pub(crate) fn unadapted(weight: &Param<Tensor<2>>) -> Tensor<2> {
    match weight.reparameterization::<AdapterSet>() {
        Some(_) => weight.base(),
        None => weight.val(),
    }
}

/// The weight as it is stored, if a layer is a product with it: no adapter acts on it, for any row.
pub(crate) fn bare_weight(weight: &Param<Tensor<2>>) -> Option<Tensor<2>> {
    let set = weight.reparameterization::<AdapterSet>();
    let is_adapted = set.is_some_and(|it| !mixed_batch::any(it).is_empty());
    (!is_adapted).then(|| unadapted(weight))
}

/// Lets the layers of `burn::nn` take part, in models that are not ours: `self.fc.adapted(x)` for `self.fc.forward(x)`.
pub trait Adapted {
    /// The forward of the layer, through the active adapters of its weight.
    fn adapted<const D: usize>(&self, input: Tensor<D>) -> Tensor<D>;
}

impl Adapted for burn::nn::Linear {
    fn adapted<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        linear(input, &self.weight, self.bias.as_ref(), Layout::InOut)
    }
}
