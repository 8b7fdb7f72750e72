//! Ctrl-C, TERM and HUP while a run trains: the step ends, and a checkpoint is written. A second one ends it at once, as
//! the first does outside of training.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

#[cfg(unix)]
const SIGNALS: [(i32, &str); 3] = [(SIGINT, "Ctrl-C"), (SIGTERM, "SIGTERM"), (signal_hook::consts::SIGHUP, "SIGHUP")];
#[cfg(not(unix))]
const SIGNALS: [(i32, &str); 2] = [(SIGINT, "Ctrl-C"), (SIGTERM, "SIGTERM")];

/// The signals that end a run.
#[derive(Debug)]
pub(super) struct StopSignals {
    /// The last one that came; 0 if none did.
    came: Arc<AtomicUsize>,
}

impl StopSignals {
    /// Listens from now on. Signals that whoever started the process wants ignored, as `nohup` does, stay so.
    pub(super) fn listen() -> io::Result<Self> {
        let (came, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let ignored = ignored();
        for (signal, _) in SIGNALS.into_iter().filter(|it| ignored >> (it.0 - 1) & 1 == 0) {
            // In this order: the first signal finds the flag down, and raises it for the second.
            flag::register_conditional_shutdown(signal, 128 + signal, again.clone())?;
            flag::register(signal, again.clone())?;
            flag::register_usize(signal, came.clone(), signal as usize)?;
        }
        Ok(Self { came })
    }

    /// The signal that came: its name, and the exit code that shells give to it.
    pub(super) fn came(&self) -> Option<(&'static str, u8)> {
        let came = self.came.load(Ordering::Relaxed);
        let found = SIGNALS.iter().find(|it| it.0 as usize == came)?;
        Some((found.1, 128 + came as u8))
    }
}

/// Bit `n - 1` is set if signal `n` is ignored. Where the system does not say, none is.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|it| it.strip_prefix("SigIgn:"));
    mask.and_then(|it| u64::from_str_radix(it.trim(), 16).ok()).unwrap_or(0)
}
