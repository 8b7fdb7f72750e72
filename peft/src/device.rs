//! Choosing a device at run time among the backends compiled in.

use burn::tensor::Device;
use peft_core::{PeftError, Result};

/// The names that [`device`] understands in this build, best first.
pub fn devices() -> Vec<&'static str> {
    let mut names = Vec::new();
    names.extend(cfg!(feature = "cuda").then_some("cuda"));
    names.extend(cfg!(feature = "wgpu").then_some("wgpu"));
    names.extend(cfg!(feature = "tch").then_some("tch"));
    names.extend(cfg!(feature = "flex").then_some("flex"));
    names
}

/// The device of a name, or the best one of this build.
///
/// # Errors
/// As [`device`].
pub fn best_device(name: Option<&str>) -> Result<Device> {
    device(name.unwrap_or_else(|| devices().first().copied().unwrap_or("flex")))
}

/// The CPU, for what takes no more than reading files; the best device where the build has no `flex`.
///
/// # Errors
/// As [`device`].
pub fn cpu_device() -> Result<Device> {
    best_device(cfg!(feature = "flex").then_some("flex"))
}

/// The device of a name: `flex` (CPU), `wgpu` (Vulkan, Metal, DirectX 12), `cuda`, `cuda:1`, `tch`.
///
/// # Errors
/// If the backend is not compiled in.
pub fn device(name: &str) -> Result<Device> {
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => {
            let index = index.parse::<usize>();
            (
                backend,
                index.map_err(|_| PeftError::config("device", format!("`{name}` has no number after the colon")))?,
            )
        }
        None => (name, 0),
    };
    match backend {
        #[cfg(feature = "flex")]
        "flex" | "cpu" if index == 0 => Ok(Device::flex()),
        #[cfg(feature = "wgpu")]
        "wgpu" if index == 0 => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(burn::tensor::DeviceKind::DiscreteGpu(index))),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(index)),
        #[cfg(feature = "tch")]
        "tch" if index == 0 => Ok(Device::libtorch()),
        _ => {
            let known = devices().join(", ");
            let reason = format!("`{name}` is not in this build, which has {known}; build with `--features {backend}`");
            Err(PeftError::config("device", reason))
        }
    }
}
