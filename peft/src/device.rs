//! The devices of this machine that this build can use: which ones there are, and which one a name means.
//!
//! A device that is asked for by its name is looked for first, since a backend that begins to work without its driver or its
//! card ends the program.

use burn::tensor::Device;
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "tch"))]
use burn::tensor::DeviceType;
use peft_core::{PeftError, Result};
use serde::Serialize;

/// What stands for the best device that there is.
const AUTO: &str = "auto";

/// Every backend that there is, as `--device` and the features of this crate call it; best first.
const BACKENDS: [(&str, bool); 7] = [
    ("cuda", cfg!(feature = "cuda")),
    ("metal", cfg!(feature = "metal")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("tch", cfg!(feature = "tch")),
    ("flex", cfg!(feature = "flex")),
    ("cube-cpu", cfg!(feature = "cube-cpu")),
];

/// A device that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// As [`device`] takes it.
    pub name: String,
    /// The card or the processor, and what runs on it.
    pub description: String,
    /// Bytes, where the driver says how many there are.
    pub memory: Option<u64>,
}

/// The backends of this build, best first. A driver or a card may be missing: [`devices`] looks.
pub fn backends() -> Vec<&'static str> {
    BACKENDS.iter().filter(|it| it.1).map(|it| it.0).collect()
}

/// The devices that this build finds on this machine. Opens cards to ask for their memory, which takes a moment.
pub fn devices() -> Vec<DeviceInfo> {
    let mut found = Vec::new();
    #[cfg(feature = "cuda")]
    found.extend(cubes("cuda", DeviceType::Cuda));
    #[cfg(feature = "metal")]
    found.extend(cubes("metal", DeviceType::Metal));
    #[cfg(feature = "vulkan")]
    found.extend(cubes("vulkan", DeviceType::Vulkan));
    #[cfg(feature = "wgpu")]
    found.extend(cubes("wgpu", DeviceType::Wgpu));
    #[cfg(feature = "tch")]
    found.extend(torches());
    let mut processor = |name: &str, description: &str| {
        let memory = peft_core::total_memory();
        found.push(DeviceInfo { name: name.to_owned(), description: description.to_owned(), memory });
    };
    if cfg!(feature = "flex") {
        processor("flex", "this processor, with the kernels of this program");
    }
    if cfg!(feature = "cube-cpu") {
        processor("cube-cpu", "this processor, with kernels for cards: for tests");
    }
    found
}

/// The device of a name, or the best one of this machine: a card before the processor.
///
/// # Errors
/// As [`device`].
pub fn best_device(name: Option<&str>) -> Result<Device> {
    device(name.unwrap_or(AUTO))
}

/// The CPU, for what takes no more than reading files; the best device where the build has no `flex`.
///
/// # Errors
/// As [`device`].
pub fn cpu_device() -> Result<Device> {
    best_device(cfg!(feature = "flex").then_some("flex"))
}

/// The device of a name.
///
/// | name | what it is |
/// | --- | --- |
/// | `auto` | a card if there is one, else the processor |
/// | `flex`, `cpu` | the processor |
/// | `cuda`, `cuda:1` | a card of NVIDIA, the first one if no number is given |
/// | `wgpu`, `wgpu:1` | a card by Vulkan, Metal or DirectX 12: the one that the system prefers, or by its number in [`devices`] |
/// | `vulkan`, `metal` | the same, by this interface only |
/// | `tch`, `tch:cuda:1`, `tch:mps` | libtorch on the processor, on a card of NVIDIA, on one of Apple |
/// | `cube-cpu` | kernels for cards on the processor, for tests |
///
/// # Errors
/// If the backend is not compiled in, or there is no such device.
pub fn device(name: &str) -> Result<Device> {
    if name == AUTO {
        return Ok(best());
    }
    let (backend, which) = match name.split_once(':') {
        Some((backend, which)) => (backend, Some(which)),
        None => (name, None),
    };
    match (backend, which) {
        #[cfg(feature = "flex")]
        ("flex" | "cpu", None) => Ok(Device::flex()),
        #[cfg(feature = "cube-cpu")]
        ("cube-cpu", None) => Ok(Device::cpu()),
        #[cfg(feature = "cuda")]
        ("cuda", _) => numbered(name, which, DeviceType::Cuda),
        #[cfg(feature = "metal")]
        ("metal", _) => numbered(name, which, DeviceType::Metal),
        #[cfg(feature = "vulkan")]
        ("vulkan", _) => numbered(name, which, DeviceType::Vulkan),
        #[cfg(feature = "wgpu")]
        ("wgpu", Some(_)) => numbered(name, which, DeviceType::Wgpu),
        // The system knows which of several it prefers.
        #[cfg(feature = "wgpu")]
        ("wgpu", None) => {
            numbered(name, None, DeviceType::Wgpu).map(|_| Device::wgpu(burn::tensor::DeviceKind::DefaultDevice))
        }
        #[cfg(feature = "tch")]
        ("tch", _) => torch(name, which),
        _ => Err(refusal(name, backend)),
    }
}

