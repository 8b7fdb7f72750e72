//! Vector instructions of the machine.

use pulp::{Arch, Simd, WithSimd};

/// Something to be compiled for each instruction set.
///
/// A trait of its own, since a closure might not be inlined, and then would be compiled for the oldest set only.
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, and so must be what it calls.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the best instructions of the machine.
pub(crate) fn simd<K: Kernel>(kernel: K) -> K::Output {
    struct Wrapped<K>(K);
    impl<K: Kernel> WithSimd for Wrapped<K> {
        type Output = K::Output;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> K::Output {
            self.0.run()
        }
    }
    Arch::new().dispatch(Wrapped(kernel))
}
