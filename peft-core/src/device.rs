//! What devices differ in.

#[allow(unused_imports, reason = "a build without a backend")]
use burn::backend::DispatchDevice;
use burn::tensor::Device;

/// Whether a tensor of this device lies in the memory of the machine.
pub(crate) fn is_here(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    if is_processor(device) {
        return true;
    }
    is_eager(device)
}

/// Whether kernels for cards run on the processor there.
#[cfg(feature = "cube")]
pub(crate) fn is_processor(device: &Device) -> bool {
    use burn_cubecl::cubecl::RuntimeId;
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Cube(it) if it.runtime() == RuntimeId::Cpu)
}

/// Whether a tensor of this device is computed when the call that makes it returns, so that nothing is waited for where its
/// numbers are read. Cards are told what to do, and do it while the program goes on.
#[allow(deprecated, reason = "burn-tch is deprecated in Burn 0.22.1, and is the only way to libtorch")]
pub fn is_eager(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "tch")]
        DispatchDevice::LibTorch(device) => *device == burn::backend::libtorch::LibTorchDevice::Cpu,
        #[allow(unreachable_patterns, reason = "the last of the backends that were chosen")]
        _ => false,
    }
}