/// Why a name means no device of this build.
fn refusal(name: &str, backend: &str) -> PeftError {
    let known = backends().join(", ");
    let backend = if backend == "cpu" { "flex" } else { backend };
    let reason = match BACKENDS.iter().find(|it| it.0 == backend) {
        Some((_, true)) => format!("`{name}` is no device: there is one `{backend}`, without a number"),
        Some(_) => format!("`{name}` is not in this build, which has {known}; build with `--features {backend}`"),
        None => {
            let all: Vec<&str> = BACKENDS.iter().map(|it| it.0).collect();
            format!("`{name}` is no device; this build has {known}, of {}", all.join(", "))
        }
    };
    PeftError::config("device", reason)
}

/// A card if there is one. Not what computes in software in place of one, as long as there is anything else.
fn best() -> Device {
    #[cfg(feature = "cuda")]
    if let Some(card) = Device::enumerate(DeviceType::Cuda).into_vec().into_iter().next() {
        return card;
    }
    #[cfg(feature = "wgpu")]
    if Device::enumerate(DeviceType::Wgpu).into_vec().iter().any(is_card) {
        return Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    }
    #[cfg(feature = "tch")]
    if let Some(card) = Device::enumerate(DeviceType::LibTorch).into_vec().into_iter().next() {
        return card;
    }
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(all(not(feature = "flex"), feature = "cube-cpu"))]
    return Device::cpu();
    #[cfg(all(not(feature = "flex"), not(feature = "cube-cpu"), feature = "tch"))]
    #[allow(deprecated)]
    return Device::libtorch();
    #[cfg(not(any(feature = "flex", feature = "cube-cpu", feature = "tch")))]
    Device::default()
}

/// Whether it is no software that takes the place of a card.
#[cfg(feature = "wgpu")]
fn is_card(device: &Device) -> bool {
    use burn::backend::{CubeDevice, DispatchDevice, WgpuDeviceKind};
    let is_software =
        |it: &CubeDevice| matches!(it, CubeDevice::Wgpu(device) if matches!(device.kind, WgpuDeviceKind::Cpu));
    !matches!(device.as_dispatch(), DispatchDevice::Cube(it) if is_software(it))
}

/// One of the devices of a kind, by its number.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn numbered(name: &str, which: Option<&str>, kind: DeviceType) -> Result<Device> {
    let at = number(name, which)?;
    let missing = match kind {
        #[cfg(feature = "cuda")]
        DeviceType::Cuda => "no card of NVIDIA, or no driver for it: `nvidia-smi` should list one",
        _ => "no card with a driver: `vulkaninfo --summary` should list one where Vulkan is meant",
    };
    let mut found = Device::enumerate(kind).into_vec();
    if at < found.len() { Ok(found.swap_remove(at)) } else { Err(absent(name, found.len(), missing)) }
}

