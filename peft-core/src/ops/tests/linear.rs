//! Linear layers, also in bf16.

use burn::tensor::Tensor;

use super::{check, device, is_on_flex, numbers, values};
use crate::ops::{self, Layout, LowRank, plain};

#[test]
fn linear_layers_are_their_compositions() {
    // Thin ones, ragged ones, and more than one run of the inner dimension and of rows.
    for (rows, d_in, d_out) in [(3, 5, 7), (33, 34, 35), (40, 48, 96), (150, 800, 49), (300, 33, 130)] {
        let inputs = [numbers([rows, d_in], 1), numbers([d_out, d_in], 2)].map(|it| it.mul_scalar(0.1));
        for layout in [Layout::OutIn, Layout::InOut] {
            let laid = |w: Tensor<2>| if layout == Layout::OutIn { w } else { w.transpose() };
            check(
                "linear",
                inputs.clone(),
                |[x, w]| ops::linear(x, laid(w), None, layout),
                |[x, w]| plain::linear(x, w.transpose(), None),
            );
        }
        // A row that is the same everywhere has a gradient of its own.
        let bias = numbers([1, d_out], 3);
        let [x, w] = inputs;
        check(
            "linear with a bias",
            [x, w, bias],
            |[x, w, b]| ops::linear(x, w, Some(b.reshape([d_out])), Layout::OutIn),
            |[x, w, b]| plain::linear(x, w.transpose(), Some(b.reshape([d_out]))),
        );
    }
    // A frozen weight, and an input that is a view.
    let x = numbers([70, 60], 1).autodiff().require_grad();
    let w = numbers([40, 50], 2);
    let view = x.clone().narrow(1, 5, 40).narrow(0, 10, 50);
    let grads = ops::linear(view, Tensor::from_inner(w.clone()), None, Layout::InOut).sum().backward();
    let slopes = values(w.clone().sum_dim(1));
    for (at, slope) in values(x.grad(&grads).expect("a gradient")).into_iter().enumerate() {
        let (row, column) = (at / 60, at % 60);
        let seen = (10..60).contains(&row) && (5..45).contains(&column);
        let wanted = if seen { slopes[column - 5] } else { 0.0 };
        assert!((slope - wanted).abs() < 1e-4, "{slope} is not {wanted} at {row}, {column}");
    }
    for [rows, d_in, d_out] in [[0, 40, 50], [40, 0, 50], [40, 50, 0]] {
        let (x, w, b) = (numbers([rows, d_in], 1), numbers([d_in, d_out], 2), numbers([d_out], 3));
        let y = ops::linear(x, w, Some(b.clone()), Layout::InOut);
        assert_eq!(y.dims(), [rows, d_out]);
        assert_eq!(values(y), values(b).repeat(rows));
    }
}

/// Rounded to bf16 by another's code.
pub(super) fn rounded<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    values(tensor).into_iter().map(|x| half::bf16::from_f32(x).to_f64()).collect()
}

/// `left · right` in double precision, `right` as `[inner, columns]`.
pub(super) fn exact(left: &[f64], right: &[f64], [rows, inner, columns]: [usize; 3]) -> Vec<f64> {
    let mut product = vec![0.0; rows * columns];
    for row in 0..rows {
        for term in 0..inner {
            for column in 0..columns {
                product[row * columns + column] += left[row * inner + term] * right[term * columns + column];
            }
        }
    }
    product
}

pub(super) fn flipped(numbers: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| numbers[row * columns + column])).collect()
}

fn assert_near(name: &str, ours: &[f32], exact: &[f64]) {
    assert_eq!(ours.len(), exact.len(), "{name}");
    let largest = exact.iter().fold(0.5f64, |largest, x| largest.max(x.abs()));
    for (at, (a, b)) in ours.iter().zip(exact).enumerate() {
        assert!((f64::from(*a) - b).abs() <= 1e-5 * largest, "{name}: {a} is not {b} at {at} (largest {largest})");
    }
}

