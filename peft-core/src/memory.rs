//! How much memory there is.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Bytes that this process may still take: of the machine, or of the group of processes that it is in.
pub(crate) fn free() -> Option<u64> {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    // Where the system does not say, nothing is refused.
    let free = Some(system.available_memory()).filter(|it| *it > 0)?;
    // What a group calls used has the cache of files in it, which gives way.
    let of_group = system.cgroup_limits().map(|group| group.total_memory.saturating_sub(group.rss));
    Some(of_group.map_or(free, |group| group.min(free)))
}

/// `5.6 TB`
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut number, mut unit) = (bytes as f64, 0);
    while number >= 1000.0 && unit + 1 < units.len() {
        number /= 1000.0;
        unit += 1;
    }
    format!("{number:.1} {}", units[unit])
}
