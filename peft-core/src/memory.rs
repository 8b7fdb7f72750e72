//! How much memory there is.

use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System, get_current_pid};

/// Bytes that this process may still take: of the machine, or of the group of processes that it is in.
pub(crate) fn free() -> Option<u64> {
    let mut system = system();
    // Where the system does not say, nothing is refused.
    let free = Some(system.available_memory()).filter(|it| *it > 0)?;
    // The group of all that is seen, as in a container, and that of this process.
    let mut groups = vec![system.cgroup_limits()];
    if let Ok(id) = get_current_pid() {
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), true, ProcessRefreshKind::nothing());
        groups.push(system.process(id).and_then(sysinfo::Process::cgroup_limits));
    }
    // What a group calls used has the cache of files in it, which gives way.
    let of_groups = groups.into_iter().flatten().map(|group| group.total_memory.saturating_sub(group.rss));
    of_groups.chain([free]).min()
}

/// Bytes of the machine, or of the group of processes that this one is in.
pub fn total_memory() -> Option<u64> {
    let system = system();
    let total = Some(system.total_memory()).filter(|it| *it > 0)?;
    Some(system.cgroup_limits().map_or(total, |group| total.min(group.total_memory)))
}

fn system() -> System {
    System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()))
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
