//! How many threads the work at hand has.
//!
//! A thread of a pool has that pool's. Handing a run to a pool of one thread costs more than a small
//! model takes: [`sequential`] runs it on the calling thread.

use std::cell::Cell;
use std::sync::LazyLock;

thread_local! {
    static IS_SEQUENTIAL: Cell<bool> = const { Cell::new(false) };
    static HANDED_OVER: Cell<bool> = const { Cell::new(false) };
}

/// One thread, for libraries that would take every thread of the process elsewhere.
static ONE: LazyLock<rayon::ThreadPool> = LazyLock::new(|| {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("a thread can be started")
});

/// Threads that work may be divided among.
pub(crate) fn count() -> usize {
    if IS_SEQUENTIAL.get() { 1 } else { rayon::current_num_threads() }
}

/// Runs `work` on this thread alone. Says as well whether a part was handed to another thread after
/// all, each at the price of a whole run: a pool of one thread then serves better.
pub fn sequential<T>(work: impl FnOnce() -> T) -> (T, bool) {
    /// Takes the mark back on every way out.
    struct Marked(bool);
    impl Drop for Marked {
        fn drop(&mut self) {
            IS_SEQUENTIAL.set(self.0);
        }
    }
    let _marked = Marked(IS_SEQUENTIAL.replace(true));
    HANDED_OVER.set(false);
    let result = work();
    (result, HANDED_OVER.get())
}

/// Runs `work`, which divides itself among the threads of its pool, with as many as there are for it.
pub(crate) fn with_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if !IS_SEQUENTIAL.get() {
        return work();
    }
    HANDED_OVER.set(true);
    ONE.install(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_has_one_thread_and_tells_what_left_it() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            assert_eq!(count(), 3);
            assert_eq!(sequential(count), (1, false));
            let here = std::thread::current().id();
            let (there, left) = sequential(|| with_pool(|| std::thread::current().id()));
            assert!(left && there != here);
            assert_eq!(with_pool(|| std::thread::current().id()), here);
            assert_eq!(sequential(|| sequential(count).0 + count()), (2, false));
            assert_eq!(count(), 3);
        });
    }

    #[test]
    fn a_panic_ends_a_sequence() {
        let caught = std::panic::catch_unwind(|| sequential(|| panic!("as it may")).0);
        assert!(caught.is_err());
        assert!(!IS_SEQUENTIAL.get());
    }
}
