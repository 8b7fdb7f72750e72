//! Weights in half precision and in codes.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{assert_close, device, halves, is_libtorch, is_on_flex, numbers, on_flex, values};
use crate::ops::{self, Layout, LowRank};
use crate::quant::{self, FourBit, Packed, QuantFormat, Quantized, Rounding};

/// All that products with a weight give, forward and backward.
fn products_with(w: &Tensor<2>, layout: Layout, dims: [usize; 3]) -> Vec<f32> {
    let [rows, d_in, d_out] = dims;
    let tracked = |it: Tensor<2>| Tensor::from_inner(it).require_grad();
    let [x, a, b] = [([rows, d_in], 1), ([2, d_in], 3), ([d_out, 2], 4)].map(|it| tracked(numbers(it.0, it.1)));
    let w = Tensor::from_inner(w.clone());
    let bias = || Some(Tensor::from_inner(numbers([d_out], 5)));
    let update = || LowRank { a: a.clone(), b: b.clone(), scale: 0.7, dropout: 0.0 };
    let mut losses = vec![ops::linear(x.clone(), w.clone(), None, layout)];
    losses.push(ops::linear(x.clone(), w.clone(), bias(), layout));
    losses.push(ops::linear_low_rank(x.clone(), w.clone(), None, layout, update()));
    losses.push(ops::linear_low_rank(x.clone(), w.clone(), bias(), layout, update()));
    if layout == Layout::OutIn {
        let labels: Vec<i64> = (0..rows as i64).map(|it| it * 7 % d_out as i64).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [rows]), &device());
        losses.push(ops::linear_cross_entropy(x.clone(), w.clone(), labels, 0.1).unsqueeze());
    }
    let each = losses.into_iter().flat_map(|output| {
        let grads = (output.clone() * output.clone()).sum().backward();
        let slopes = [&x, &a, &b].map(|it| it.grad(&grads).map(values).unwrap_or_default());
        [vec![values(output.inner())], slopes.to_vec()].concat()
    });
    each.flatten().collect()
}

/// On the CPU the bits are the same: its products widen what they read. A card multiplies a few rows with codes, and many with numbers.
fn assert_same(name: &str, ours: &[f32], theirs: &[f32]) {
    if is_on_flex() {
        assert!(ours.iter().map(|it| it.to_bits()).eq(theirs.iter().map(|it| it.to_bits())), "{name}");
    } else {
        assert_close(name, ours, theirs);
    }
}

fn assert_same_products(name: &str, ours: &Tensor<2>, theirs: &Tensor<2>, layout: Layout, dims: [usize; 3]) {
    assert_same(name, &products_with(ours, layout, dims), &products_with(theirs, layout, dims));
}

/// libtorch has no codes: the test runs on the CPU in its place.
fn with_codes(test: impl FnOnce()) {
    if is_libtorch() { on_flex(test) } else { test() }
}

#[test]
fn a_weight_in_half_precision_gives_the_bits_of_the_same_numbers() {
    // Of what a device does not have no base is made: `files::checkpoint` refuses it.
    for dtype in halves() {
        // One row as in a step of decoding, a few as in a beam, and many.
        for dims in [[1, 100, 40], [3, 5, 7], [9, 130, 50], [33, 34, 35], [70, 800, 49]] {
            let [_, d_in, d_out] = dims;
            for (layout, shape) in [(Layout::OutIn, [d_out, d_in]), (Layout::InOut, [d_in, d_out])] {
                // As it lies in a file, and a part of something larger.
                let [rows, columns] = shape;
                let large = numbers([rows + 3, columns + 2], 2).cast(dtype);
                let whole = numbers(shape, 2).cast(dtype);
                for half in [whole.clone(), large.clone().narrow(0, 1, rows).narrow(1, 2, columns)] {
                    let to_f32 = half.clone().cast(DType::F32);
                    assert_eq!(to_f32.dtype(), DType::F32);
                    assert_same_products(&format!("{dims:?} {layout:?} {dtype:?}"), &half, &to_f32, layout, dims);
                }
            }
        }
        // Rows of a table.
        let table = numbers([11, 6], 8).cast(dtype);
        let ids: Tensor<2, Int> = Tensor::from_data(TensorData::from([[3i64, 10, 0], [1, 3, 7]]), &device());
        let rows = ops::embedding(ids.clone(), table.clone());
        assert_eq!(values(rows), values(ops::embedding(ids, table.cast(DType::F32))));
    }
}

