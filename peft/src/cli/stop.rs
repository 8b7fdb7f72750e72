//! Ctrl-C, TERM and HUP while a run trains: the step ends, and a checkpoint is written. A second one ends it at once, as
//! the first does outside of training.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use peft_tasks::tasks::interruption::StopAsked;
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
    /// Whether the user knows.
    told: Arc<Mutex<bool>>,
}

impl StopSignals {
    /// Listens from now on. Signals that whoever started the process wants ignored, as `nohup` does, stay so.
    ///
    /// A step may take minutes, so `tell` says at once that a signal was understood, unless the step has ended before.
    pub(super) fn listen(tell: impl Fn(&str) + Send + 'static) -> io::Result<Self> {
        let came = Arc::new(AtomicUsize::new(0));
        let ignored = ignored();
        let heeded: Vec<i32> = SIGNALS.iter().map(|it| it.0).filter(|it| ignored >> (it - 1) & 1 == 0).collect();
        // Two that come at the same moment are handled by two threads. Each raises its flag before it looks at those of the
        // others, so that one of them sees the other's. Its own it asks before: up it is a second time.
        let flags: Vec<Arc<AtomicBool>> = heeded.iter().map(|_| Arc::default()).collect();
        for (at, signal) in heeded.iter().enumerate() {
            flag::register_conditional_shutdown(*signal, 128 + signal, flags[at].clone())?;
            flag::register(*signal, flags[at].clone())?;
            for other in flags.iter().enumerate().filter(|it| it.0 != at) {
                flag::register_conditional_shutdown(*signal, 128 + signal, other.1.clone())?;
            }
            flag::register_usize(*signal, came.clone(), *signal as usize)?;
        }
        let told = Arc::new(Mutex::new(false));
        announce(&heeded, told.clone(), tell)?;
        Ok(Self { came, told })
    }

    /// Whether one came, for who asks without saying so.
    pub(super) fn watch(&self) -> StopAsked {
        let came = self.came.clone();
        Arc::new(move || came.load(Ordering::Relaxed) != 0)
    }

    /// The signal that came: its name, and the exit code that shells give to it. Who asks will say so.
    pub(super) fn came(&self) -> Option<(&'static str, u8)> {
        let came = i32::try_from(self.came.load(Ordering::Relaxed)).ok().filter(|it| *it != 0)?;
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Some((name(came), 128 + came as u8))
    }
}

/// Calls `tell` when the first of the signals comes, unless it was told by then.
#[cfg(unix)]
fn announce(signals: &[i32], told: Arc<Mutex<bool>>, tell: impl Fn(&str) + Send + 'static) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if !std::mem::replace(&mut *told, true) {
                tell(&format!(
                    "{}: the run ends after this step or in this evaluation; a second one ends it at once",
                    name(signal)
                ));
            }
        }
    });
    Ok(())
}

/// Nothing wakes a thread there.
#[cfg(not(unix))]
fn announce(_signals: &[i32], _told: Arc<Mutex<bool>>, _tell: impl Fn(&str) + Send + 'static) -> io::Result<()> {
    Ok(())
}

fn name(signal: i32) -> &'static str {
    SIGNALS.iter().find(|it| it.0 == signal).map_or("a signal", |it| it.1)
}

/// Bit `n - 1` is set if signal `n` is ignored. Where the system does not say, none is.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|it| it.strip_prefix("SigIgn:"));
    mask.and_then(|it| u64::from_str_radix(it.trim(), 16).ok()).unwrap_or(0)
}
