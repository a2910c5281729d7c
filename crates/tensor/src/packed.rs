//! Elements smaller than a byte: packed low bits first, the last byte filled with zeros.

use crate::{Buffer, DType, Tensor};

impl Tensor {
    /// One code per element, in the low bits, of a tensor whose elements are at most a byte wide;
    /// `None` for wider ones and strings.
    pub fn codes(&self) -> Option<Vec<u8>> {
        let (bits, count) = (self.dtype().bits(), self.element_count());
        match bits {
            8 => Some(self.bytes().to_vec()),
            2 | 4 | 6 => {
                let (mask, bytes) = ((1_u16 << bits) - 1, self.bytes());
                let code = |i: usize| {
                    let (byte, shift) = (i * bits / 8, i * bits % 8);
                    let next = bytes.get(byte + 1).copied().unwrap_or(0);
                    (u16::from_le_bytes([bytes[byte], next]) >> shift & mask) as u8
                };
                Some((0..count).map(code).collect())
            }
            _ => None,
        }
    }

    /// A tensor of elements at most a byte wide, from the low bits of one code per element.
    ///
    /// # Panics
    /// When the count of codes is not that of `shape`, or `dtype` is wider than a byte.
    pub fn from_codes(dtype: DType, shape: &[usize], codes: &[u8]) -> Self {
        let bits = dtype.bits();
        assert!(matches!(bits, 2 | 4 | 6 | 8), "{dtype} has no codes of a byte");
        assert_eq!(codes.len(), shape.iter().product::<usize>(), "one code per element");
        if bits == 8 {
            return Self::from_buffer(dtype, shape, Buffer::from_bytes(codes));
        }
        let mask = (1_u16 << bits) - 1;
        // One byte more, which the high bits of the last code may reach for.
        let mut bytes = vec![0_u8; (codes.len() * bits).div_ceil(8) + 1];
        for (i, &code) in codes.iter().enumerate() {
            let (byte, shift) = (i * bits / 8, i * bits % 8);
            let [low, high] = ((u16::from(code) & mask) << shift).to_le_bytes();
            bytes[byte] |= low;
            bytes[byte + 1] |= high;
        }
        bytes.pop();
        Self::from_buffer(dtype, shape, Buffer::from_bytes(&bytes))
    }
}

/// The number of a two's complement code of `bits` bits.
pub(crate) fn sign_extended(code: u8, bits: usize) -> i64 {
    let unused = 8 - bits;
    i64::from(((code << unused) as i8) >> unused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_packed_low_bits_first() {
        let four = Tensor::from_codes(DType::U4, &[3], &[1, 2, 15]);
        assert_eq!(four.bytes(), [0x21, 0x0f]);
        assert_eq!(four.codes().unwrap(), [1, 2, 15]);
        let two = Tensor::from_codes(DType::I2, &[5], &[3, 0, 1, 2, 3]);
        assert_eq!(two.bytes(), [0b1001_0011, 0b11]);
        assert_eq!(two.codes().unwrap(), [3, 0, 1, 2, 3]);
        let six = Tensor::from_codes(DType::F6E2M3, &[5], &[63, 0, 21, 42, 1]);
        assert_eq!(six.size_bytes(), 4);
        assert_eq!(six.codes().unwrap(), [63, 0, 21, 42, 1]);
    }

    #[test]
    fn the_highest_bit_is_the_sign() {
        assert_eq!([0, 1, 2, 3].map(|code| sign_extended(code, 2)), [0, 1, -2, -1]);
        assert_eq!([7, 8, 15].map(|code| sign_extended(code, 4)), [7, -8, -1]);
    }
}
