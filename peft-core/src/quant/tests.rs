//! Codes, scales and meanings of `fixtures/quantised`, which bitsandbytes wrote.

use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::four_bit::{BLOCK, FourBit};
use super::{Packed, QuantFormat, Quantized, Rounding, Scales};

fn with_file(check: impl FnOnce(&SafeTensors<'_>)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quantised/matrices.safetensors");
    let bytes = std::fs::read(path).unwrap();
    check(&SafeTensors::deserialize(&bytes).unwrap());
}

fn floats(file: &SafeTensors<'_>, key: &str) -> Vec<f32> {
    let tensor = file.tensor(key).unwrap();
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect(),
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|it| bf16::from_le_bytes(*it).to_f32()).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|it| f16::from_le_bytes(*it).to_f32()).collect(),
        other => panic!("{key} is {other:?}"),
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|it| it.to_bits()).collect()
}

fn check(name: &str, format: QuantFormat, double: bool, rounding: Rounding) {
    with_file(|file| {
        let key = |part: &str| format!("{name}.{part}");
        let bytes = |part: &str| file.tensor(&key(part)).unwrap().data();
        let (weight, meant) = (floats(file, &key("weight")), floats(file, &key("meant")));
        let shape: [usize; 2] = file.tensor(&key("weight")).unwrap().shape().try_into().unwrap();
        let (values, nested);
        let largest;
        let scales = match double {
            false => {
                largest = floats(file, &key("absmax"));
                Scales::Single(&largest)
            }
            true => {
                values = floats(file, &key("quant_map"));
                nested = floats(file, &key("nested_absmax"));
                let offset = floats(file, &key("offset"))[0];
                Scales::Double { codes: bytes("absmax"), largest: &nested, values: &values, offset }
            }
        };
        let block = if format == QuantFormat::Int8 { shape[1] } else { BLOCK };
        let theirs =
            Packed { lines: shape[0], width: shape[1], format, codes: bytes("codes"), scales, block, rounding };
        assert_eq!(bits(&theirs.widened()), bits(&meant), "{name}: what their codes mean");

        let ours = Quantized::new(&weight, shape, format, double, rounding).unwrap();
        let ours = ours.view();
        assert_eq!(ours.codes, theirs.codes, "{name}: codes");
        match (ours.scales, theirs.scales) {
            (Scales::Single(ours), Scales::Single(theirs)) => assert_eq!(ours, theirs),
            (
                Scales::Double { codes, largest, values, offset },
                Scales::Double { codes: c, largest: l, values: v, offset: o },
            ) => {
                assert_eq!(bits(values), bits(v), "the dynamic map");
                // The reference's mean is a sum in single precision, whose order depends on the machine.
                assert!((offset - o).abs() <= 2.0 * f32::EPSILON * o.abs(), "{offset} is not {o}");
                let off = codes.iter().zip(c).filter(|(a, b)| a != b).count();
                assert!(off <= codes.len() / 100, "{off} of {} scales have other codes", codes.len());
                for (ours, theirs) in largest.iter().zip(l) {
                    assert!((ours - theirs).abs() <= 1e-6 * theirs, "{ours} is not {theirs}");
                }
            }
            _ => panic!("{name}: other scales"),
        }
    });
}

#[test]
fn nf4() {
    check("nf4", QuantFormat::FourBit(FourBit::Nf4), false, Rounding::Single);
}

#[test]
fn nf4_with_quantised_scales() {
    check("nf4_double", QuantFormat::FourBit(FourBit::Nf4), true, Rounding::Single);
}

#[test]
fn nf4_of_f16() {
    check("nf4_f16", QuantFormat::FourBit(FourBit::Nf4), false, Rounding::F16);
}

#[test]
fn fp4() {
    check("fp4", QuantFormat::FourBit(FourBit::Fp4), false, Rounding::Single);
}

#[test]
fn fp4_of_bf16_with_quantised_scales() {
    check("fp4_double_bf16", QuantFormat::FourBit(FourBit::Fp4), true, Rounding::Bf16);
}

#[test]
fn int8() {
    check("int8", QuantFormat::Int8, false, Rounding::Single);
}

#[test]
fn a_matrix_that_is_not_finite_has_no_codes() {
    for odd in [f32::NAN, f32::INFINITY] {
        let error = Quantized::new(&[1.0, odd], [1, 2], QuantFormat::Int8, false, Rounding::Single).unwrap_err();
        assert!(error.to_string().contains("NaN or infinity"), "{error}");
    }
}

/// Rows whose length is no multiple of a block, and of odd length: by the definition.
#[test]
fn blocks_run_across_rows() {
    let numbers: Vec<f32> = (0..5 * 27).map(|it| ((it * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let format = FourBit::Nf4;
    let own = Quantized::new(&numbers, [5, 27], QuantFormat::FourBit(format), false, Rounding::Single).unwrap();
    for (at, (meant, block)) in own.view().widened().iter().zip((0..).map(|it: usize| it / BLOCK)).enumerate() {
        let block = &numbers[block * BLOCK..((block + 1) * BLOCK).min(numbers.len())];
        let most = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let nearest = format
            .values()
            .iter()
            .map(|it| it * most)
            .min_by(|a, b| (a - numbers[at]).abs().total_cmp(&(b - numbers[at]).abs()));
        assert!((meant - nearest.unwrap()).abs() <= 1e-6, "{at}: {meant} is not {nearest:?}");
    }
}
