//! How many kernels a piece of work launches on a card.

use std::collections::BTreeMap;

use burn::tensor::Device;

use crate::error::{PeftError, Result};

/// How often each kernel was launched, by its name.
pub type Launches = BTreeMap<String, usize>;

/// Counts what the whole process launches, from [`start`](Self::start) to [`finish`](Self::finish).
///
/// Launches of a captured graph are not among them.
#[derive(Debug)]
#[must_use = "launches are counted until `finish`"]
pub struct LaunchCounter {
    device: Device,
    #[cfg(feature = "cube")]
    watch: watch::Watch,
}

impl LaunchCounter {
    /// Waits until the device has done what it was told before, and counts from then on.
    ///
    /// # Errors
    /// If this build has no backend for cards, and what the device says where it failed.
    pub fn start(device: &Device) -> Result<Self> {
        if !cfg!(feature = "cube") {
            let reason = "this build has no backend for cards; build it with `cuda`, `wgpu` or `cube-cpu`";
            return Err(PeftError::unsupported("counting launches", reason));
        }
        let device = device.clone().without_autodiff();
        wait(&device)?;
        Ok(Self {
            device,
            #[cfg(feature = "cube")]
            watch: watch::Watch::start(),
        })
    }

    /// Waits for the device, and says what was launched.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn finish(self) -> Result<Launches> {
        wait(&self.device)?;
        #[cfg(feature = "cube")]
        return Ok(self.watch.finish());
        #[cfg(not(feature = "cube"))]
        Ok(Launches::new())
    }
}

fn wait(device: &Device) -> Result<()> {
    device.sync().map_err(|error| PeftError::Device(error.to_string()))
}

#[cfg(feature = "cube")]
mod watch {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex, PoisonError};

    use burn_cubecl::cubecl::config::{TypeNameFormatLevel, type_name_format};
    use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};

    use super::Launches;

    #[derive(Debug, Default)]
    struct Counts(Mutex<BTreeMap<&'static str, usize>>);

    impl LaunchObserver for Counts {
        fn launched(&self, kernel: &'static str) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(kernel).or_default() += 1;
        }
    }

    #[derive(Debug)]
    pub(super) struct Watch {
        counts: Arc<Counts>,
        observation: LaunchObservation,
    }

    impl Watch {
        pub(super) fn start() -> Self {
            let counts = Arc::new(Counts::default());
            Self { observation: LaunchObservation::new(counts.clone()), counts }
        }

        pub(super) fn finish(self) -> Launches {
            drop(self.observation);
            let counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
            let mut launches = Launches::new();
            for (name, count) in counts.iter() {
                *launches.entry(type_name_format(name, TypeNameFormatLevel::Short)).or_default() += count;
            }
            launches
        }
    }
}
