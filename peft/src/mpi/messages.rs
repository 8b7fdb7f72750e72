//! Messages that are longer than MPI counts.

use mpi::datatype::PartitionMut;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// Longest part of a message: MPI counts elements in 32 bits.
pub(super) const PART: usize = 1 << 28;

/// The bytes of every process, by rank.
pub(super) fn all_gather(world: &SimpleCommunicator, bytes: &[u8]) -> Vec<Vec<u8>> {
    let own = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    let mut sizes = vec![0_i64; world.size() as usize];
    world.all_gather_into(&own, &mut sizes[..]);
    let mut all: Vec<Vec<u8>> = sizes.iter().map(|it| Vec::with_capacity(*it as usize)).collect();
    // In rounds, for the sizes together may be more than MPI counts.
    let most = PART / sizes.len();
    let rounds = sizes.iter().map(|it| (*it as usize).div_ceil(most)).max().unwrap_or(0);
    for round in 0..rounds {
        let part = |size: usize| size.saturating_sub(round * most).min(most);
        let counts: Vec<i32> = sizes.iter().map(|it| part(*it as usize) as i32).collect();
        let places: Vec<i32> = counts.iter().scan(0, |at, it| Some(std::mem::replace(at, *at + it))).collect();
        let mut received = vec![0_u8; counts.iter().map(|it| *it as usize).sum()];
        let start = (round * most).min(bytes.len());
        let sent = &bytes[start..start + part(bytes.len())];
        let mut parts = PartitionMut::new(&mut received[..], counts.clone(), places.clone());
        world.all_gather_varcount_into(sent, &mut parts);
        for ((all, at), count) in all.iter_mut().zip(&places).zip(&counts) {
            all.extend_from_slice(&received[*at as usize..(at + count) as usize]);
        }
    }
    all
}