#[test]
fn a_weight_in_few_bits_gives_the_bits_of_the_numbers_that_it_means() {
    with_codes(weights_in_few_bits);
}

fn weights_in_few_bits() {
    for (format, double, rounding) in [
        (QuantFormat::FourBit(FourBit::Nf4), false, Rounding::Single),
        (QuantFormat::FourBit(FourBit::Nf4), true, Rounding::Bf16),
        (QuantFormat::FourBit(FourBit::Fp4), true, Rounding::F16),
        (QuantFormat::Int8, false, Rounding::Single),
    ] {
        // Lines of odd length, blocks across lines, one row and many.
        for dims in [[1, 5, 37], [3, 64, 40], [33, 35, 34], [70, 800, 49], [20, 130, 200], [9, 1, 5]] {
            let [_, d_in, d_out] = dims;
            for (layout, shape) in [(Layout::OutIn, [d_out, d_in]), (Layout::InOut, [d_in, d_out])] {
                let packed = quant::quantized(&numbers(shape, 2), format, double, rounding).expect("packed");
                let meant = ops::to_f32(packed.clone());
                assert_eq!((meant.dtype(), meant.dims(), packed.dims()), (DType::F32, shape, shape));
                let name = format!("{format:?} {double} {rounding:?} {dims:?} {layout:?}");
                assert_same_products(&name, &packed, &meant, layout, dims);
                // As its transpose is seen, too.
                let turned = values(ops::to_f32(packed.transpose()).transpose());
                assert_eq!(turned, values(meant), "{name}");
            }
        }
    }
}

#[test]
fn a_weight_in_groups_gives_the_bits_of_the_numbers_that_it_means() {
    with_codes(weights_in_groups);
}

fn weights_in_groups() {
    for sorted in [false, true] {
        for dims in [[1, 64, 40], [33, 96, 48], [70, 800, 56], [20, 128, 200]] {
            let [_, d_in, d_out] = dims;
            let (matrix, wanted) = quant::tests::grouped([d_out, d_in], sorted);
            let packed = quant::packed_tensor(&matrix.view(), &device()).expect("packed");
            let meant = ops::to_f32(packed.clone());
            assert_eq!(meant.to_data(), TensorData::new(wanted, [d_out, d_in]));
            let name = format!("{dims:?} {sorted}");
            assert_same_products(&name, &packed, &meant, Layout::OutIn, dims);
            // As the layers of GPT-2 see it.
            let (packed, meant) = (packed.transpose(), meant.transpose());
            assert_same_products(&name, &packed, &meant, Layout::InOut, dims);
        }
    }
}

#[test]
fn codes_mean_the_same_numbers_on_every_device() {
    with_codes(numbers_of_codes);
}

