//! Going through the items of an evaluation, batch by batch, alone or shared with the processes of a group.

use peft_core::{PeftError, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::parallel::group::{self, gathered};
use crate::tasks::interruption;

/// What one process found out.
#[derive(Serialize, Deserialize)]
enum Part<P> {
    Whole(Vec<P>),
    /// It was asked to end.
    Interrupted,
    /// Why it cannot go on.
    Failed(String),
}

/// What `measure` makes of every batch of `count` items, in their order. It is given the items of the batch, and those of the
/// batch that it will be given next.
///
/// In a [process group](crate::parallel::group) every process measures its share of the batches, and all of them get all.
///
/// # Errors
/// Those of `measure`, of any process; if the run is to end.
pub(crate) fn in_batches<P: Serialize + DeserializeOwned>(
    count: usize,
    batch_size: usize,
    measure: impl FnMut(&[usize], &[usize]) -> Result<P>,
) -> Result<Vec<P>> {
    let items: Vec<usize> = (0..count).collect();
    over_batches(&items.chunks(batch_size.max(1)).collect::<Vec<_>>(), measure)
}

/// The same for batches that somebody else has made.
///
/// # Errors
/// As [`in_batches`].
pub(crate) fn over_batches<P: Serialize + DeserializeOwned>(
    batches: &[&[usize]],
    mut measure: impl FnMut(&[usize], &[usize]) -> Result<P>,
) -> Result<Vec<P>> {
    let group = group::current();
    let (rank, world_size) = group.as_ref().map_or((0, 1), |it| (it.rank(), it.world_size()));
    let share = batches.iter().enumerate().skip(rank).step_by(world_size);
    let own: Result<Vec<P>> = share
        .map(|(at, batch)| {
            interruption::go_on()?;
            measure(batch, batches.get(at + world_size).copied().unwrap_or_default())
        })
        .collect();
    let Some(group) = group else { return own };
    let part = match own {
        Ok(parts) => Part::Whole(parts),
        Err(_) if interruption::ended() => Part::Interrupted,
        Err(error) => Part::Failed(error.to_string()),
    };
    let mut wholes = Vec::new();
    for (rank, part) in gathered(group.as_ref(), &part)?.into_iter().enumerate() {
        match part {
            Part::Whole(parts) => wholes.push(parts.into_iter()),
            Part::Interrupted => return Err(interruption::end()),
            Part::Failed(reason) => return Err(PeftError::Invalid(format!("rank {rank}: {reason}"))),
        }
    }
    Ok((0..batches.len()).filter_map(|at| wholes[at % world_size].next()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_together_in_order() {
        let alone = in_batches(7, 2, |items, next| Ok((items.to_vec(), next.first().copied()))).unwrap();
        assert_eq!(alone[1], (vec![2, 3], Some(4)));
        let found = group::run_local(3, |_| {
            let mut measured = 0;
            let found = in_batches(7, 2, |items, next| {
                measured += 1;
                Ok((items.to_vec(), next.first().copied()))
            });
            (measured, found.unwrap())
        });
        assert_eq!(found.iter().map(|it| it.0).collect::<Vec<_>>(), [2, 1, 1]);
        for (_, parts) in &found {
            assert_eq!(parts.iter().map(|it| it.0.clone()).collect::<Vec<_>>().concat(), [0, 1, 2, 3, 4, 5, 6]);
        }
        // The next batch of the first process is the fourth.
        assert_eq!(found[0].1[0].1, Some(6));
    }

    #[test]
    fn the_fault_of_one_ends_all() {
        let outcomes = group::run_local(2, |_| {
            in_batches(4, 1, |items, _| match items {
                [3] => Err(PeftError::Invalid("a bad row".into())),
                _ => Ok(0),
            })
        });
        assert!(outcomes.iter().all(|it| it.as_ref().unwrap_err().to_string() == "rank 1: a bad row"), "{outcomes:?}");
    }
}
