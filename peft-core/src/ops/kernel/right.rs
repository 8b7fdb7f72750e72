//! The right side of a product: a matrix in single or half precision, or in fewer bits, or the patches of a picture.

use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use half::{bf16, f16};

use super::matrix::Matrix;
use super::part::Part;
use super::patches::Patches;
use crate::mapped;
use crate::quant::{self, Packed};

/// The right side of a product: a weight may be kept in half precision or in fewer bits, which is widened as it is packed into
/// panels. Patches are gathered then.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'a> {
    Single(Matrix<'a>),
    Bf16(Matrix<'a, bf16>),
    F16(Matrix<'a, f16>),
    Packed(Part<Packed<'a>>),
    Patches(Part<Patches<'a>>),
}

/// The same for a matrix of any type; a packed one is widened for it, and patches are gathered.
macro_rules! of_any {
    ($right:expr, $matrix:ident => $value:expr) => {
        match $right {
            Right::Single($matrix) => $value,
            Right::Bf16($matrix) => $value,
            Right::F16($matrix) => $value,
            Right::Packed(part) => part.widened(|$matrix| $value),
            Right::Patches(part) => part.widened(|$matrix| $value),
        }
    };
}
pub(super) use of_any;

impl<'a> From<Matrix<'a>> for Right<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Self::Single(matrix)
    }
}

impl<'a> From<Matrix<'a, bf16>> for Right<'a> {
    fn from(matrix: Matrix<'a, bf16>) -> Self {
        Self::Bf16(matrix)
    }
}

impl<'a> From<Matrix<'a, f16>> for Right<'a> {
    fn from(matrix: Matrix<'a, f16>) -> Self {
        Self::F16(matrix)
    }
}

impl<'a> From<Part<Patches<'a>>> for Right<'a> {
    fn from(part: Part<Patches<'a>>) -> Self {
        Self::Patches(part)
    }
}

impl<'a> Right<'a> {
    /// A tensor that is [`visible`].
    pub(super) fn of(tensor: &'a FlexTensor) -> Self {
        mapped::will_read(tensor.bytes());
        match tensor.dtype() {
            DType::BF16 => Self::Bf16(Matrix::of(tensor)),
            DType::F16 => Self::F16(Matrix::of(tensor)),
            dtype if quant::is_packed(dtype) => {
                Self::Packed(Part::whole(quant::view(tensor), !quant::is_turned(tensor)))
            }
            _ => Self::Single(Matrix::of(tensor)),
        }
    }

    pub(super) fn dims(self) -> [usize; 2] {
        match self {
            Self::Packed(part) => part.dims(),
            Self::Patches(part) => part.dims(),
            _ => of_any!(self, it => [it.rows, it.columns]),
        }
    }

    pub(super) fn rows(self, first: usize, count: usize) -> Self {
        match self {
            Self::Single(it) => it.rows(first, count).into(),
            Self::Bf16(it) => it.rows(first, count).into(),
            Self::F16(it) => it.rows(first, count).into(),
            Self::Packed(it) => Self::Packed(it.rows(first, count)),
            Self::Patches(it) => Self::Patches(it.rows(first, count)),
        }
    }

    pub(super) fn columns(self, first: usize, count: usize) -> Self {
        match self {
            Self::Single(it) => it.columns(first, count).into(),
            Self::Bf16(it) => it.columns(first, count).into(),
            Self::F16(it) => it.columns(first, count).into(),
            Self::Packed(it) => Self::Packed(it.columns(first, count)),
            Self::Patches(it) => Self::Patches(it.columns(first, count)),
        }
    }

    /// Whether its rows lie without gaps.
    pub(super) fn lies_along(self) -> bool {
        match self {
            Self::Packed(part) => part.lies_along(),
            Self::Patches(part) => part.lies_along(),
            _ => of_any!(self, it => it.strides[1] == 1),
        }
    }
}
