//! The sums of u8·i8 products as instructions compute them, in software.

/// A way in which CPUs sum u8·i8 products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// `vpdpbusd` (AVX512-VNNI, AVX-VNNI): four products to an i32, which wraps.
    Vnni,
    /// `vpmaddubsw` and `vpmaddwd` (AVX2): two products saturated to 16 bits, two of these sums to
    /// an i32.
    Avx2,
    /// `smull`, `smlal` and `sadalp` (NEON without dot products): levels less 128 in i8, two
    /// products to an i16, which wraps, two of these to an i32; 128·Σw is added at the end.
    Neon,
}

impl Isa {
    pub const ALL: [Self; 3] = [Self::Vnni, Self::Avx2, Self::Neon];

    /// Σ a·w over elements in the order of K, which is filled up with zeros.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn dot(self, a: &[u8], w: &[i8]) -> i32 {
        assert_eq!(a.len(), w.len(), "a product sums pairs");
        match self {
            Self::Vnni => blocks::<4>(a, w).fold(0, |sum, (a, w)| {
                let four: i32 = (0..4).map(|i| i32::from(a[i]) * i32::from(w[i])).sum();
                sum.wrapping_add(four)
            }),
            Self::Avx2 => blocks::<4>(a, w).fold(0, |sum, (a, w)| {
                let pair = |i: usize| {
                    let product = |i: usize| i32::from(a[i]) * i32::from(w[i]);
                    let saturated = product(i) + product(i + 1);
                    saturated.clamp(i32::from(i16::MIN), i32::from(i16::MAX))
                };
                sum.wrapping_add(pair(0) + pair(2))
            }),
            Self::Neon => {
                let centred = blocks::<16>(a, w).fold(0_i32, |sum, (a, w)| {
                    // The second eight products are added to the first eight.
                    let pair = |i: usize| {
                        let product = |i: usize| i16::from((a[i] ^ 0x80) as i8) * i16::from(w[i]);
                        i32::from(product(i).wrapping_add(product(i + 8)))
                    };
                    sum.wrapping_add((0..8).map(pair).sum())
                });
                let weights: i32 = w.iter().map(|&w| i32::from(w)).sum();
                centred.wrapping_add(128 * weights)
            }
        }
    }
}

/// Blocks of N elements, the last one filled up with zeros (level 0 and weight 0).
fn blocks<'a, const N: usize>(
    a: &'a [u8],
    w: &'a [i8],
) -> impl Iterator<Item = ([u8; N], [i8; N])> + 'a {
    a.chunks(N).zip(w.chunks(N)).map(|(a, w)| {
        let mut block = ([0; N], [0; N]);
        block.0[..a.len()].copy_from_slice(a);
        block.1[..w.len()].copy_from_slice(w);
        block
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(a: &[u8], w: &[i8]) -> i32 {
        a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum()
    }

    #[test]
    fn all_agree_where_no_pair_saturates_at_every_length() {
        let a: Vec<u8> = (0..100_u32).map(|i| (i * 97 % 256) as u8).collect();
        let w: Vec<i8> = (0..100_i32).map(|i| (i * 53 % 129 - 64) as i8).collect();
        for length in 0..100 {
            let (a, w) = (&a[..length], &w[..length]);
            for isa in Isa::ALL {
                assert_eq!(isa.dot(a, w), exact(a, w), "{isa:?} {length}");
            }
        }
    }

    #[test]
    fn neighbours_that_leave_16_bits_differ_on_avx2_alone() {
        let (a, w) = ([255, 255, 7], [127, 2, 1]);
        assert_eq!(Isa::Vnni.dot(&a, &w), 32_902);
        assert_eq!(Isa::Neon.dot(&a, &w), 32_902);
        assert_eq!(Isa::Avx2.dot(&a, &w), 32_774);
        // The same weights, none of them neighbours in K.
        let (a, w) = ([255, 7, 255], [127, 1, 2]);
        assert!(Isa::ALL.iter().all(|isa| isa.dot(&a, &w) == 32_902));
    }

    #[test]
    fn neon_is_exact_for_the_largest_weights() {
        for (a, w) in [([0_u8; 16], [127_i8; 16]), ([255; 16], [127; 16]), ([0; 16], [-127; 16])] {
            assert_eq!(Isa::Neon.dot(&a, &w), exact(&a, &w));
        }
    }
}
