//! Processes that train together: what a run asks of them, and those of one program.
//!
//! As with torch's default process group, whoever is inside [`within`] is one of the group: the trainer and evaluations
//! share their work with the others, and nothing else needs to know. Rank 0 writes, and the others compute.
//!
//! What crosses between processes is what [`ProcessGroup`] names. [`run_local`] has such a group of threads; the `peft` command
//! has one over MPI.

use std::cell::RefCell;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use peft_core::sharding::{Kept, Peers, ShardedBase, Wanted};
use peft_core::{PeftError, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What processes that train together say to each other. Each of them must make the same calls in the same order.
///
/// Names are those of `torch.distributed`.
pub trait ProcessGroup {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world_size(&self) -> usize;

    /// Adds up what all processes have at each place, and leaves the sums in all of them, equal bit for bit.
    ///
    /// # Errors
    /// If another process is gone.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()>;

    /// The bytes of every process, by rank.
    ///
    /// # Errors
    /// If another process is gone.
    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>>;

    /// The bytes that rank 0 gives; what the others give is not looked at.
    ///
    /// # Errors
    /// If another process is gone.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Lets the others read what this process keeps of a [base in pieces](peft_core::sharding), as long as the group lives,
    /// and gives what reads theirs.
    ///
    /// # Errors
    /// If this group cannot do that, or another process is gone.
    fn share(&self, kept: Arc<Kept>) -> Result<Box<dyn Peers>> {
        let _ = kept;
        Err(PeftError::unsupported("a base in pieces", "this kind of process group does not read other processes"))
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn ProcessGroup>>> = const { RefCell::new(None) };
}

/// Runs `work` as one of the processes of a group.
pub fn within<T>(group: Rc<dyn ProcessGroup>, work: impl FnOnce() -> T) -> T {
    struct Before(Option<Rc<dyn ProcessGroup>>);
    impl Drop for Before {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let _before = Before(CURRENT.replace(Some(group)));
    work()
}

/// The group that this thread works in, if it has more than one process.
pub fn current() -> Option<Rc<dyn ProcessGroup>> {
    CURRENT.with_borrow(Clone::clone).filter(|it| it.world_size() > 1)
}

/// A base of which the processes of this group keep a part each, for
/// [`Placement::with_shards`](peft_core::files::checkpoint::Placement::with_shards). A process that is alone keeps all of it,
/// as ever.
///
/// # Errors
/// If the group cannot do that.
pub fn sharded_base() -> Result<Option<ShardedBase>> {
    current().map(|group| ShardedBase::new(|kept| group.share(kept))).transpose()
}

/// Whether this process writes files and tells how a run goes: rank 0 does, and whoever is alone.
pub fn is_first() -> bool {
    current().is_none_or(|it| it.rank() == 0)
}

/// What `work` gives on rank 0. The others do not do it; where it fails, all of them do.
///
/// # Errors
/// Those of `work`.
pub fn on_first<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(group) = current() else { return work() };
    if group.rank() > 0 {
        let outcome: std::result::Result<T, String> = decoded(&group.broadcast(Vec::new())?)?;
        return outcome.map_err(|reason| PeftError::Invalid(format!("rank 0 cannot go on: {reason}")));
    }
    let outcome = work();
    group.broadcast(encoded(&outcome.as_ref().map_err(ToString::to_string))?)?;
    outcome
}

/// What every process gives, by rank.
pub(crate) fn gathered<T: Serialize + DeserializeOwned>(group: &dyn ProcessGroup, own: &T) -> Result<Vec<T>> {
    group.all_gather(encoded(own)?)?.iter().map(|it| decoded(it)).collect()
}

fn encoded<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| PeftError::Invalid(error.to_string()))
}

fn decoded<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| PeftError::Invalid(format!("another process sent what is not understood: {error}")))
}

/// A group of `world_size` threads of this program, one member each.
fn local(world_size: usize) -> Vec<Local> {
    let meeting =
        Arc::new(Meeting { state: Mutex::default(), kept: Mutex::default(), changed: Condvar::new(), world_size });
    (0..world_size).map(|rank| Local { rank, meeting: meeting.clone() }).collect()
}

/// What `work` gives in each of `world_size` threads that form a group, by rank.
pub fn run_local<T: Send>(world_size: usize, work: impl Fn(Rc<dyn ProcessGroup>) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |member: Local| {
            scope.spawn(move || {
                let group: Rc<dyn ProcessGroup> = Rc::new(member);
                within(group.clone(), || work(group.clone()))
            })
        };
        let threads: Vec<_> = local(world_size).into_iter().map(start).collect();
        let outcome = |it: std::thread::ScopedJoinHandle<'_, T>| it.join().unwrap_or_else(|it| resume_unwind(it));
        threads.into_iter().map(outcome).collect()
    })
}

/// Where threads lay down what they have until all are there.
struct Meeting {
    state: Mutex<Table>,
    /// What everyone keeps of bases in pieces: one row for each of those.
    kept: Mutex<Vec<Vec<Option<Arc<Kept>>>>>,
    changed: Condvar,
    world_size: usize,
}

