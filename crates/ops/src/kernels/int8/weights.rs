//! Constant i8 columns laid out for a tile, and the ways to run one.

use attar_tensor::Buffer;

use super::super::gemm::Strided;
#[cfg(target_arch = "x86_64")]
use super::super::pair_fits_16_bits;
#[cfg(target_arch = "x86_64")]
use super::bit_tile;
use super::bits::BitColumns;
#[cfg(target_arch = "aarch64")]
use super::neon::{Dot128, Wide128};
use super::vector::{Portable, Sums};
#[cfg(target_arch = "x86_64")]
use super::x86::{Narrow256, Vnni256, Vnni512, Wide256};
use super::{Job, Task, peak, tile};

/// How a path lays out columns.
struct Layout {
    panel_columns: usize,
    /// Columns of a vector.
    lanes: usize,
    left_offset: i32,
}

/// Instructions that a tile is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni512,
    /// AVX2 with AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni256,
    /// The same tile by instructions of AVX-512.
    #[cfg(all(test, target_arch = "x86_64"))]
    Evex256,
    /// AVX2, for columns whose pairs do not saturate 16 bits.
    #[cfg(target_arch = "x86_64")]
    Narrow256,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Wide256,
    /// Dot products of ARMv8.2.
    #[cfg(target_arch = "aarch64")]
    Dot128,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Wide128,
    Portable,
}

impl Path {
    /// From the fastest to the one that every CPU has.
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Vnni512,
        #[cfg(target_arch = "x86_64")]
        Self::Vnni256,
        #[cfg(all(test, target_arch = "x86_64"))]
        Self::Evex256,
        #[cfg(target_arch = "x86_64")]
        Self::Narrow256,
        #[cfg(target_arch = "x86_64")]
        Self::Wide256,
        #[cfg(target_arch = "aarch64")]
        Self::Dot128,
        #[cfg(target_arch = "aarch64")]
        Self::Wide128,
        Self::Portable,
    ];

    /// The paths that this CPU has the instructions for, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|path| path.is_available())
    }

    fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni512 => {
                super::super::isa() == super::super::Isa::Avx512
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Vnni256 => Self::Wide256.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(all(test, target_arch = "x86_64"))]
            Self::Evex256 => Self::Vnni512.is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Narrow256 | Self::Wide256 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Dot128 => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::Wide128 => true,
            Self::Portable => true,
        }
    }

    const fn layout(self) -> Layout {
        const fn of<T: Sums>() -> Layout {
            let (panel_columns, lanes) = (T::WIDE * T::LANES, T::LANES);
            Layout { panel_columns, lanes, left_offset: T::LEFT_OFFSET }
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni512 => of::<Vnni512>(),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni256 => of::<Vnni256<false>>(),
            #[cfg(all(test, target_arch = "x86_64"))]
            Self::Evex256 => of::<Vnni256<true>>(),
            #[cfg(target_arch = "x86_64")]
            Self::Narrow256 => of::<Narrow256>(),
            #[cfg(target_arch = "x86_64")]
            Self::Wide256 => of::<Wide256>(),
            #[cfg(target_arch = "aarch64")]
            Self::Dot128 => of::<Dot128>(),
            #[cfg(target_arch = "aarch64")]
            Self::Wide128 => of::<Wide128>(),
            Self::Portable => of::<Portable>(),
        }
    }

    /// Whether the path can count bits on this CPU.
    fn counts_bits(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni512 => bit_tile::is_available(),
            _ => false,
        }
    }

    pub(super) fn panel_columns(self) -> usize {
        self.layout().panel_columns
    }

    /// What the path takes away from every byte of the left side.
    pub(super) fn left_offset(self) -> i32 {
        self.layout().left_offset
    }

    /// Whether the path's sums of products of these columns are exact, whatever the left side.
    fn holds(self, b: &Strided<i8>) -> bool {
        let _ = b;
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Narrow256 => (0..b.size[0] / 2).all(|pair| has_small_pairs(b, 2 * pair)),
            _ => true,
        }
    }

    /// The paths of this CPU that are exact for these columns, the fastest first.
    pub(crate) fn exact_for(b: Strided<'_, i8>) -> impl Iterator<Item = Self> + '_ {
        Self::available().filter(move |path| path.holds(&b))
    }

    /// Runs one task of a job whose weights are packed for this path.
    pub(super) fn run(self, job: &Job, task: Task) {
        assert_eq!(job.product.weights.path(), self, "weights are packed for the path");
        // SAFETY: weights are only packed for paths that are available, and `Job::new` checked the
        // memory.
        unsafe { self.call(Some((job, task))) };
    }

    /// # Safety
    /// The path must be available.
    unsafe fn call(self, work: Option<(&Job, Task)>) -> f64 {
        // SAFETY: as the caller's.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Vnni512 => vnni512(work),
                #[cfg(target_arch = "x86_64")]
                Self::Vnni256 => vnni256(work),
                #[cfg(all(test, target_arch = "x86_64"))]
                Self::Evex256 => evex256(work),
                #[cfg(target_arch = "x86_64")]
                Self::Narrow256 => narrow256(work),
                #[cfg(target_arch = "x86_64")]
                Self::Wide256 => wide256(work),
                #[cfg(target_arch = "aarch64")]
                Self::Dot128 => dot128(work),
                #[cfg(target_arch = "aarch64")]
                Self::Wide128 => wide128(work),
                Self::Portable => portable(work),
            }
        }
    }
}

