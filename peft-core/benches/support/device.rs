//! The device that a bench runs on.

use burn::tensor::Device;

/// What `PEFT_TEST_DEVICE` names, if this build has it: a card, or flex.
#[allow(deprecated, reason = "burn-tch is deprecated in Burn 0.22.1, and is the only way to libtorch")]
pub(crate) fn device() -> Option<Device> {
    match std::env::var("PEFT_TEST_DEVICE").unwrap_or_default().as_str() {
        #[cfg(feature = "flex")]
        "flex" | "" => Some(Device::flex()),
        #[cfg(feature = "cube-cpu")]
        "cube-cpu" => Some(Device::cpu()),
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(0)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "tch")]
        "tch" => Some(Device::libtorch()),
        _ => None,
    }
}
