//! The tensor: a shape over shared, immutable bytes, copied only when written while shared.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::shape::Shape;
use crate::{Buffer, DType, Element, TensorError};

/// A dense, row-major array. Cloning shares the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    /// Aligned to 64 bytes and writable when this is the only owner.
    Owned(Arc<Buffer>),
    /// Part of a file or message, at any alignment.
    Shared(Bytes),
    Strings(Arc<Vec<Bytes>>),
}

/// The number of elements of a shape, or `None` when it overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the product zero, however large the others are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim))
}

fn check_size(dtype: DType, shape: &[usize], found: usize) -> Result<(), TensorError> {
    let expected = element_count(shape)
        .and_then(|count| dtype.size_bytes(count))
        .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })?;
    if expected == found {
        return Ok(());
    }
    Err(TensorError::Size { dtype, shape: shape.to_vec(), expected, found })
}

impl Tensor {
    /// A tensor over shared bytes in little-endian, row-major order.
    ///
    /// # Errors
    /// When the bytes are not exactly those that `shape` needs.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Bytes) -> Result<Self, TensorError> {
        check_size(dtype, shape, bytes.len())?;
        Ok(Self { dtype, shape: shape.into(), storage: Storage::Shared(bytes) })
    }

    /// A tensor over an owned, aligned buffer.
    ///
    /// # Panics
    /// When the buffer's size is not what `shape` needs.
    pub fn from_buffer(dtype: DType, shape: &[usize], buffer: Buffer) -> Self {
        check_size(dtype, shape, buffer.size_bytes()).expect("the buffer was sized for the shape");
        Self { dtype, shape: shape.into(), storage: Storage::Owned(Arc::new(buffer)) }
    }

    /// A tensor of strings (UTF-8 by convention, any bytes in fact).
    ///
    /// # Errors
    /// When the count of strings is not that of `shape`.
    pub fn from_strings(shape: &[usize], strings: Vec<Bytes>) -> Result<Self, TensorError> {
        let expected =
            element_count(shape).ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })?;
        if expected != strings.len() {
            let (dtype, found) = (DType::String, strings.len());
            return Err(TensorError::Size { dtype, shape: shape.to_vec(), expected, found });
        }
        let storage = Storage::Strings(Arc::new(strings));
        Ok(Self { dtype: DType::String, shape: shape.into(), storage })
    }

    /// A tensor of copied values.
    ///
    /// # Panics
    /// When the count of values is not that of `shape`.
    pub fn new<T: Element>(shape: &[usize], values: &[T]) -> Self {
        Self::from_buffer(T::DTYPE, shape, Buffer::from_bytes(bytemuck::cast_slice(values)))
    }

    pub fn scalar<T: Element>(value: T) -> Self {
        Self::new(&[], &[value])
    }

    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let count = element_count(shape).expect("the shape is addressable");
        let size = dtype.size_bytes(count).expect("the shape is addressable");
        Self::from_buffer(dtype, shape, Buffer::zeroed(size))
    }

    /// Booleans, one byte each.
    ///
    /// # Panics
    /// When the count of values is not that of `shape`.
    pub fn from_bools(shape: &[usize], values: &[bool]) -> Self {
        let bytes: Vec<u8> = values.iter().map(|&value| u8::from(value)).collect();
        Self::from_buffer(DType::Bool, shape, Buffer::from_bytes(&bytes))
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    pub fn element_count(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn size_bytes(&self) -> usize {
        match &self.storage {
            Storage::Owned(buffer) => buffer.size_bytes(),
            Storage::Shared(bytes) => bytes.len(),
            Storage::Strings(strings) => strings.iter().map(Bytes::len).sum(),
        }
    }

    /// The bytes in little-endian, row-major order; empty for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Owned(buffer) => buffer.as_bytes(),
            Storage::Shared(bytes) => bytes,
            Storage::Strings(_) => &[],
        }
    }

    /// The bytes without a copy where they already are shared; empty for strings.
    pub fn shared_bytes(&self) -> Bytes {
        match &self.storage {
            Storage::Owned(buffer) => Bytes::from_owner(OwnedBytes(buffer.clone())),
            Storage::Shared(bytes) => bytes.clone(),
            Storage::Strings(_) => Bytes::new(),
        }
    }

    /// The strings of a string tensor; empty for other types.
    pub fn strings(&self) -> &[Bytes] {
        match &self.storage {
            Storage::Strings(strings) => strings,
            _ => &[],
        }
    }

    /// The elements, copied only if the shared bytes are not aligned for `T`.
    ///
    /// # Panics
    /// When the tensor's type is not `T`.
    pub fn values<T: Element>(&self) -> Cow<'_, [T]> {
        self.expect_type::<T>();
        match bytemuck::try_cast_slice(self.bytes()) {
            Ok(values) => Cow::Borrowed(values),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(self.bytes())),
        }
    }

    /// The elements of a tensor known to be aligned: owned ones, and the result of [`aligned`].
    ///
    /// [`aligned`]: Self::aligned
    ///
    /// # Panics
    /// When the tensor's type is not `T`, or its bytes are not aligned.
    pub fn slice<T: Element>(&self) -> &[T] {
        self.expect_type::<T>();
        bytemuck::cast_slice(self.bytes())
    }

    fn expect_type<T: Element>(&self) {
        assert!(T::views(self.dtype), "a tensor of {} read as {}", self.dtype, T::DTYPE);
    }

    /// The elements for writing; copies first when the bytes are shared.
    ///
    /// # Panics
    /// When the tensor's type is not `T`.
    pub fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        self.expect_type::<T>();
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    /// The bytes for writing; copies first when they are shared. Empty for strings.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if let Storage::Shared(bytes) = &self.storage {
            self.storage = Storage::Owned(Arc::new(Buffer::from_bytes(bytes)));
        }
        match &mut self.storage {
            Storage::Owned(buffer) => Arc::make_mut(buffer).as_bytes_mut(),
            _ => &mut [],
        }
    }

    /// The same tensor with its bytes on a 64-byte boundary.
    pub fn aligned(&self) -> Self {
        match &self.storage {
            Storage::Shared(bytes) => {
                let storage = Storage::Owned(Arc::new(Buffer::from_bytes(bytes)));
                Self { dtype: self.dtype, shape: self.shape.clone(), storage }
            }
            _ => self.clone(),
        }
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// When the element counts differ.
    pub fn reshaped(&self, shape: &[usize]) -> Self {
        assert_eq!(
            element_count(shape),
            Some(self.element_count()),
            "reshape of {:?} to {shape:?}",
            self.shape()
        );
        Self { dtype: self.dtype, shape: shape.into(), storage: self.storage.clone() }
    }

    /// Whether no other tensor shares these bytes and they can be written in place.
    pub fn is_unique(&self) -> bool {
        matches!(&self.storage, Storage::Owned(buffer) if Arc::strong_count(buffer) == 1)
    }

    /// Gives the buffer back for reuse, if no other tensor shares it.
    pub fn into_buffer(self) -> Option<Buffer> {
        match self.storage {
            Storage::Owned(buffer) => Arc::into_inner(buffer),
            _ => None,
        }
    }
}