/// Whether what two rows of weights give together never leaves 16 bits.
#[cfg(target_arch = "x86_64")]
fn has_small_pairs(b: &Strided<i8>, row: usize) -> bool {
    let [first, second] = [row, row + 1].map(|row| &b.data[row * b.strides[0]..]);
    let places = (0..b.size[1]).map(|column| column * b.strides[1]);
    places.map(|at| [first[at], second[at]]).all(pair_fits_16_bits)
}

/// A task, or without one a measurement of the instructions alone, in operations a second.
macro_rules! compiled_for {
    ($name:ident, $sums:ty $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $name(work: Option<(&Job, Task)>) -> f64 {
            // SAFETY: as the caller's.
            unsafe {
                match work {
                    Some((job, task)) => {
                        tile::run::<$sums>(job, task);
                        0.0
                    }
                    None => peak::operations_per_second::<$sums>(),
                }
            }
        }
    };
}

compiled_for!(portable, Portable);
#[cfg(target_arch = "aarch64")]
compiled_for!(dot128, Dot128, "neon,dotprod");
#[cfg(target_arch = "aarch64")]
compiled_for!(wide128, Wide128, "neon");
#[cfg(target_arch = "x86_64")]
compiled_for!(vnni512, Vnni512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma");
#[cfg(target_arch = "x86_64")]
compiled_for!(vnni256, Vnni256<false>, "avx2,fma,avxvnni");
#[cfg(all(test, target_arch = "x86_64"))]
compiled_for!(evex256, Vnni256<true>, "avx2,fma,avx512vl,avx512vnni");
#[cfg(target_arch = "x86_64")]
compiled_for!(wide256, Wide256, "avx2,fma");
#[cfg(target_arch = "x86_64")]
compiled_for!(narrow256, Narrow256, "avx2,fma");

/// Integer operations (two per product) that one thread of this CPU can do a second with operands
/// in registers, measured; for reports.
pub fn int8_operations_per_second() -> f64 {
    let path = Path::available().next().expect("the portable path is there");
    // SAFETY: the path is available.
    unsafe { path.call(None) }
}

/// A constant right side of k rows and n columns: panels of columns, each with four rows of every
/// column after each other; zeros behind the last row and the last column.
pub(crate) struct Weights {
    path: Path,
    packed: Buffer,
    /// The same as bits, where they and this CPU allow it.
    bits: Option<BitColumns>,
    column_sums: Vec<i32>,
    depth: usize,
}

impl Weights {
    /// Packs for the fastest path of this CPU.
    pub(crate) fn new(b: Strided<i8>) -> Self {
        let path = Path::exact_for(b).next().expect("the portable path is there");
        Self::packed(path, b)
    }

    /// # Panics
    /// When this CPU lacks the path, or it is not exact for these columns.
    #[cfg(test)]
    pub(crate) fn with_path(path: Path, b: Strided<i8>) -> Self {
        assert!(path.is_available(), "{path:?} needs instructions that this CPU lacks");
        assert!(path.holds(&b), "{path:?} is not exact for these columns");
        Self::packed(path, b)
    }

    fn packed(path: Path, b: Strided<i8>) -> Self {
        let [depth, columns] = b.size;
        let Layout { panel_columns, lanes, .. } = path.layout();
        let padded_depth = depth.next_multiple_of(4);
        let padded = columns.next_multiple_of(lanes);
        let bits = path.counts_bits().then(|| BitColumns::new(&b, [panel_columns, lanes]));
        let mut packed = Buffer::zeroed(padded * padded_depth);
        let mut column_sums = vec![0_i32; columns];
        // In the order of the panels, so that both sides are read and written in whole lines.
        let mut cells = packed.as_bytes_mut().chunks_exact_mut(4);
        for first in (0..padded).step_by(panel_columns) {
            let end = padded.min(first + panel_columns);
            for row in (0..depth).step_by(4) {
                for (column, cell) in (first..end).zip(&mut cells) {
                    let Some(sum) = column_sums.get_mut(column) else { continue };
                    for (byte, row) in cell.iter_mut().zip(row..depth) {
                        let value = b.data[row * b.strides[0] + column * b.strides[1]];
                        *sum = sum.wrapping_add(i32::from(value));
                        *byte = value.cast_unsigned();
                    }
                }
            }
        }
        Self { path, packed, bits: bits.flatten(), column_sums, depth }
    }

    pub(super) fn path(&self) -> Path {
        self.path
    }

    pub(super) fn data(&self) -> *const i8 {
        self.packed.as_bytes().as_ptr().cast()
    }

    /// The columns as bits, if they are held so too.
    pub(super) fn bits(&self) -> Option<&BitColumns> {
        self.bits.as_ref()
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn columns(&self) -> usize {
        self.column_sums.len()
    }

    /// Columns up to the end of the last vector.
    pub(super) fn padded_columns(&self) -> usize {
        self.columns().next_multiple_of(self.path.layout().lanes)
    }

    pub(super) fn column_sums(&self) -> &[i32] {
        &self.column_sums
    }
}
