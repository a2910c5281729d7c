//! Sixteen f32 side by side: one register of AVX-512, two of AVX2, an array elsewhere.

/// Operations on sixteen values at once. Every lane is computed alike on every CPU, except that
/// `fma` rounds once where the CPU has the instruction.
///
/// # Safety
/// Calling any function needs the instruction set that the type stands for; pointers must be
/// readable (writable) for 16 values, or for the `count` that is given.
pub(super) trait Lanes: Copy {
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The first `count` ≤ 16 values, zeros behind.
    unsafe fn load_part(from: *const f32, count: usize) -> Self;
    unsafe fn store_part(self, to: *mut f32, count: usize);
    /// self + a·b
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// The lesser and the greater; of a NaN in `self`, the NaN.
    unsafe fn min(self, bound: Self) -> Self;
    unsafe fn max(self, bound: Self) -> Self;
    /// Self where low < z < high, 0 elsewhere.
    unsafe fn within(self, z: Self, low: Self, high: Self) -> Self;
}

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 16])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is readable for 16 values.
        Self(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is writable for 16 values.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; 16];
        // SAFETY: the caller's pointer is readable for `count` ≤ 16 values.
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count) };
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: the caller's pointer is writable for `count` ≤ 16 values.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, count) };
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        let fma = super::math::fma::<{ cfg!(target_arch = "aarch64") }>;
        Self(std::array::from_fn(|i| fma(a.0[i], b.0[i], self.0[i])))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn min(self, bound: Self) -> Self {
        self.each(bound, |a, b| if b < a { b } else { a })
    }

    #[inline(always)]
    unsafe fn max(self, bound: Self) -> Self {
        self.each(bound, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    unsafe fn within(self, z: Self, low: Self, high: Self) -> Self {
        let is_within = |i: usize| z.0[i] > low.0[i] && z.0[i] < high.0[i];
        Self(std::array::from_fn(|i| if is_within(i) { self.0[i] } else { 0.0 }))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, __mmask16, _CMP_GT_OQ, _CMP_LT_OQ, _mm256_add_ps, _mm256_and_ps,
        _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps,
        _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_cmp_ps_mask,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_cmp_ps_mask, _mm512_mask_storeu_ps,
        _mm512_maskz_loadu_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
        _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::Lanes;

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    #[inline(always)]
    fn mask(count: usize) -> __mmask16 {
        ((1_u32 << count) - 1) as __mmask16
    }

    // SAFETY, for every block below: the caller vouches for AVX-512F and for the pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx512 {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            Self(unsafe { _mm512_maskz_loadu_ps(mask(count), from) })
        }

        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, count: usize) {
            unsafe { _mm512_mask_storeu_ps(to, mask(count), self.0) }
        }

        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        // The instructions give their second operand where one is NaN.
        #[inline(always)]
        unsafe fn min(self, bound: Self) -> Self {
            Self(unsafe { _mm512_min_ps(bound.0, self.0) })
        }

        #[inline(always)]
        unsafe fn max(self, bound: Self) -> Self {
            Self(unsafe { _mm512_max_ps(bound.0, self.0) })
        }

        #[inline(always)]
        unsafe fn within(self, z: Self, low: Self, high: Self) -> Self {
            unsafe {
                let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(z.0, low.0);
                let both = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(above, z.0, high.0);
                Self(_mm512_maskz_mov_ps(both, self.0))
            }
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    // SAFETY, for every block below: the caller vouches for AVX2 and FMA, and for the pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            let lanes = unsafe { _mm256_set1_ps(value) };
            Self(lanes, lanes)
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            let mut lanes = [0.0_f32; 16];
            unsafe {
                std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
                Self::load(lanes.as_ptr())
            }
        }

        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, count: usize) {
            let mut lanes = [0.0_f32; 16];
            unsafe {
                self.store(lanes.as_mut_ptr());
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
            }
        }

        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        }

        // The instructions give their second operand where one is NaN.
        #[inline(always)]
        unsafe fn min(self, bound: Self) -> Self {
            unsafe { Self(_mm256_min_ps(bound.0, self.0), _mm256_min_ps(bound.1, self.1)) }
        }

        #[inline(always)]
        unsafe fn max(self, bound: Self) -> Self {
            unsafe { Self(_mm256_max_ps(bound.0, self.0), _mm256_max_ps(bound.1, self.1)) }
        }

        #[inline(always)]
        unsafe fn within(self, z: Self, low: Self, high: Self) -> Self {
            unsafe {
                let low_0 = _mm256_cmp_ps::<_CMP_GT_OQ>(z.0, low.0);
                let low_1 = _mm256_cmp_ps::<_CMP_GT_OQ>(z.1, low.1);
                let both_0 = _mm256_and_ps(low_0, _mm256_cmp_ps::<_CMP_LT_OQ>(z.0, high.0));
                let both_1 = _mm256_and_ps(low_1, _mm256_cmp_ps::<_CMP_LT_OQ>(z.1, high.1));
                Self(_mm256_and_ps(self.0, both_0), _mm256_and_ps(self.1, both_1))
            }
        }
    }
}