struct OwnedBytes(Arc<Buffer>);

impl AsRef<[u8]> for OwnedBytes {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl PartialEq for Tensor {
    /// Same type, shape and bits; so a NaN equals itself and −0 differs from 0.
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && self.bytes() == other.bytes()
            && self.strings() == other.strings()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape())?;
        if self.element_count() <= 16 {
            match self.dtype {
                DType::F32 => write!(f, " {:?}", self.values::<f32>())?,
                DType::I64 => write!(f, " {:?}", self.values::<i64>())?,
                DType::U8 | DType::Bool => write!(f, " {:?}", self.values::<u8>())?,
                DType::I8 => write!(f, " {:?}", self.values::<i8>())?,
                DType::I32 => write!(f, " {:?}", self.values::<i32>())?,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_a_shared_tensor_leaves_the_other_owner_alone() {
        let first = Tensor::new(&[2], &[1.0_f32, 2.0]);
        let mut second = first.clone();
        second.slice_mut::<f32>()[0] = 9.0;
        assert_eq!(first.slice::<f32>(), [1.0, 2.0]);
        assert_eq!(second.slice::<f32>(), [9.0, 2.0]);
    }

    #[test]
    fn unaligned_bytes_are_readable_and_alignable() {
        let bytes = Bytes::from(vec![0, 0, 0, 128, 63, 0]).slice(1..5);
        let tensor = Tensor::from_bytes(DType::F32, &[1], bytes).unwrap();
        assert_eq!(tensor.values::<f32>().as_ref(), [1.0]);
        assert_eq!(tensor.aligned().slice::<f32>(), [1.0]);
    }

    #[test]
    fn a_shape_that_overflows_is_an_error_not_an_allocation() {
        let error = Tensor::from_bytes(DType::F32, &[usize::MAX, 2], Bytes::new()).unwrap_err();
        assert_eq!(error, TensorError::TooLarge { shape: vec![usize::MAX, 2] });
    }

    #[test]
    fn four_bit_elements_share_bytes() {
        let bytes = Bytes::from_static(&[0x21, 0x03]);
        assert!(Tensor::from_bytes(DType::I4, &[3], bytes).is_ok());
    }
}