fn numbers_of_codes() {
    let formats = [QuantFormat::FourBit(FourBit::Nf4), QuantFormat::FourBit(FourBit::Fp4), QuantFormat::Int8];
    for (format, double) in formats.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        for (rounding, step) in
            [(Rounding::Single, 1e-6), (Rounding::Bf16, 2f32.powi(-8)), (Rounding::F16, 2f32.powi(-11))]
        {
            // Small numbers are rounded to multiples of the least of f16.
            for (shape, size) in [([33, 65], 1.0), ([7, 1], 1.0), ([1, 130], 1.0), ([20, 64], 1e-5), ([3, 256], 1e4)] {
                let values: Vec<f32> = self::values(numbers(shape, 3)).iter().map(|it| it * size).collect();
                let packed = Quantized::new(&values, shape, format, double, rounding).expect("finite");
                let wanted = packed.view().widened();
                let ours = self::values(ops::to_f32(quant::packed_tensor(&packed.view(), &device()).expect("packed")));
                let name = format!("{format:?} {double} {rounding:?} {shape:?} {size}");
                // A last bit that differs before it is rounded may lead to the neighbour.
                let differ = ours.iter().zip(&wanted).filter(|(a, b)| a != b).count();
                let most = if is_on_flex() {
                    0
                } else if rounding == Rounding::Single {
                    wanted.len()
                } else {
                    1 + wanted.len() / 500
                };
                assert!(differ <= most, "{name}: {differ} of {} differ", wanted.len());
                for (a, b) in ours.iter().zip(&wanted) {
                    assert!((a - b).abs() <= step * b.abs() + 2f32.powi(-24), "{name}: {a} is not {b}");
                }
            }
        }
    }
}

#[test]
fn a_card_rounds_activations_as_the_processor_does() {
    with_codes(rounded_activations);
}

fn rounded_activations() {
    for (threshold, dims) in [(0.0, [1, 40, 7]), (6.0, [1, 64, 33]), (0.0, [9, 96, 20]), (6.0, [70, 130, 49])] {
        let [rows, d_in, d_out] = dims;
        let mut left = values(numbers([rows, d_in], 1));
        // Outliers: one that reaches the threshold when it is rounded to a half only, one below 0.
        left[3] = 5.9999;
        left[(rows - 1) * d_in + 11] = -40.0;
        let weight = values(numbers([d_out, d_in], 2));
        let codes = Quantized::new(&weight, [d_out, d_in], QuantFormat::Int8, false, Rounding::F16).expect("finite");
        let product = || {
            let weight = quant::packed_tensor(&Packed { threshold: Some(threshold), ..codes.view() }, &device());
            let left = Tensor::<2>::from_data(TensorData::new(left.clone(), [rows, d_in]), &device());
            let tracked = Tensor::from_inner(left).require_grad();
            let output = ops::linear(tracked.clone(), Tensor::from_inner(weight.expect("packed")), None, Layout::OutIn);
            let grads = output.clone().sum().backward();
            (values(output.inner()), values(tracked.grad(&grads).expect("a gradient")))
        };
        let (ours, theirs) = (product(), in_place_of(product));
        let name = format!("{threshold} {dims:?}");
        assert_near_codes(&name, &ours.0, &theirs.0);
        assert_close(&format!("gradient of {name}"), &ours.1, &theirs.1);
        // Rounding shows.
        let exact = in_place_of(|| {
            let weight = Tensor::<2>::from_data(TensorData::new(codes.view().widened(), [d_out, d_in]), &device());
            let left = Tensor::<2>::from_data(TensorData::new(left.clone(), [rows, d_in]), &device());
            values(ops::linear(left, weight, None, Layout::OutIn))
        });
        assert!(ours.0.iter().zip(&exact).any(|(a, b)| (a - b).abs() > 1e-3), "{name}");
    }
}

/// What a test gives on the CPU.
fn in_place_of<R>(run: impl FnOnce() -> R) -> R {
    let mut found = None;
    on_flex(|| found = Some(run()));
    found.expect("it ran")
}

/// Weights of outliers are rounded to halves on the CPU, as in the reference, and are not on cards: half a step of them is allowed.
fn assert_near_codes(name: &str, ours: &[f32], theirs: &[f32]) {
    let largest = theirs.iter().fold(0.5f32, |largest, x| largest.max(x.abs()));
    let allowed = if is_on_flex() { 0.0 } else { largest * 2f32.powi(-11) };
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= allowed, "{name}: {a} is not {b}");
    }
}
