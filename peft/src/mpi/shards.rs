//! A base in pieces over MPI: a thread of every process answers those who ask for what it keeps.
//!
//! An ask is one message and its answer another, so nobody has to take part who computes, and no order must be kept. A
//! process that asks takes answers as they come, from whomever; a thread that answers waits for such a process only. So no
//! wait can be for itself.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mpi::datatype::Equivalence;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};
use peft_core::sharding::{Kept, Peers, Wanted};
use peft_core::{PeftError, Result};

use super::messages::{PART, all_gather};

/// Tag of the messages that ask for bytes.
const ASK: i32 = 19;
/// Tag of the bytes.
const ANSWER: i32 = 20;
/// How often a process looks for messages while there are some.
const LOOK: Duration = Duration::from_micros(20);
/// How often it looks when nobody has asked for a while.
const DOZE: Duration = Duration::from_micros(500);
/// That while.
const AWAKE: Duration = Duration::from_millis(50);

/// What this process keeps of every base, in the order in which they were shared.
type Bases = Arc<Mutex<Vec<Arc<Kept>>>>;

/// The thread that answers.
#[derive(Default)]
pub(super) struct Server {
    bases: Bases,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers for one base more, and gives its number.
    pub(super) fn add(&mut self, kept: Arc<Kept>) -> usize {
        let number = {
            let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
            bases.push(kept);
            bases.len() - 1
        };
        if self.thread.is_none() {
            let (bases, is_over) = (self.bases.clone(), self.is_over.clone());
            self.thread = Some(thread::spawn(move || serve(&bases, &is_over)));
        }
        number
    }

    /// Whether anything is shared.
    pub(super) fn is_running(&self) -> bool {
        self.thread.is_some()
    }

    /// Nobody will ask any more.
    pub(super) fn end(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(bases: &Mutex<Vec<Arc<Kept>>>, is_over: &AtomicBool) {
    let world = SimpleCommunicator::world();
    let mut last = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        let Some(status) = world.any_process().immediate_probe_with_tag(ASK) else {
            thread::sleep(if last.elapsed() < AWAKE { LOOK } else { DOZE });
            continue;
        };
        let other = world.process_at_rank(status.source_rank());
        let mut ask = vec![0_u64; status.count(u64::equivalent_datatype()) as usize];
        other.receive_into_with_tag(&mut ask[..], ASK);
        // What cannot be answered is answered with nothing, and the other one says so.
        let part = match &ask[..] {
            [base, matrix, ..] => {
                let kept = bases.lock().unwrap_or_else(PoisonError::into_inner).get(*base as usize).cloned();
                kept.and_then(|it| it.part(*matrix as usize).ok())
            }
            _ => None,
        };
        let part = part.as_deref().unwrap_or_default();
        let runs: Vec<&[u8]> = ask
            .get(2..)
            .unwrap_or_default()
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[start, end]| part.get(*start as usize..*end as usize).unwrap_or_default())
            .collect();
        match runs[..] {
            [run] => other.send_with_tag(run, ANSWER),
            _ => other.send_with_tag(&runs.concat()[..], ANSWER),
        }
        last = Instant::now();
    }
}

/// Reads what other processes keep.
pub(super) struct MpiPeers {
    base: usize,
    /// One thread asks at a time, so that answers are its own.
    asks: Mutex<()>,
}

impl MpiPeers {
    pub(super) fn new(base: usize) -> Self {
        Self { base, asks: Mutex::default() }
    }
}

/// An ask, and where its answer goes.
struct Ask<'a> {
    message: Vec<u64>,
    into: &'a mut [u8],
}

impl Peers for MpiPeers {
    fn rank(&self) -> usize {
        SimpleCommunicator::world().rank() as usize
    }

    fn world_size(&self) -> usize {
        SimpleCommunicator::world().size() as usize
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        Ok(all_gather(&SimpleCommunicator::world(), &bytes))
    }

    fn read(&self, wanted: Vec<Wanted<'_>>) -> Result<()> {
        let _asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting: Vec<(i32, std::vec::IntoIter<Ask<'_>>)> =
            wanted.into_iter().map(|it| (it.rank as i32, parts(self.base, it).into_iter())).collect();
        loop {
            let round: HashMap<i32, Ask<'_>> =
                waiting.iter_mut().filter_map(|(rank, asks)| Some((*rank, asks.next()?))).collect();
            if round.is_empty() {
                return Ok(());
            }
            ask(round)?;
        }
    }
}

/// The asks of what is wanted of a process, none of which is longer than a message may be.
fn parts<'a>(base: usize, wanted: Wanted<'a>) -> Vec<Ask<'a>> {
    let mut asks = Vec::new();
    let mut rest = wanted.into;
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut length = 0;
    let mut close = |runs: &mut Vec<Range<usize>>, length: &mut usize| {
        let (into, after) = std::mem::take(&mut rest).split_at_mut(std::mem::take(length));
        rest = after;
        let ends = std::mem::take(runs).into_iter().flat_map(|it| [it.start as u64, it.end as u64]);
        asks.push(Ask { message: [base as u64, wanted.matrix as u64].into_iter().chain(ends).collect(), into });
    };
    for mut range in wanted.ranges {
        while !range.is_empty() {
            let end = range.end.min(range.start + PART - length);
            length += end - range.start;
            runs.push(range.start..end);
            range.start = end;
            if length == PART {
                close(&mut runs, &mut length);
            }
        }
    }
    if length > 0 {
        close(&mut runs, &mut length);
    }
    asks
}

/// Sends one ask to each of some processes, and takes their answers as they come.
fn ask(mut round: HashMap<i32, Ask<'_>>) -> Result<()> {
    let world = SimpleCommunicator::world();
    let messages: Vec<(i32, Vec<u64>)> =
        round.iter_mut().map(|(rank, ask)| (*rank, std::mem::take(&mut ask.message))).collect();
    mpi::request::scope(|scope| {
        // An ask may be longer than what is sent at once: answers to others must not wait for it.
        let sent: Vec<_> = messages
            .iter()
            .map(|(rank, it)| world.process_at_rank(*rank).immediate_send_with_tag(scope, &it[..], ASK))
            .collect();
        let mut outcome = Ok(());
        while !round.is_empty() {
            let Some(status) = world.any_process().immediate_probe_with_tag(ANSWER) else {
                thread::sleep(LOOK);
                continue;
            };
            let rank = status.source_rank();
            let length = status.count(u8::equivalent_datatype()) as usize;
            let other = world.process_at_rank(rank);
            match round.remove(&rank) {
                Some(ask) if ask.into.len() == length => {
                    other.receive_into_with_tag(ask.into, ANSWER);
                }
                _ => {
                    other.receive_into_with_tag(&mut vec![0_u8; length][..], ANSWER);
                    outcome = Err(PeftError::Invalid(format!("rank {rank} does not keep what it was asked for")));
                }
            }
        }
        sent.into_iter().for_each(|it| _ = it.wait());
        outcome
    })
}
