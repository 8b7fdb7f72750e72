//! What the kernels for cards share. They are written in CubeCL, and run on every runtime that it has.
//!
//! Numbers are read in the type of their tensor, f32, f16 or bf16, and computed with in f32.

use burn::backend::DispatchDevice;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, empty_device_dtype};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::VectorSize;
use cubecl::prelude::*;
use cubecl::tensor_vector_size_parallel;

use crate::{context, quant};

/// Whether the kernels can take the tensor: it is on a card, in a type of numbers that they read.
pub(super) fn fits<const D: usize>(tensor: &Tensor<D>) -> bool {
    fits_on(&tensor.device()) && is_number(tensor.dtype())
}

/// Whether the kernels can take the tensor as the weight of a product: as [`fits`] says, or in codes.
pub(super) fn fits_weight(tensor: &Tensor<2>) -> bool {
    fits_on(&tensor.device()) && (is_number(tensor.dtype()) || quant::is_packed(tensor.dtype()))
}

fn fits_on(device: &Device) -> bool {
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Cube(_)) && !context::read(|it| it.composed)
}

fn is_number(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// A tensor of that shape whose numbers are anything, on the device and in the type of another.
pub(super) fn empty(shape: Shape, like: &CubeTensor) -> CubeTensor {
    empty_device_dtype(like.client.clone(), like.device.clone(), shape, like.dtype)
}

/// [`empty`], in row-major order without gaps between rows.
pub(super) fn empty_contiguous(shape: Shape, like: &CubeTensor) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, like.dtype)
}

/// The same in single precision.
pub(super) fn empty_f32(shape: Shape, like: &CubeTensor) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, DType::F32)
}

/// Zeros in the shape, in the type and on the device of another tensor.
pub(super) fn zeros_like(like: &CubeTensor) -> CubeTensor {
    CubeBackend::float_zeros(like.shape(), &like.device, like.dtype.into())
}

/// The sum of what there is already and one more term.
pub(super) fn added(sum: Option<CubeTensor>, term: CubeTensor) -> CubeTensor {
    match sum {
        Some(sum) => CubeBackend::float_add(sum, term),
        None => term,
    }
}

/// Parts one behind the other along an axis; a single one is not copied.
pub(super) fn joined(mut parts: Vec<CubeTensor>, axis: usize) -> CubeTensor {
    if parts.len() == 1 { parts.remove(0) } else { CubeBackend::float_cat(parts, axis) }
}

/// A product whose sums are kept in single precision, whatever type the factors have.
pub(super) fn single_product(left: CubeTensor, right: CubeTensor) -> CubeTensor {
    let product = matmul(left.clone(), right.clone(), None, MatmulStrategy::default(), DType::F32);
    product.unwrap_or_else(|_| CubeBackend::float_cast(CubeBackend::float_matmul(left, right), DType::F32.into()))
}

/// The tensor with its last two axes exchanged.
pub(super) fn turned(tensor: CubeTensor) -> CubeTensor {
    let rank = tensor.shape().num_dims();
    CubeBackend::float_swap_dims(tensor, rank - 2, rank - 1)
}

/// How many numbers along the last axis can be read at a time from every one of the tensors.
pub(super) fn vector_size(tensors: &[&CubeTensor]) -> VectorSize {
    let sizes = tensors.iter().map(|it| {
        tensor_vector_size_parallel(
            it.client.io_optimized_vector_sizes(it.dtype.size()),
            it.meta.shape(),
            it.meta.strides(),
            it.meta.num_dims() - 1,
        )
    });
    sizes.min().unwrap_or(1)
}

/// The type of indices that reaches every number of the tensors.
pub(super) fn address_type(tensors: &[&CubeTensor]) -> AddressType {
    tensors.iter().map(|it| it.required_address_type()).max().unwrap_or_default()
}

/// The type of its numbers, as a kernel is told.
pub(super) fn element(tensor: &CubeTensor) -> ElemType {
    dtype_to_storage_type(tensor.dtype)
}

/// How many tensors a kernel can take that has so many buffers for each. More than 32 would be compiled for long.
pub(super) fn most_tensors(client: &Client, buffers: usize) -> usize {
    // Beside them there are one more tensor, scalars and shapes.
    let bindings = client.properties().hardware.max_bindings as usize;
    (bindings.saturating_sub(3) / buffers).clamp(1, 32)
}

