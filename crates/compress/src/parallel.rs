//! Work on items that do not depend on each other, spread over threads.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What `of` makes of each item, in the order of the items. Each thread takes the next.
pub(crate) fn each_in_order<T: Sync, R: Send>(
    items: &[T],
    threads: NonZeroUsize,
    of: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work = || {
        let taken = std::iter::from_fn(|| {
            let index = next.fetch_add(1, Ordering::Relaxed);
            items.get(index).map(|item| (index, of(item)))
        });
        taken.collect::<Vec<_>>()
    };
    let mut all = std::thread::scope(|scope| {
        let threads = threads.get().min(items.len());
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            all.extend(other.join().expect("the work does not panic"));
        }
        all
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, result)| result).collect()
}
