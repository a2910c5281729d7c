//! What the instruction of the tile can do: a loop of nothing else.

use std::hint::black_box;
use std::time::Instant;

use super::vector::Sums;

/// Sums that do not wait for each other: more than any CPU has under way at once.
const CHAINS: usize = 12;
const STEPS: usize = 200_000;
/// Vectors of right sides that the steps go through: they stay in the L1 cache. Of one that stays in
/// a register, what does not depend on the sums would be computed once.
const RIGHTS: usize = 64;

/// Operations (two per product) a second of one thread, with operands in the L1 cache: the best of
/// twenty runs.
///
/// # Safety
/// Needs the instruction set of `T`.
#[inline(always)]
pub(super) unsafe fn operations_per_second<T: Sums>() -> f64 {
    let bytes = black_box([[1_i8; 64]; RIGHTS + CHAINS]);
    let zeros = [0_i32; 16];
    let mut best = f64::INFINITY;
    // SAFETY: as the caller's; a vector holds at most 16 sums and 64 bytes.
    unsafe {
        let left = T::left(black_box(0x0102_0304));
        for _ in 0..20 {
            // Sums that the compiler knew to be equal would become one.
            let mut sums: [T; CHAINS] =
                std::array::from_fn(|_| T::load(black_box(&zeros).as_ptr()));
            let start = Instant::now();
            for step in 0..STEPS {
                let rights = bytes.as_ptr().add(step % RIGHTS);
                for (chain, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.dot(left, T::right(rights.add(chain).cast()));
                }
            }
            best = best.min(start.elapsed().as_secs_f64());
            // A sum that nothing reads would not be computed.
            let mut out = [[0_i32; 16]; CHAINS];
            sums.iter().zip(&mut out).for_each(|(sum, out)| sum.store(out.as_mut_ptr()));
            black_box(out);
        }
    }
    (STEPS * CHAINS * T::LANES * 8) as f64 / best
}
