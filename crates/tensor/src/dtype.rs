//! Element types, named as ONNX and the papers name them.

use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
    F6E2M3,
    F6E3M2,
    F4E2M1,
    I64,
    I32,
    I16,
    I8,
    I4,
    I2,
    U64,
    U32,
    U16,
    U8,
    U4,
    U2,
    Bool,
    Complex64,
    Complex128,
    String,
}

impl DType {
    /// Every element type.
    pub const ALL: [Self; 28] = [
        Self::F32,
        Self::F64,
        Self::F16,
        Self::BF16,
        Self::F8E4M3FN,
        Self::F8E4M3FNUZ,
        Self::F8E5M2,
        Self::F8E5M2FNUZ,
        Self::F8E8M0,
        Self::F6E2M3,
        Self::F6E3M2,
        Self::F4E2M1,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::I4,
        Self::I2,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::U4,
        Self::U2,
        Self::Bool,
        Self::Complex64,
        Self::Complex128,
        Self::String,
    ];

    /// The type that is written so, as [`name`](Self::name) does.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bits of one element; 0 for strings, whose elements have no common size.
    pub fn bits(self) -> usize {
        match self {
            Self::Complex128 => 128,
            Self::F64 | Self::I64 | Self::U64 | Self::Complex64 => 64,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 16,
            Self::F8E4M3FN
            | Self::F8E4M3FNUZ
            | Self::F8E5M2
            | Self::F8E5M2FNUZ
            | Self::F8E8M0
            | Self::I8
            | Self::U8
            | Self::Bool => 8,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::I4 | Self::U4 | Self::F4E2M1 => 4,
            Self::I2 | Self::U2 => 2,
            Self::String => 0,
        }
    }

    /// Bytes that `count` elements take, small ones packed low bits first.
    pub fn size_bytes(self, count: usize) -> Option<usize> {
        count.checked_mul(self.bits()).map(|bits| bits.div_ceil(8))
    }

    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F8E4M3FN => "f8e4m3fn",
            Self::F8E4M3FNUZ => "f8e4m3fnuz",
            Self::F8E5M2 => "f8e5m2",
            Self::F8E5M2FNUZ => "f8e5m2fnuz",
            Self::F8E8M0 => "f8e8m0",
            Self::F6E2M3 => "f6e2m3",
            Self::F6E3M2 => "f6e3m2",
            Self::F4E2M1 => "f4e2m1",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::I4 => "i4",
            Self::I2 => "i2",
            Self::U64 => "u64",
            Self::U32 => "u32",
            Self::U16 => "u16",
            Self::U8 => "u8",
            Self::U4 => "u4",
            Self::U2 => "u2",
            Self::Bool => "bool",
            Self::Complex64 => "complex64",
            Self::Complex128 => "complex128",
            Self::String => "string",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that is stored as one element of a tensor.
///
/// `bool` tensors hold one byte per element and are read as `u8` (0 or 1).
pub trait Element: Pod + PartialEq + Send + Sync {
    const DTYPE: DType;

    /// Whether a tensor of `dtype` may be viewed as a slice of this type.
    fn views(dtype: DType) -> bool {
        dtype == Self::DTYPE
    }
}

macro_rules! element {
    ($($ty:ty => $dtype:ident),*) => {
        $(impl Element for $ty { const DTYPE: DType = DType::$dtype; })*
    };
}

element!(f32 => F32, f64 => F64, f16 => F16, bf16 => BF16, i64 => I64, i32 => I32,
         i16 => I16, i8 => I8, u64 => U64, u32 => U32, u16 => U16);

impl Element for u8 {
    const DTYPE: DType = DType::U8;

    fn views(dtype: DType) -> bool {
        matches!(dtype, DType::U8 | DType::Bool)
    }
}
