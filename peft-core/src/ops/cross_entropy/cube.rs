//! The loss of a head on cards: a cube of units for each row of logits.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, Slice};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::chunked::{HeadLossOps, Settings};
use crate::ops::cube::{self, max_of_cube, sum_of_cube};
use crate::ops::labels::IGNORE_INDEX;
use crate::ops::to_f32;

/// Logits that exist at a time: 128 MB in f32. Few in tests, which should see more than one chunk.
const CHUNK: usize = if cfg!(test) { 1 << 10 } else { 1 << 25 };

/// Each row says its loss and whether it counts; and logits become the slopes of the sum of losses, if they are wanted.
#[cube(launch, address_type = "dynamic")]
fn loss_kernel<F: Float>(
    logits: &Tensor<f32>,
    labels: &Tensor<i32>,
    slopes: &mut Tensor<F>,
    losses: &mut Tensor<f32>,
    first: usize,
    rows: usize,
    classes: usize,
    smoothing: f32,
    // WGSL has no word for it.
    nan: f32,
    #[comptime] units: usize,
    #[comptime] has_slopes: bool,
    #[define(F)] _dtype: ElemType,
) {
    if CUBE_POS >= rows {
        terminate!();
    }
    let start = CUBE_POS * classes;
    let unit = UNIT_POS as usize;
    let label = labels[first + CUBE_POS];
    let mut largest = f32::new(-3e38f32);
    let mut sum = 0.0f32;
    let mut total = 0.0f32;
    for at in range_stepped(unit, classes, units) {
        let x = logits[start + at];
        if x > largest {
            sum *= f32::exp(largest - x);
            largest = x;
        }
        sum += f32::exp(x - largest);
        total += x;
    }
    let most = max_of_cube(largest, units);
    let sum = sum_of_cube(sum * f32::exp(largest - most), units);
    let total = sum_of_cube(total, units);
    let counts = label != comptime!(IGNORE_INDEX as i32).runtime();
    let is_class = label >= 0 && (label as usize) < classes;
    let share = smoothing / f32::cast_from(classes);
    if unit == 0 {
        let at = (first + CUBE_POS) * 2;
        let mut loss = 0.0f32;
        let mut one = 0.0f32;
        if counts {
            one = 1.0f32;
            let mut chosen = nan;
            if is_class {
                chosen = logits[start + label as usize];
            }
            loss = f32::ln(sum) + most - (1.0f32 - smoothing) * chosen - share * total;
        }
        losses[at] = loss;
        losses[at + 1] = one;
    }
    if has_slopes {
        for at in range_stepped(unit, classes, units) {
            let mut slope = 0.0f32;
            if counts {
                slope = f32::exp(logits[start + at] - most) / sum - share;
                if is_class && at == label as usize {
                    slope -= 1.0f32 - smoothing;
                }
            }
            slopes[start + at] = F::cast_from(slope);
        }
    }
}

/// The loss, and where they are wanted the gradients of the mean by hidden states and weight.
fn loss(
    hidden: CubeTensor,
    weight: CubeTensor,
    labels: CubeTensor,
    Settings { smoothing, bf16, to_weight }: Settings,
    grads: bool,
) -> (CubeTensor, Option<CubeTensor>, Option<CubeTensor>) {
    let (hidden, labels) = (into_contiguous(hidden), into_contiguous(labels));
    let ([rows, d_model], classes) = (hidden.shape().dims::<2>(), weight.shape()[0]);
    let client = hidden.client.clone();
    // Once for all chunks.
    let weight = to_f32::cube::for_product(weight, &hidden, bf16);
    let losses = cube::empty_f32(Shape::new([rows, 2]), &hidden);
    let chunk = (CHUNK / classes.max(1)).max(1);
    let (mut to_hidden, mut sum_to_weight) = (Vec::new(), None);
    for first in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - first);
        let part = match count == rows {
            true => hidden.clone(),
            false => {
                CubeBackend::float_slice(hidden.clone(), &[Slice::from(first..first + count), Slice::from(0..d_model)])
            }
        };
        let operand = to_f32::cube::for_product(part, &hidden, bf16);
        let logits = into_contiguous(cube::single_product(operand.clone(), cube::turned(weight.clone())));
        let dim = cube::cube_for_row(&logits, classes);
        // In the type of the factors of the products that they enter.
        let slopes = cube::empty_contiguous(if grads { logits.shape() } else { Shape::new([1, 1]) }, &operand);
        loss_kernel::launch(
            &client,
            cube::cubes(&logits, count),
            dim,
            cube::address_type(&[&logits, &losses]),
            logits.clone().into_tensor_arg(),
            labels.clone().into_tensor_arg(),
            slopes.clone().into_tensor_arg(),
            losses.clone().into_tensor_arg(),
            first,
            count,
            classes,
            smoothing,
            f32::NAN,
            dim.num_elems() as usize,
            grads,
            cube::element(&operand),
        );
        if grads {
            to_hidden.push(cube::single_product(slopes.clone(), weight.clone()));
        }
        if grads && to_weight {
            let term = cube::single_product(cube::turned(slopes), operand);
            sum_to_weight = Some(cube::added(sum_to_weight, term));
        }
    }
    let sums = CubeBackend::float_sum_dim(losses, 0);
    let column = |at: usize| {
        let one = CubeBackend::float_slice(sums.clone(), &[Slice::from(0..1), Slice::from(at..at + 1)]);
        CubeBackend::float_reshape(one, Shape::new([1]))
    };
    let kept = column(1);
    let mean = CubeBackend::float_div(column(0), kept.clone());
    let share = |grad: CubeTensor, dtype: DType| {
        let kept = CubeBackend::float_reshape(kept.clone(), Shape::new([1, 1]));
        CubeBackend::float_cast(CubeBackend::float_div(grad, kept), dtype.into())
    };
    let dtype = hidden.dtype;
    let to_hidden = (!to_hidden.is_empty()).then(|| share(cube::joined(to_hidden, 0), dtype));
    (mean, to_hidden, sum_to_weight.map(|it| share(it, dtype)))
}

impl HeadLossOps for CubeBackend {
    fn head_loss(hidden: CubeTensor, weight: CubeTensor, labels: CubeTensor, settings: Settings) -> CubeTensor {
        loss(hidden, weight, labels, settings, false).0
    }

    fn head_loss_and_grads(
        hidden: CubeTensor,
        weight: CubeTensor,
        labels: CubeTensor,
        settings: Settings,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let (no_hidden, no_weight) = (hidden.clone(), weight.clone());
        let (mean, to_hidden, to_weight) = loss(hidden, weight, labels, settings, true);
        let to_weight = match to_weight {
            Some(grad) => grad,
            None if settings.to_weight => cube::zeros_like(&no_weight),
            None => mean.clone(),
        };
        (mean, to_hidden.unwrap_or_else(|| cube::zeros_like(&no_hidden)), to_weight)
    }
}