#[derive(Default)]
struct Table {
    /// What was laid down so far, by rank.
    given: Vec<Option<Vec<u8>>>,
    /// What all of them gave, and how many have yet to take it.
    whole: Option<(Arc<Vec<Vec<u8>>>, usize)>,
    /// A member ended: nobody waits for it.
    left: Option<usize>,
}

/// One of the threads of a group.
struct Local {
    rank: usize,
    meeting: Arc<Meeting>,
}

/// Reads what other threads keep: it is in the memory of the same program.
struct LocalPeers {
    rank: usize,
    meeting: Arc<Meeting>,
    kept: Vec<Arc<Kept>>,
}

impl Peers for LocalPeers {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.meeting.world_size
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        Ok(self.meeting.exchange(self.rank, bytes)?.to_vec())
    }

    fn read(&self, wanted: Vec<Wanted<'_>>) -> Result<()> {
        wanted.into_iter().try_for_each(|it| self.kept[it.rank].read(it.matrix, &it.ranges, it.into))
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.meeting.lock().left.get_or_insert(self.rank);
        self.meeting.changed.notify_all();
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, rank: usize, bytes: Vec<u8>) -> Result<Arc<Vec<Vec<u8>>>> {
        let mut table = self.lock();
        // The last exchange may not have been left by all.
        while table.whole.is_some() {
            table = self.wait(table);
        }
        table.given.resize(self.world_size, None);
        table.given[rank] = Some(bytes);
        if table.given.iter().all(Option::is_some) {
            let given = std::mem::take(&mut table.given).into_iter().flatten().collect();
            table.whole = Some((Arc::new(given), self.world_size));
            self.changed.notify_all();
        }
        loop {
            if let Some((whole, left)) = &mut table.whole {
                let whole = whole.clone();
                *left -= 1;
                if *left == 0 {
                    table.whole = None;
                    self.changed.notify_all();
                }
                return Ok(whole);
            }
            if let Some(gone) = table.left {
                return Err(PeftError::Invalid(format!("rank {gone} has ended")));
            }
            table = self.wait(table);
        }
    }

    fn wait<'a>(&self, table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        self.changed.wait(table).unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProcessGroup for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.meeting.world_size
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let bytes = values.iter().flat_map(|it| it.to_ne_bytes()).collect();
        let all = self.meeting.exchange(self.rank, bytes)?;
        values.fill(0.0);
        for given in all.iter() {
            for (sum, one) in values.iter_mut().zip(given.chunks_exact(4)) {
                *sum += f32::from_ne_bytes([one[0], one[1], one[2], one[3]]);
            }
        }
        Ok(())
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        Ok(self.meeting.exchange(self.rank, bytes)?.to_vec())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let own = if self.rank == 0 { bytes } else { Vec::new() };
        Ok(self.meeting.exchange(self.rank, own)?[0].clone())
    }

    fn share(&self, kept: Arc<Kept>) -> Result<Box<dyn Peers>> {
        let lock = || self.meeting.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let row = {
            let mut rows = lock();
            // All share as many bases, in the same order.
            let row = rows.iter().position(|it| it[self.rank].is_none()).unwrap_or(rows.len());
            if row == rows.len() {
                rows.push(vec![None; self.meeting.world_size]);
            }
            rows[row][self.rank] = Some(kept);
            row
        };
        self.meeting.exchange(self.rank, Vec::new())?;
        let kept = lock()[row].iter().flatten().cloned().collect();
        Ok(Box::new(LocalPeers { rank: self.rank, meeting: self.meeting.clone(), kept }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hear_what_all_say() {
        let heard = run_local(3, |group| {
            let rank = group.rank();
            let mut sums = Vec::new();
            for round in 0..50 {
                let mut values = [rank as f32, (round * rank) as f32];
                group.all_reduce(&mut values).unwrap();
                sums.push(values);
            }
            let first = on_first(|| Ok(group.rank() + 7)).unwrap();
            (sums, group.all_gather(vec![rank as u8; rank]).unwrap(), first)
        });
        for (sums, gathered, first) in heard {
            assert!(sums.iter().enumerate().all(|(round, it)| *it == [3.0, 3.0 * round as f32]));
            assert_eq!(gathered, [vec![], vec![1], vec![2, 2]]);
            assert_eq!(first, 7);
        }
    }

    #[test]
    fn nobody_waits_for_one_that_is_gone() {
        let outcomes = run_local(3, |group| match group.rank() {
            2 => Ok(()),
            _ => group.all_reduce(&mut [1.0]),
        });
        assert!(outcomes[2].is_ok());
        for outcome in &outcomes[..2] {
            assert!(outcome.as_ref().unwrap_err().to_string().contains("rank 2"), "{outcome:?}");
        }
        let outcomes = run_local(2, |_| on_first(|| Err::<(), _>(PeftError::Invalid("no room".into()))));
        assert!(outcomes.iter().all(|it| it.as_ref().unwrap_err().to_string().contains("no room")), "{outcomes:?}");
    }

    #[test]
    fn a_group_of_one_is_none() {
        assert!(run_local(1, |_| current().is_none())[0]);
        assert!(is_first() && current().is_none());
    }
}
