//! Whether what a plan makes fits into memory, asked before any of it is made.

use burn::tensor::Device;

use crate::error::{PeftError, Result};
use crate::memory::{free, size};

/// Below this nobody asks the system: what is that small is had, or nothing else is.
const ALWAYS: u64 = 64 << 20;

/// Refuses to allocate what cannot be had. `what` is the thing that needs the memory, as a subject: `the adapter`.
///
/// Only the memory of this machine is known, so what goes to another device is not judged.
///
/// # Errors
/// If `elements` numbers in single precision take more than is free.
pub fn check_memory(what: &str, elements: u64, device: &Device) -> Result<()> {
    let needed = elements.saturating_mul(size_of::<f32>() as u64);
    if needed <= ALWAYS || !is_here(device) {
        return Ok(());
    }
    match free() {
        Some(free) if needed > free => Err(PeftError::Invalid(format!(
            "{what} needs {} of memory, and {} are free: lower the numbers that it comes from, or train on a larger \
             machine",
            size(needed),
            size(free)
        ))),
        _ => Ok(()),
    }
}

/// Whether a tensor of this device lies in the memory of the machine.
#[cfg(feature = "flex")]
fn is_here(device: &Device) -> bool {
    matches!(device.clone().without_autodiff().as_dispatch(), burn::backend::DispatchDevice::Flex(_))
}

/// This build has no device that is the machine itself.
#[cfg(not(feature = "flex"))]
fn is_here(_device: &Device) -> bool {
    false
}
