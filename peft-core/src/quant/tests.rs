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
        let (codes, [lines, width]) = (bytes("codes"), shape);
        let theirs = Packed { lines, width, format, codes, scales, groups: None, block, rounding, threshold: None };
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

/// A matrix in groups, packed by the definitions of the layouts, and what it means.
mod groups {
    use super::super::grouped::{GroupBits, GroupLayout, Grouped, GroupedConfig, GroupedParts};
    use super::bits;

    /// Numbers of a generator by Lehmer.
    fn random(seed: u64) -> impl FnMut(u32) -> u32 {
        let mut state = seed * 48_271 + 1;
        move |below| {
            state = state * 48_271 % 0x7fff_ffff;
            (state % u64::from(below)) as u32
        }
    }

    struct Case {
        config: GroupedConfig,
        shape: [usize; 2],
        parts: GroupedParts,
        meant: Vec<f32>,
    }

    fn case(layout: GroupLayout, width_of: GroupBits, shape: [usize; 2], group: Option<usize>, sorted: bool) -> Case {
        let ([lines, width], bits) = (shape, width_of.bits());
        let (per_word, largest) = (32 / bits, (1 << bits) - 1);
        let mut draw = random((lines * width) as u64);
        let block = group.unwrap_or(width);
        let groups = width.div_ceil(block);
        let mut of_column: Vec<u32> = (0..width).map(|it| (it / block) as u32).collect();
        if sorted {
            (1..width).for_each(|at| of_column.swap(at, draw(at as u32 + 1) as usize));
        }
        let codes: Vec<u32> = (0..lines * width).map(|_| draw(largest + 1)).collect();
        let zeros: Vec<u32> = (0..groups * lines).map(|_| draw(largest + 1)).collect();
        let scales: Vec<f32> = (0..groups * lines).map(|_| 0.01 + draw(100) as f32 / 64.0).collect();
        let meant = (0..lines * width).map(|at| {
            let (line, column) = (at / width, at % width);
            let place = of_column[column] as usize * lines + line;
            (codes[at] as f32 - zeros[place] as f32) * scales[place]
        });
        let meant = meant.collect();
        let order: Vec<usize> = match layout {
            GroupLayout::Awq => vec![0, 2, 4, 6, 1, 3, 5, 7],
            GroupLayout::Gptq { .. } => (0..per_word).collect(),
        };
        // Words along the outputs of `[rows, lines]`.
        let along_lines = |rows: usize, code: &dyn Fn(usize, usize) -> u32| -> Vec<u32> {
            let mut words = vec![0; rows * lines / per_word];
            for row in 0..rows {
                for word in 0..lines / per_word {
                    for (place, of) in order.iter().enumerate() {
                        words[row * lines / per_word + word] |= code(row, word * per_word + of) << (bits * place);
                    }
                }
            }
            words
        };
        let stored = |group: usize, line: usize| match layout {
            GroupLayout::Gptq { zeros_less_one: true } => zeros[group * lines + line].wrapping_sub(1) & largest,
            _ => zeros[group * lines + line],
        };
        let packed = match layout {
            GroupLayout::Awq => along_lines(width, &|column, line| codes[line * width + column]),
            GroupLayout::Gptq { .. } => {
                let mut words = vec![0; width / per_word * lines];
                for column in 0..width {
                    for line in 0..lines {
                        let code = codes[line * width + column];
                        words[column / per_word * lines + line] |= code << (bits * (column % per_word));
                    }
                }
                words
            }
        };
        let of_column = sorted.then_some(of_column);
        let parts = GroupedParts { codes: packed, zeros: along_lines(groups, &stored), scales, of_column };
        Case { config: GroupedConfig { layout, bits: width_of, group }, shape, parts, meant }
    }

    #[test]
    fn codes_of_gptq_and_awq_mean_what_their_layouts_say() {
        let first = GroupLayout::Gptq { zeros_less_one: true };
        let second = GroupLayout::Gptq { zeros_less_one: false };
        for (layout, width_of, shape, group, sorted) in [
            (first, GroupBits::Four, [8, 16], Some(8), false),
            (first, GroupBits::Four, [40, 64], Some(32), true),
            (second, GroupBits::Four, [16, 40], Some(16), false),
            (second, GroupBits::Eight, [12, 20], None, false),
            (first, GroupBits::Eight, [20, 32], Some(8), true),
            (GroupLayout::Awq, GroupBits::Four, [24, 32], Some(16), false),
            // Rows of odd length, the last group shorter.
            (GroupLayout::Awq, GroupBits::Four, [16, 37], Some(8), false),
        ] {
            let Case { config, shape, parts, meant } = case(layout, width_of, shape, group, sorted);
            let matrix = Grouped::new(&config, shape, &parts).unwrap();
            let matrix = matrix.view();
            assert_eq!(bits(&matrix.widened()), bits(&meant), "{config:?} {shape:?}");
            // A part, as products read it.
            let mut part = vec![0.0; 3];
            matrix.widen(5, 7, &mut part);
            assert_eq!(part, meant[5 * shape[1] + 7..][..3], "{config:?} {shape:?}");
        }
    }

    #[test]
    fn parts_of_other_lengths_are_refused_by_name() {
        let new = |change: &dyn Fn(&mut GroupedParts)| {
            let layout = GroupLayout::Gptq { zeros_less_one: true };
            let Case { config, shape, mut parts, .. } = case(layout, GroupBits::Four, [8, 16], Some(8), true);
            change(&mut parts);
            Grouped::new(&config, shape, &parts).unwrap_err().to_string()
        };
        assert!(new(&|it| it.codes.truncate(15)).contains("qweight has 15 entries"));
        assert!(new(&|it| it.zeros.truncate(1)).contains("qzeros has 1 entries"));
        assert!(new(&|it| it.scales.push(1.0)).contains("scales has 17 entries"));
        assert!(new(&|it| it.of_column.as_mut().unwrap()[3] = 2).contains("g_idx names the group 2"));
    }

    /// For products: a matrix in groups.
    pub(crate) fn grouped([lines, width]: [usize; 2], sorted: bool) -> (Grouped, Vec<f32>) {
        let layout = GroupLayout::Gptq { zeros_less_one: false };
        let case = case(layout, GroupBits::Four, [lines, width], Some(32), sorted);
        (Grouped::new(&case.config, case.shape, &case.parts).unwrap(), case.meant)
    }
}
pub(crate) use groups::grouped;
