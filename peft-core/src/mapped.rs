//! Files of a base that are mapped into memory and larger than it: what is read next is asked for while this is computed.
//!
//! The order is learned ([`Order`]). The system reads the next few from the disk meanwhile, and lets go of what was used least
//! recently, which for an order that turns round is what is needed last.

// Only the backend `flex` reads numbers where they lie.
#![cfg_attr(not(feature = "flex"), allow(dead_code))]

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::Mmap;

use crate::memory::free;
use crate::order::Order;

/// Bytes that are asked for ahead of time: a few layers of a large model.
const AHEAD: usize = 256 << 20;
/// Matrices that are asked for ahead of time.
const MATRICES: usize = 8;

/// Whether the files are too large for the memory that there is.
static IS_USED: AtomicBool = AtomicBool::new(false);
static FILES: Mutex<Files> = Mutex::new(Files(Vec::new()));

/// Mapped files whose numbers are used where they lie: the shards of a base, or of several.
struct Files(Vec<Streamed>);

impl Files {
    /// Takes one more, and says whether they take more than half of the memory that is free: all together, for the shards of a
    /// base are small.
    fn add(&mut self, map: &Arc<Mmap>, free: Option<u64>) -> bool {
        self.0.retain(|it| it.map.strong_count() > 0);
        let start = map.as_ptr().addr();
        let place = start..start + map.len();
        self.0.push(Streamed { map: Arc::downgrade(map), place, order: ReadingOrder::default() });
        let together: u64 = self.0.iter().map(|it| it.place.len() as u64).sum();
        free.is_some_and(|free| together > free / 2)
    }
}

/// A mapped file, while somebody reads it.
struct Streamed {
    map: Weak<Mmap>,
    /// Addresses.
    place: Range<usize>,
    order: ReadingOrder,
}

/// Looks after a mapped file whose numbers are used where they lie, if such files take more than half of the memory that is
/// free. Once for each map: it asks the system.
pub(crate) fn look_after(map: &Arc<Mmap>) {
    let is_used = FILES.lock().unwrap_or_else(PoisonError::into_inner).add(map, free());
    IS_USED.store(is_used, Ordering::Relaxed);
}

/// Says that numbers are about to be read. What is in no such file is passed over.
pub(crate) fn will_read(bytes: &[u8]) {
    if !IS_USED.load(Ordering::Relaxed) {
        return;
    }
    let start = bytes.as_ptr().addr();
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(file) = files.0.iter_mut().find(|it| it.place.contains(&start)) else { return };
    let Some(map) = file.map.upgrade() else { return };
    let at = start - file.place.start;
    for next in file.order.read(at..at + bytes.len()) {
        // It is advice: where it is not taken, the numbers are read when they are needed.
        #[cfg(unix)]
        let _ = map.advise_range(memmap2::Advice::WillNeed, next.start, next.len());
        #[cfg(not(unix))]
        let _ = (&map, next);
    }
}

/// The order in which parts of a file are read.
#[derive(Debug, Default)]
struct ReadingOrder {
    /// Where they begin, and how long they are.
    order: Order<[usize; 2]>,
    /// What was asked for lately.
    asked: VecDeque<usize>,
}

impl ReadingOrder {
    /// Notes that a part is read, and says which ones to ask for.
    fn read(&mut self, part: Range<usize>) -> Vec<Range<usize>> {
        self.order.used([part.start, part.len()]);
        let mut bytes = 0;
        let near = self.order.following().take(MATRICES).take_while(|[_, length]| {
            bytes += length;
            bytes <= AHEAD
        });
        let wanted = near.filter(|[start, _]| !self.asked.contains(start));
        let wanted: Vec<_> = wanted.map(|[start, length]| start..start + length).collect();
        self.asked.extend(wanted.iter().map(|it| it.start));
        while self.asked.len() > MATRICES {
            self.asked.pop_front();
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Forwards and back, twice: from the second time on, what comes next is asked for before it is read, and nothing else.
    #[test]
    fn the_order_is_learned_with_its_turns() {
        let part = |at: usize| at * 10..at * 10 + 10;
        let step: Vec<usize> = (0..20).chain((0..20).rev()).collect();
        let mut order = ReadingOrder::default();
        for at in &step {
            order.read(part(*at));
        }
        let mut asked = Vec::new();
        for (done, at) in step.iter().enumerate() {
            if done > 2 {
                assert!(asked.contains(&part(*at)), "{at} was not asked for before it was read");
            }
            asked.extend(order.read(part(*at)));
        }
        assert!(asked.iter().all(|it| it.end <= 200));
        // Each part is asked for once for every time that it is read.
        assert!(asked.len() <= step.len() + MATRICES, "{} were asked for", asked.len());
    }

    /// What lies in no file that is looked after is nobody's concern.
    #[test]
    fn other_memory_is_passed_over() {
        will_read(&[0; 64]);
    }

    /// Shards are looked after as the one file that they could be, while they are in use.
    #[test]
    fn files_count_together() {
        let shard = || {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&[1; 1000]).expect("room on the disk");
            #[allow(unsafe_code)]
            // SAFETY: nobody else has this file.
            Arc::new(unsafe { Mmap::map(&file) }.expect("a map"))
        };
        let (mut files, [first, second, third]) = (Files(Vec::new()), [shard(), shard(), shard()]);
        assert!(!files.add(&first, Some(3000)));
        assert!(files.add(&second, Some(3000)));
        drop([first, second]);
        assert!(!files.add(&third, Some(3000)));
        assert!(!files.add(&third, None));
    }

    #[test]
    fn no_more_is_asked_for_than_may_be() {
        let large = |at: usize| at * AHEAD..at * AHEAD + AHEAD / 2 - 1;
        let mut order = ReadingOrder::default();
        for at in (0..6).chain(0..1) {
            order.read(large(at));
        }
        assert_eq!(order.read(large(1)), [large(2), large(3)]);
        // One of the next two has been asked for.
        assert_eq!(order.read(large(2)), [large(4)]);
    }
}
