//! One process of several: `mpirun -n 4 peft train …` and `srun peft train …`.
//!
//! The group is MPI's, with the feature `mpi`. Whoever starts several processes of a command without it would get as many
//! runs in one folder, so that is refused.

use peft_core::{PeftError, Result};

/// What launchers tell the processes that they start: Open MPI, MPICH and Intel MPI, Slurm.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// How many processes a launcher has started.
fn started() -> usize {
    SIZES.iter().find_map(|it| std::env::var(it).ok()?.trim().parse().ok()).unwrap_or(1)
}

#[cfg(not(feature = "mpi"))]
pub(super) use without::Process;

#[cfg(not(feature = "mpi"))]
mod without {
    use super::{PeftError, Result, started};

    /// The only process there is.
    pub(in crate::cli) struct Process;

    impl Process {
        /// # Errors
        /// If it is one of several.
        pub(in crate::cli) fn join(_shares: bool) -> Result<Self> {
            match started() {
                0 | 1 => Ok(Self),
                many => Err(PeftError::unsupported(
                    format!("one of {many} processes"),
                    "this program was built without MPI: build it with `--features mpi` (it needs OpenMPI and libclang, \
                     on Debian libopenmpi-dev, openmpi-bin and libclang-dev), or start one process",
                )),
            }
        }

        pub(in crate::cli) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
            work()
        }

        pub(in crate::cli) fn is_first(&self) -> bool {
            true
        }

        pub(in crate::cli) fn name(&self) -> Option<String> {
            None
        }

        pub(in crate::cli) fn fail(self) {}
    }
}

#[cfg(feature = "mpi")]
pub(super) use with::Process;

#[cfg(feature = "mpi")]
mod with {
    use std::rc::Rc;

    use peft_tasks::parallel::group::{self, ProcessGroup};

    use super::{PeftError, Result, started};
    use crate::mpi::Mpi;

    /// One of the processes that a launcher has started, or the only one.
    pub(in crate::cli) struct Process(Option<Rc<Mpi>>);

    impl Process {
        /// # Errors
        /// If the command cannot share its work (`shares`), or MPI does not start.
        pub(in crate::cli) fn join(shares: bool) -> Result<Self> {
            match started() {
                0 | 1 => Ok(Self(None)),
                many if !shares => Err(PeftError::unsupported(
                    format!("this command in {many} processes"),
                    "only `train` and `eval` share their work: start it without mpirun or srun",
                )),
                _ => Ok(Self(Some(Rc::new(Mpi::start()?)))),
            }
        }

        pub(in crate::cli) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
            match &self.0 {
                Some(group) => group::within(group.clone(), work),
                None => work(),
            }
        }

        pub(in crate::cli) fn is_first(&self) -> bool {
            self.0.as_ref().is_none_or(|it| it.rank() == 0)
        }

        /// What messages of this process begin with.
        pub(in crate::cli) fn name(&self) -> Option<String> {
            self.0.as_ref().map(|it| it.name())
        }

        /// Ends the processes of the whole run, which would wait for this one.
        pub(in crate::cli) fn fail(self) {
            if let Some(group) = self.0 {
                group.abort();
            }
        }
    }
}

#[cfg(all(test, not(feature = "mpi")))]
mod tests {
    use super::*;

    #[test]
    fn one_process_needs_nothing() {
        assert!(started() <= 1, "the tests run in one process");
        assert!(Process::join(true).unwrap().is_first());
    }
}
