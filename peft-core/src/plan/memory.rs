//! Whether what a plan makes fits into memory, asked before any of it is made.

use burn::tensor::Device;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::error::{PeftError, Result};

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

/// Bytes that this process may still take: of the machine, or of the group of processes that it is in.
fn free() -> Option<u64> {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    // Where the system does not say, nothing is refused.
    let free = Some(system.available_memory()).filter(|it| *it > 0)?;
    // What a group calls used has the cache of files in it, which gives way.
    let of_group = system.cgroup_limits().map(|group| group.total_memory.saturating_sub(group.rss));
    Some(of_group.map_or(free, |group| group.min(free)))
}

/// `5.6 TB`
fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut number, mut unit) = (bytes as f64, 0);
    while number >= 1000.0 && unit + 1 < units.len() {
        number /= 1000.0;
        unit += 1;
    }
    format!("{number:.1} {}", units[unit])
}
