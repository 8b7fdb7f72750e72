//! The numbers that codes mean, on the CPU.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;

use super::widen::WidenOps;
use crate::ops::kernel;

impl WidenOps for Flex {
    fn widen(tensor: FlexTensor) -> FlexTensor {
        kernel::to_f32(tensor)
    }
}
