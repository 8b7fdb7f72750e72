//! What devices differ in.

#[allow(unused_imports, reason = "a build without a backend")]
use burn::backend::DispatchDevice;
use burn::tensor::Device;

/// Whether a tensor of this device lies in the memory of the machine.
pub(crate) fn is_here(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    if is_cube_processor(device) {
        return true;
    }
    is_eager(device)
}

/// Whether kernels for cards run on the processor there.
#[cfg(feature = "cube")]
fn is_cube_processor(device: &Device) -> bool {
    use burn_cubecl::cubecl::RuntimeId;
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Cube(it) if it.runtime() == RuntimeId::Cpu)
}

/// Whether kernels can round to bf16 there. CubeCL's runtime for processors says so of every machine. Its compiler calls a function of
/// the machine's libraries for it, which older ones do not have, and goes on with other numbers then.
#[cfg(feature = "cube")]
pub(crate) fn rounds_to_bf16(device: &Device) -> bool {
    use std::sync::OnceLock;

    use burn::tensor::{DType, Tensor};
    static ROUNDS: OnceLock<bool> = OnceLock::new();
    !is_cube_processor(device)
        || *ROUNDS.get_or_init(|| {
            let numbers = Tensor::<1>::from_data([1.001f32, -2.5, 3.3], &device.clone().without_autodiff());
            let rounded = numbers.cast(DType::BF16).cast(DType::F32).into_data().try_into_vec::<f32>();
            rounded.is_ok_and(|it| it == [1.0, -2.5, 3.296875])
        })
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
