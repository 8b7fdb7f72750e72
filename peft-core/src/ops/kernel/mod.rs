//! What the operations share on Burn's CPU backend: storage, threads and vector instructions.
//!
//! Loops are written plainly over slices. [`simd`] compiles each of them for several instruction sets and picks one at
//! run time; [`pieces`] cuts a tensor into pieces of a fixed size, so that sums do not depend on the number of threads.

mod amx;
pub(crate) mod bf16;
pub(crate) mod convolution;
mod int8;
pub(crate) mod math;
mod matrix;
mod output;
mod part;
mod patches;
mod product;
mod right;
mod simd;
mod storage;
mod widen;
mod words;

pub(crate) use matrix::Matrix;
pub(crate) use output::{Block, Memory, first, pieces};
pub(crate) use product::{Onto, Panels, Start, multiply_alone, product};
pub(crate) use simd::{Kernel, simd};
pub(crate) use storage::{
    PIECE, Rows, contiguous, fits, fits_weight, map, numbers, overwrite, permuted, rows_per_piece, tensor, transposed,
    visible, zeros, zip,
};
pub(crate) use widen::to_f32;