/// libtorch's processor, a card of NVIDIA by its number, or one of Apple.
#[cfg(feature = "tch")]
#[allow(deprecated)]
fn torch(name: &str, which: Option<&str>) -> Result<Device> {
    let (kind, which) = match which.map(|it| it.split_once(':').unwrap_or((it, ""))) {
        Some((kind, which)) => (kind, (!which.is_empty()).then_some(which)),
        None => ("cpu", None),
    };
    match kind {
        "cpu" if which.is_none() => Ok(Device::libtorch()),
        "mps" if which.is_none() && cfg!(target_os = "macos") => Ok(Device::libtorch_mps()),
        "mps" => Err(PeftError::config("device", format!("`{name}` is for computers of Apple"))),
        "cuda" => {
            let (at, found) = (number(name, which)?, Device::enumerate(DeviceType::LibTorch).into_vec().len());
            let missing = "no card of NVIDIA that libtorch sees: its package must be one for CUDA";
            if at < found { Ok(Device::libtorch_cuda(at)) } else { Err(absent(name, found, missing)) }
        }
        _ => Err(PeftError::config("device", format!("`{name}` is no device: tch, tch:cuda:0 and tch:mps are"))),
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "tch"))]
fn number(name: &str, which: Option<&str>) -> Result<usize> {
    let Some(which) = which else { return Ok(0) };
    which.parse().map_err(|_| PeftError::config("device", format!("`{name}` has no number after the colon")))
}

/// Why there is no device of this number.
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "tch"))]
fn absent(name: &str, found: usize, missing: &str) -> PeftError {
    let reason = match found {
        0 => format!("`{name}` is not there: this machine has {missing}. `peft devices` lists what there is"),
        _ => format!("`{name}` is not there: numbers go from 0 to {}. `peft devices` lists them", found - 1),
    };
    PeftError::config("device", reason)
}

/// The devices of a runtime of CubeCL.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn cubes(backend: &str, kind: DeviceType) -> Vec<DeviceInfo> {
    use burn::backend::DispatchDevice;
    let found = Device::enumerate(kind).into_vec().into_iter().enumerate();
    let about = found.map(|(at, device)| DeviceInfo {
        name: format!("{backend}:{at}"),
        description: device.identity().map_or_else(|| "a card without a name".to_owned(), |it| it.name),
        memory: match device.as_dispatch() {
            DispatchDevice::Cube(cube) => cube.client().properties().memory.max_memory(),
            #[allow(unreachable_patterns)]
            _ => None,
        },
    });
    about.collect()
}

/// The devices of libtorch, which does not say how much memory they have.
#[cfg(feature = "tch")]
fn torches() -> Vec<DeviceInfo> {
    let about =
        |name: String, description: &str| DeviceInfo { name, description: description.to_owned(), memory: None };
    let cards = 0..Device::enumerate(DeviceType::LibTorch).into_vec().len();
    let mut found: Vec<_> = cards.map(|at| about(format!("tch:cuda:{at}"), "a card of NVIDIA, by libtorch")).collect();
    if cfg!(target_os = "macos") {
        found.push(about("tch:mps".to_owned(), "the card of this computer, by libtorch"));
    }
    found.push(about("tch".to_owned(), "this processor, by libtorch"));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str) -> String {
        device(name).expect_err("no such device").to_string()
    }

    #[test]
    fn a_name_without_a_device_is_refused_with_what_there_is() {
        for name in ["", "gpu", ":0", "rocm:1", "Flex"] {
            let message = refused(name);
            assert!(message.contains("cuda, metal, vulkan, wgpu, tch, flex, cube-cpu"), "{message}");
        }
        for (backend, is_there) in BACKENDS {
            if !is_there {
                for name in [backend.to_owned(), format!("{backend}:0")] {
                    assert!(refused(&name).contains(&format!("--features {backend}")), "{name}");
                }
            }
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_processor_has_no_number() {
        for name in ["flex:0", "cpu:1"] {
            assert!(refused(name).contains("without a number"), "{name}");
        }
    }

    /// What is listed can be asked for by its name.
    #[test]
    fn every_device_that_is_listed_is_one() {
        let found = devices();
        assert!(!found.is_empty());
        for it in found {
            device(&it.name).unwrap_or_else(|error| panic!("{}: {error}", it.name));
        }
        assert!(best_device(None).is_ok());
    }
}
