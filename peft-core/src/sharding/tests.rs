//! Bases of which several processes keep a part, all in this one.

use std::sync::{Arc, Mutex};

use burn::backend::DispatchDevice;
use burn::tensor::{Bytes, DType, Device, Int, Tensor, TensorData};

use super::matrix::{Matrix, share};
use super::{Kept, Peers, ShardedBase, Wanted};
use crate::error::{PeftError, Result};
use crate::ops::{self, Layout};
use crate::quant::{FourBit, QuantFormat, Quantized, Rounding, packed_tensor};

/// Reads what the others keep, and counts how often.
struct Here {
    rank: usize,
    all: Arc<Mutex<Vec<Arc<Kept>>>>,
    world_size: usize,
}

impl Peers for Here {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world_size(&self) -> usize {
        self.world_size
    }
    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        // The others have what rank 0 has.
        Ok(vec![b"one [2, 3] F32 in 24 bytes".to_vec(), bytes])
    }
    fn read(&self, wanted: Vec<Wanted<'_>>) -> Result<()> {
        let all = self.all.lock().unwrap().clone();
        let gone = || PeftError::Invalid("it is gone".to_owned());
        wanted.into_iter().try_for_each(|it| all.get(it.rank).ok_or_else(gone)?.read(it.matrix, &it.ranges, it.into))
    }
}

fn device() -> Device {
    DispatchDevice::Flex(Default::default()).into()
}

fn bases(world_size: usize) -> Vec<ShardedBase> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let base = |rank| {
        ShardedBase::new(|kept| {
            all.lock().unwrap().push(kept);
            Ok(Box::new(Here { rank, all: all.clone(), world_size }))
        })
    };
    (0..world_size).map(|rank| base(rank).unwrap()).collect()
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|it| ((it * 37 % 101) as f32 - 50.0) / 64.0).collect()
}

/// The same matrix for each process, in pieces.
fn pieces(bases: &[ShardedBase], shape: [usize; 2], dtype: DType) -> Vec<Tensor<2>> {
    let values = numbers(shape[0] * shape[1]);
    let piece = |base: &ShardedBase| {
        let rows = base.rows(shape[0]).unwrap();
        let own = values[rows.start * shape[1]..rows.end * shape[1]].to_vec();
        let own = TensorData::new(own, [rows.len(), shape[1]]).convert_dtype(dtype);
        let matrix = base.add("it", shape, dtype, own.into_parts().0);
        base.tensor(matrix, &device()).unwrap()
    };
    bases.iter().map(piece).collect()
}

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    tensor.into_data().iter::<f32>().map(f32::to_bits).collect()
}

#[test]
fn parts_are_a_whole() {
    for (rows, world_size) in [(7, 3), (3, 3), (64, 5), (1, 1), (2, 2), (101, 8)] {
        for dtype in [DType::F32, DType::BF16, DType::Flex32] {
            let bytes = if dtype == DType::Flex32 { rows * 41 } else { rows * 5 * dtype.size() };
            let matrix = Matrix { key: String::new(), dtype, shape: [rows, 5], bytes };
            let mut end = 0;
            for rank in 0..world_size {
                let part = matrix.part(rank, world_size);
                assert_eq!(part.start, end, "{rows} rows of {world_size}, rank {rank}, {dtype:?}");
                end = part.end;
                if dtype != DType::Flex32 {
                    let rows = share(rows, rank, world_size);
                    assert_eq!(part, rows.start * matrix.row()..rows.end * matrix.row());
                    rows.clone().for_each(|row| assert_eq!(matrix.owner(row, world_size), (rank, rows.start)));
                }
            }
            assert_eq!(end, bytes);
        }
    }
}

