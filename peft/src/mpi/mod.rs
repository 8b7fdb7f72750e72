//! A process group over MPI.
//!
//! Gradients are summed, and results gathered, by MPI's own collective operations. Beside them every process says now and
//! then that it lives, so that the run ends when one of them stands still: MPI itself would wait for ever.

mod messages;
mod shards;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};
use peft_core::sharding::{Kept, Peers};
use peft_core::{PeftError, Result};
use peft_tasks::parallel::group::ProcessGroup;

use self::messages::{PART, all_gather};
use self::shards::{MpiPeers, Server};

/// Tag of the messages that say that a process lives. Collective operations do not meet them.
const LIVES: i32 = 17;
/// Tag of the messages that say that a process is done.
const DONE: i32 = 18;
/// How often a process says so.
const BEAT: Duration = Duration::from_secs(2);
/// How long a process may say nothing.
const PATIENCE: Duration = Duration::from_secs(20);

/// The processes that `mpirun` or `srun` has started.
#[allow(missing_debug_implementations)] // MPI's own have none
pub struct Mpi {
    world: SimpleCommunicator,
    done: Arc<AtomicBool>,
    watch: Option<JoinHandle<()>>,
    /// Answers for what this process keeps of a base.
    server: RefCell<Server>,
    // The last to be dropped: it ends MPI.
    _universe: Universe,
}

impl Mpi {
    /// Starts MPI in this process, which a launcher has started. Once in a process.
    ///
    /// # Errors
    /// If MPI was started before, or does not let several threads call it.
    pub fn start() -> Result<Self> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Multiple) else {
            return Err(PeftError::Invalid("MPI was started in this process before".to_owned()));
        };
        if threading != Threading::Multiple {
            let reason = "it lets one thread alone call it, and another one watches the processes: take a build of MPI \
                          with MPI_THREAD_MULTIPLE";
            return Err(PeftError::unsupported("this MPI", reason));
        }
        let world = universe.world();
        let done = Arc::new(AtomicBool::new(false));
        let watch = (world.size() > 1).then(|| {
            let done = done.clone();
            thread::spawn(move || watch(&done))
        });
        Ok(Self { world, done, watch, server: RefCell::default(), _universe: universe })
    }

    /// What messages of this process begin with: `rank 1 on node7`.
    pub fn name(&self) -> String {
        let host = mpi::environment::processor_name().unwrap_or_default();
        format!("rank {} on {host}", self.world.rank())
    }

    /// Ends all processes.
    pub fn abort(&self) -> ! {
        self.world.abort(1)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let server = self.server.get_mut();
        // Others may still read what this process keeps.
        if server.is_running() && !thread::panicking() {
            self.world.barrier();
        }
        server.end();
        self.done.store(true, Ordering::Relaxed);
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }
}

/// Says that this process lives until it is `done`, and ends all if another one is not heard of. Rank 0 hears all others, and
/// they hear rank 0.
fn watch(done: &AtomicBool) {
    let world = SimpleCommunicator::world();
    let others: Vec<i32> = if world.rank() == 0 { (1..world.size()).collect() } else { vec![0] };
    let mut heard = vec![Instant::now(); others.len()];
    let mut ended = vec![false; others.len()];
    let mut told: Option<Instant> = None;
    let mut awake = Instant::now();
    let mut said_done = false;
    while !(said_done && ended.iter().all(|it| *it)) {
        if done.load(Ordering::Relaxed) && !said_done {
            others.iter().for_each(|it| world.process_at_rank(*it).send_with_tag(&[0_u8], DONE));
            said_done = true;
        } else if !said_done && told.is_none_or(|it| it.elapsed() >= BEAT) {
            others.iter().for_each(|it| world.process_at_rank(*it).send_with_tag(&[0_u8], LIVES));
            told = Some(Instant::now());
        }
        // A process that stood still itself has not listened.
        if awake.elapsed() > BEAT {
            heard.fill(Instant::now());
        }
        awake = Instant::now();
        for (at, rank) in others.iter().enumerate() {
            let other = world.process_at_rank(*rank);
            for tag in [LIVES, DONE] {
                while other.immediate_probe_with_tag(tag).is_some() {
                    other.receive_into_with_tag(&mut [0_u8], tag);
                    heard[at] = Instant::now();
                    ended[at] |= tag == DONE;
                }
            }
            if !ended[at] && heard[at].elapsed() > PATIENCE {
                let seconds = PATIENCE.as_secs();
                #[allow(clippy::print_stderr)] // the last word of a process: nobody is left to hand an error to
                {
                    eprintln!(
                        "error: rank {rank} was not heard of for {seconds} s, so the run ends: look at its machine"
                    );
                }
                world.abort(1);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl ProcessGroup for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world_size(&self) -> usize {
        self.world.size() as usize
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        for part in values.chunks_mut(PART) {
            let own = part.to_vec();
            self.world.all_reduce_into(&own[..], part, SystemOperation::sum());
        }
        Ok(())
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        Ok(all_gather(&self.world, &bytes))
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let first = self.world.process_at_rank(0);
        let mut size = bytes.len() as u64;
        first.broadcast_into(&mut size);
        bytes.resize(size as usize, 0);
        bytes.chunks_mut(PART).for_each(|it| first.broadcast_into(it));
        Ok(bytes)
    }
    fn share(&self, kept: Arc<Kept>) -> Result<Box<dyn Peers>> {
        let base = self.server.borrow_mut().add(kept);
        Ok(Box::new(MpiPeers::new(base)))
    }
}