/// Whether two tensors are one in the card's memory.
pub(super) fn is_same(a: &CubeTensor, b: &CubeTensor) -> bool {
    a.handle.memory.descriptor() == b.handle.memory.descriptor()
}

/// A row of cubes for each of so many tensors, the largest of which has so many vectors. A row is not longer than what fills a card, and
/// than any device allows: units of a long one go on by as many vectors as it has units.
pub(super) fn rows_of_cubes(largest: usize, dim: CubeDim, tensors: usize) -> CubeCount {
    const LONGEST: usize = 2048;
    let cubes = largest.div_ceil(dim.num_elems() as usize).clamp(1, LONGEST);
    CubeCount::Static(cubes as u32, tensors as u32, 1)
}

/// How a kernel with a unit for each vector of numbers is launched.
pub(super) struct Elementwise {
    pub(super) count: CubeCount,
    pub(super) dim: CubeDim,
    pub(super) address: AddressType,
    pub(super) vector: VectorSize,
}

impl Elementwise {
    /// For tensors of one shape; nothing if they are empty.
    pub(super) fn new(tensors: &[&CubeTensor]) -> Option<Self> {
        Self::of(tensors, vector_size(tensors))
    }

    /// The same, a unit for each number.
    pub(super) fn single(tensors: &[&CubeTensor]) -> Option<Self> {
        Self::of(tensors, 1)
    }

    fn of(tensors: &[&CubeTensor], vector: VectorSize) -> Option<Self> {
        let vectors = tensors[0].shape().num_elements() / vector;
        let dim = CubeDim::new(&tensors[0].client, vectors);
        let count = cubecl::calculate_cube_count_elemwise(&tensors[0].client, vectors, dim);
        (vectors > 0).then(|| Self { count, dim, address: address_type(tensors), vector })
    }
}

/// A cube for each row of so many items: a power of two of units, no more than there are items.
pub(super) fn cube_for_row(like: &CubeTensor, items: usize) -> CubeDim {
    let most = like.client.properties().hardware.max_units_per_cube.min(256) as usize;
    let units = most.min(items.max(1));
    CubeDim::new_1d(1 << units.ilog2())
}

/// That many cubes, spread over the axes that a device limits. The last ones may be too many: `CUBE_POS` tells.
pub(super) fn cubes(like: &CubeTensor, count: usize) -> CubeCount {
    cubecl::calculate_cube_count_elemwise(&like.client, count, CubeDim::new_1d(1))
}

/// Shape with all axes before the last one folded: rows and their width.
pub(super) fn rows_and_width(tensor: &CubeTensor) -> [usize; 2] {
    let shape = tensor.shape();
    let width = shape[shape.num_dims() - 1];
    [shape.num_elements() / width.max(1), width]
}

/// The sum of what the units of a cube have, which each of them gets.
#[cube]
pub(super) fn sum_of_cube(value: f32, #[comptime] units: usize) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}

/// The largest of what the units of a cube have, which each of them gets.
#[cube]
pub(super) fn max_of_cube(value: f32, #[comptime] units: usize) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let (own, other) = (shared[unit], shared[unit + half]);
            shared[unit] = max(own, other);
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}

/// The sum of the numbers of a vector.
#[cube]
pub(super) fn sum_of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for at in 0..vector.vector_size() {
        sum += vector.extract(at);
    }
    sum
}

/// What the number at a place is multiplied by when some are dropped at random: zero, or one over the share that stays.
/// A hash of the place (lowbias32 by Chris Wellons) and of two numbers that were drawn from [0, 1) decides.
#[cube]
pub(super) fn factor_of_place(low: f32, high: f32, place: u32, probability: f32) -> f32 {
    // A uniform f32 has 24 random bits.
    let low = u32::cast_from(low * 16_777_216.0f32);
    let high = u32::cast_from(high * 16_777_216.0f32);
    let mut hash = (place * 0x9e37_79b9u32) ^ (low * 0x85eb_ca6bu32);
    hash ^= hash >> 16u32;
    hash = (hash + high) * 0x7feb_352du32;
    hash ^= hash >> 15u32;
    hash *= 0x846c_a68bu32;
    hash ^= hash >> 16u32;
    let share = f32::cast_from(hash >> 8u32) * (1.0f32 / 16_777_216.0f32);
    let mut factor = 1.0f32 / (1.0f32 - probability);
    if share < probability {
        factor = 0.0f32;
    }
    factor
}