/// Products, forward and backward, losses and rows are those of the whole matrix, bit for bit, whoever computes.
#[test]
fn what_is_computed_is_what_the_whole_matrix_gives() {
    let device = device().autodiff();
    let plain = device.clone().without_autodiff();
    for (world_size, shape, dtype) in
        [(2, [64, 33], DType::F32), (3, [70, 40], DType::F32), (3, [97, 64], DType::BF16), (2, [41, 9], DType::F16)]
    {
        let bases = bases(world_size);
        let data = TensorData::new(numbers(shape[0] * shape[1]), shape).convert_dtype(dtype);
        let whole = Tensor::<2>::from_data(data, (&plain, dtype));
        for piece in pieces(&bases, shape, dtype) {
            assert_eq!(piece.dims(), shape);
            assert_eq!(bits(ops::to_f32(piece.clone())), bits(ops::to_f32(whole.clone())));
            let ids = Tensor::<2, Int>::from_data([[0, 5, 40], [5, 33, 1]], &plain);
            let rows = |table: &Tensor<2>| bits(ops::embedding(ids.clone(), table.clone()));
            assert_eq!(rows(&piece), rows(&whole));
            for layout in [Layout::OutIn, Layout::InOut] {
                let width = if layout == Layout::OutIn { shape[1] } else { shape[0] };
                let computed = |weight: &Tensor<2>| {
                    let input = TensorData::new(numbers(6 * width), [6, width]);
                    let input = Tensor::<2>::from_data(input, &device).require_grad();
                    let output = ops::linear(input.clone(), weight.clone(), None, layout);
                    let gradients = (output.clone() * output.clone()).sum().backward();
                    (bits(output), bits(input.grad(&gradients).unwrap()))
                };
                assert_eq!(computed(&piece), computed(&whole), "{shape:?} {dtype:?} {layout:?}");
            }
            let loss = |weight: &Tensor<2>| {
                let hidden = TensorData::new(numbers(6 * shape[1]), [6, shape[1]]);
                let hidden = Tensor::<2>::from_data(hidden, &device).require_grad();
                let labels = Tensor::<1, Int>::from_data([3, 1, 0, 7, 7, 40], &plain);
                let loss = ops::linear_cross_entropy(hidden.clone(), weight.clone(), labels, 0.1);
                let gradients = loss.backward();
                (bits(loss), bits(hidden.grad(&gradients).unwrap()))
            };
            assert_eq!(loss(&piece), loss(&whole));
        }
    }
}

#[test]
fn packed_matrices_are_cut_anywhere() {
    let shape = [37, 50];
    let formats = [(QuantFormat::FourBit(FourBit::Nf4), true), (QuantFormat::Int8, false)];
    for (world_size, (format, double)) in [2, 3, 5].into_iter().flat_map(|it| formats.map(|format| (it, format))) {
        let bases = bases(world_size);
        let matrix = Quantized::new(&numbers(shape[0] * shape[1]), shape, format, double, Rounding::Single).unwrap();
        let whole = packed_tensor(&matrix.view(), &device()).unwrap();
        let pieces: Vec<_> =
            bases.iter().map(|base| base.packed("it", &matrix.view(), &device()).unwrap().transpose()).collect();
        let kept: Vec<_> = bases.iter().map(ShardedBase::kept).collect();
        assert!(kept.iter().all(|it| it.abs_diff(kept[0]) <= 64 && *it < 4 * shape[0] * shape[1] / world_size));
        for piece in pieces {
            assert_eq!(bits(ops::to_f32(piece)), bits(ops::to_f32(whole.clone().transpose())));
        }
    }
}

/// The second time matrices are read before they are needed, and what was read in vain does no harm.
#[test]
fn what_is_read_ahead_is_the_right_matrix() {
    let bases = bases(2);
    let matrices: Vec<Tensor<2>> = (1..6).map(|it| pieces(&bases, [it + 2, 7], DType::F32).remove(0)).collect();
    let wanted: Vec<_> = (1..6).map(|it| numbers((it + 2) * 7)).collect();
    for order in
        [[0, 1, 2, 3, 4, 3, 2, 1], [0, 1, 2, 3, 4, 3, 2, 1], [4, 4, 1, 0, 2, 2, 2, 3], [0, 1, 2, 3, 4, 3, 2, 1]]
    {
        for at in order {
            let found: Vec<f32> = ops::to_f32(matrices[at].clone()).into_data().iter::<f32>().collect();
            assert_eq!(found, wanted[at]);
        }
    }
    assert!(bases[0].received() > 0 && bases[1].received() == 0);
}

#[test]
fn what_cannot_be_read_is_no_number() {
    let bases = bases(2);
    let piece = pieces(&bases[..1], [4, 3], DType::F32).remove(0);
    // Rank 1 keeps nothing.
    assert!(ops::to_f32(piece).into_data().iter::<f32>().all(f32::is_nan));
}

#[test]
fn processes_that_load_another_base_are_refused() {
    let bases = bases(2);
    let row = |base: &ShardedBase, key: &str| base.add(key, [2, 3], DType::F32, Bytes::from_elems(vec![0.0_f32; 3]));
    row(&bases[0], "one");
    bases[0].agree().unwrap();
    row(&bases[1], "other");
    let error = bases[1].agree().unwrap_err().to_string();
    assert_eq!(
        error,
        "rank 1 does not load the base that rank 0 loads: it has other [2, 3] F32 in 24 bytes, and rank 0 one [2, 3] F32 \
         in 24 bytes"
    );
}
