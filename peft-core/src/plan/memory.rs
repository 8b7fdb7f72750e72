//! Whether what a plan makes fits into memory, asked before any of it is made.

use burn::tensor::Device;

use crate::device::is_here;
use crate::error::{PeftError, Result};
use crate::memory::{free, size, total_memory};

/// Below this nobody asks the system: what is that small is had, or nothing else is.
const ALWAYS: u64 = 64 << 20;

/// Refuses what a device will not hold. `what` is the thing that needs the memory, as a subject: `the optimizer`.
///
/// Only the memory of this machine is known, so what is made on a card is not judged.
///
/// # Errors
/// If `elements` numbers in single precision take more than is free.
pub fn check_memory(what: &str, elements: u64, device: &Device) -> Result<()> {
    let next = "are free: lower the numbers that it comes from, or train on a larger machine";
    if is_here(device) { check(what, elements, free, next) } else { Ok(()) }
}

/// The same of what is made on this machine and goes to a device then, as the numbers of a new adapter do.
///
/// # Errors
/// If they take more than is free, or, where they go to a card, than this machine has: they go one after the other.
pub fn check_memory_of_new(what: &str, elements: u64, device: &Device) -> Result<()> {
    if is_here(device) {
        return check_memory(what, elements, device);
    }
    let next = "are all that this machine has, where it is made: lower the numbers that it comes from";
    check(what, elements, total_memory, next)
}

fn check(what: &str, elements: u64, most: impl FnOnce() -> Option<u64>, next: &str) -> Result<()> {
    let needed = elements.saturating_mul(size_of::<f32>() as u64);
    if needed <= ALWAYS {
        return Ok(());
    }
    match most() {
        Some(most) if needed > most => {
            let (needed, most) = (size(needed), size(most));
            Err(PeftError::Invalid(format!("{what} needs {needed} of memory, and {most} {next}")))
        }
        _ => Ok(()),
    }
}