#[test]
fn products_in_bf16() {
    let device = device();
    if ops::check_bf16(&device).is_err() {
        let error = ops::within_bf16(&device, || ()).expect_err("a processor without the instruction");
        assert!(error.to_string().contains(if is_on_flex() { "AVX512_BF16" } else { "bf16" }), "{error}");
        return;
    }
    // Whole and ragged tiles, an odd number of terms, several runs of them, several tasks.
    for [rows, inner, columns] in [[8, 2, 48], [9, 7, 50], [31, 129, 33], [130, 64, 290], [17, 3301, 61], [700, 40, 96]]
    {
        for layout in [Layout::OutIn, Layout::InOut] {
            let name = format!("{rows} x {inner} x {columns}, {layout:?}");
            let stored = if layout == Layout::OutIn { [columns, inner] } else { [inner, columns] };
            let (input, weight, bias) = (numbers([rows, inner], 1), numbers(stored, 2), numbers([columns], 3));
            let right = rounded(weight.clone());
            let right = if layout == Layout::OutIn { flipped(&right, [columns, inner]) } else { right };
            let product = exact(&rounded(input.clone()), &right, [rows, inner, columns]);

            let plain = ops::within_bf16(&device, || ops::linear(input.clone(), weight.clone(), None, layout));
            assert_near(&name, &values(plain.expect("bf16")), &product);

            let tracked = Tensor::from_inner(input.clone()).require_grad();
            let lift = |tensor: Tensor<2>| Tensor::<2>::from_inner(tensor);
            let bias = Tensor::<1>::from_inner(bias);
            let (a, b) = (lift(numbers([4, inner], 4)), lift(numbers([columns, 4], 5)));
            let slopes: Tensor<2> = numbers([rows, columns], 6);
            let loss = |bf16: bool| {
                let update = LowRank { a: a.clone(), b: b.clone(), scale: 0.7, dropout: 0.0 };
                let run = || {
                    let weight = lift(weight.clone());
                    ops::linear_low_rank(tracked.clone(), weight, Some(bias.clone()), layout, update)
                };
                let output = if bf16 { ops::within_bf16(&device, run).expect("bf16") } else { run() };
                // The backward pass knows by itself how the forward was.
                let grads = (output.clone() * lift(slopes.clone())).sum().backward();
                (values(output.inner()), values(tracked.grad(&grads).expect("a gradient")))
            };
            let ((output, grad), (to_f32, single_grad)) = (loss(true), loss(false));
            // What is beside the product with the weight is in single precision: it is the same in both.
            let difference =
                |ours: &[f32], theirs: &[f32]| ours.iter().zip(theirs).map(|(x, y)| x - y).collect::<Vec<_>>();
            let double = |tensor: Tensor<2>| values(tensor).into_iter().map(f64::from).collect::<Vec<_>>();
            let whole = double(weight.clone());
            let whole = if layout == Layout::OutIn { flipped(&whole, [columns, inner]) } else { whole };
            let minus = |a: Vec<f64>, b: Vec<f64>| a.into_iter().zip(b).map(|(x, y)| x - y).collect::<Vec<f64>>();
            let expected = minus(product, exact(&double(input.clone()), &whole, [rows, inner, columns]));
            let scale = 1e-5 * to_f32.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
            for (x, y) in difference(&output, &to_f32).iter().zip(&expected) {
                assert!((f64::from(*x) - y).abs() <= f64::from(scale), "{name}: off by {x}, not {y}");
            }
            if inner < 32 && is_on_flex() {
                // Too few columns for a tile of the gradient.
                assert_eq!(grad, single_grad, "gradient of {name}");
                continue;
            }
            let back = [rows, columns, inner];
            let sides = [inner, columns];
            let expected = minus(
                exact(&rounded(slopes.clone()), &flipped(&right, sides), back),
                exact(&double(slopes.clone()), &flipped(&whole, sides), back),
            );
            let scale = 1e-5 * single_grad.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
            assert!(expected.iter().any(|it| it.abs() > 10.0 * f64::from(scale)), "{name}: rounding shows");
            for (x, y) in difference(&grad, &single_grad).iter().zip(&expected) {
                assert!((f64::from(*x) - y).abs() <= f64::from(scale), "gradient of {name}: off by {x}, not {y}");
            }
        }
    }
    // What cannot be rounded to a number, and what is off again outside.
    let odd = |x: f32| {
        let input = Tensor::<2>::full([8, 2], x, &device);
        let weight = Tensor::<2>::full([2, 48], 1.0, &device);
        let run = || ops::linear(input.clone(), weight.clone(), None, Layout::InOut);
        (values(ops::within_bf16(&device, run).expect("bf16"))[0], values(run())[0])
    };
    assert!(odd(f32::NAN).0.is_nan() && odd(f32::from_bits(0x7fff_ffff)).0.is_nan());
    assert_eq!(odd(f32::INFINITY).0, f32::INFINITY);
    assert_eq!(odd(1.001), (2.0, 2.002));
}
