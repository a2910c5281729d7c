//! K and V laid out for the products, once for each head of a call.

use super::{Path, Rows8};
use crate::kernels::vectorized;

use super::rows::sum_rows;

/// How many keys there are, and to how many they are padded.
pub(super) struct Packing {
    pub(super) path: Path,
    pub(super) keys: usize,
    pub(super) padded_keys: usize,
}

impl Packing {
    /// K as [depth / group, keys, group], of a depth that is padded.
    pub(super) fn keys(&self, packed: &mut [u8], key: Rows8, [size, padded]: [usize; 2]) {
        let columns = self.padded_keys;
        if self.path.is_bytes() {
            let packed: &mut [[u8; 4]] = bytemuck::cast_slice_mut(&mut packed[..padded * columns]);
            pack_key_bytes(packed, key.data, key.stride, self.keys, size, columns);
        } else {
            let packed = bytemuck::cast_slice_mut(&mut packed[..padded * columns * 2]);
            pack_key_pairs(packed, key.data, key.stride, self.keys, size, columns);
        }
    }

    /// -zq times the sum of each key.
    pub(super) fn key_starts(&self, starts: &mut [i32], key: Rows8, size: usize, query_zero: u8) {
        starts.fill(0);
        sum_rows(&mut starts[..self.keys], key.data, key.stride, size);
        for start in &mut starts[..self.keys] {
            *start = -i32::from(query_zero) * (*start - self.path.offset() * size as i32);
        }
    }

    /// V as [keys / group, columns, group], padded by zeros.
    pub(super) fn values(&self, packed: &mut [u8], value: Rows8, [size, columns]: [usize; 2]) {
        let row = |key: usize| {
            if key < self.keys { &value.data[key * value.stride..][..size] } else { &[] }
        };
        let count = self.padded_keys * columns;
        if self.path.is_bytes() {
            let packed: &mut [[u8; 4]] = bytemuck::cast_slice_mut(&mut packed[..count]);
            for (step, out) in packed.chunks_exact_mut(columns).enumerate() {
                pack_value_bytes(out, [0, 1, 2, 3].map(|i| row(4 * step + i)));
            }
        } else {
            let packed: &mut [[i16; 2]] = bytemuck::cast_slice_mut(&mut packed[..count * 2]);
            for (step, out) in packed.chunks_exact_mut(columns).enumerate() {
                pack_value_pairs(out, [0, 1].map(|i| row(2 * step + i)));
            }
        }
    }
}

vectorized! {
    fn pack_key_bytes<FMA>(
        packed: &mut [[u8; 4]],
        data: &[u8],
        stride: usize,
        rows: usize,
        size: usize,
        columns: usize,
    ) {
        for row in 0..columns {
            let from = if row < rows { &data[row * stride..][..size] } else { &[] };
            let (groups, rest) = from.as_chunks::<4>();
            for (step, &group) in groups.iter().enumerate() {
                let flipped = u32::from_ne_bytes(group) ^ 0x8080_8080;
                packed[step * columns + row] = flipped.to_ne_bytes();
            }
            for step in groups.len()..packed.len() / columns {
                let mut group = [0; 4];
                if step == groups.len() {
                    group[..rest.len()].copy_from_slice(rest);
                    group[..rest.len()].iter_mut().for_each(|level| *level ^= 128);
                }
                packed[step * columns + row] = group;
            }
        }
    }

    fn pack_key_pairs<FMA>(
        packed: &mut [[i16; 2]],
        data: &[u8],
        stride: usize,
        rows: usize,
        size: usize,
        columns: usize,
    ) {
        for row in 0..columns {
            let from = if row < rows { &data[row * stride..][..size] } else { &[] };
            for (step, out) in packed[row..].iter_mut().step_by(columns).enumerate() {
                let at = |i: usize| i16::from(from.get(2 * step + i).copied().unwrap_or(0));
                *out = [at(0), at(1)];
            }
        }
    }

    fn pack_value_bytes<FMA>(out: &mut [[u8; 4]], rows: [&[u8]; 4]) {
        let size = rows[0].len();
        if rows.iter().all(|row| row.len() == size) {
            let [a, b, c, d] = rows;
            let (b, c, d) = (&b[..size], &c[..size], &d[..size]);
            let (inside, behind) = out.split_at_mut(size);
            for (i, out) in inside.iter_mut().enumerate() {
                *out = [a[i] ^ 128, b[i] ^ 128, c[i] ^ 128, d[i] ^ 128];
            }
            behind.fill([0; 4]);
        } else {
            for (i, out) in out.iter_mut().enumerate() {
                *out = rows.map(|row| row.get(i).map_or(0, |level| level ^ 128));
            }
        }
    }

    fn pack_value_pairs<FMA>(out: &mut [[i16; 2]], rows: [&[u8]; 2]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = rows.map(|row| i16::from(row.get(i).copied().unwrap_or(0)));
        }
    }
}
