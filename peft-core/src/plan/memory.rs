//! Whether what a plan makes fits into memory, asked before any of it is made.

use burn::backend::DispatchDevice;
use burn::tensor::Device;

use crate::error::{PeftError, Result};
use crate::memory::{free, size};

/// Below this nobody asks the system: what is that small is had, or nothing else is.
const ALWAYS: u64 = 64 << 20;

/// No card has more: how much there is on one is not known here.
const LARGEST_CARD: u64 = 1 << 40;

/// Refuses to allocate what cannot be had. `what` is the thing that needs the memory, as a subject: `the adapter`.
///
/// # Errors
/// If `elements` numbers in single precision take more than is free on this machine, or, on another device, than any has.
pub fn check_memory(what: &str, elements: u64, device: &Device) -> Result<()> {
    let needed = elements.saturating_mul(size_of::<f32>() as u64);
    if needed <= ALWAYS {
        return Ok(());
    }
    let (most, there) = match is_here(device) {
        true => (free(), "are free: lower the numbers that it comes from, or train on a larger machine"),
        false => (Some(LARGEST_CARD), "are more than a card has: lower the numbers that it comes from"),
    };
    match most {
        Some(most) if needed > most => {
            Err(PeftError::Invalid(format!("{what} needs {} of memory, and {} {there}", size(needed), size(most))))
        }
        _ => Ok(()),
    }
}

/// Whether a tensor of this device lies in the memory of the machine.
fn is_here(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "tch")]
        DispatchDevice::LibTorch(device) => *device == burn::backend::libtorch::LibTorchDevice::Cpu,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(device) => device.runtime() == burn_cubecl::cubecl::RuntimeId::Cpu,
        #[allow(unreachable_patterns, reason = "the last of the backends that were chosen")]
        _ => false,
    }
}
