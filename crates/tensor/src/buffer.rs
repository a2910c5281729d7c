//! Owned bytes on a cache-line boundary, made to be reused.

use bytemuck::{Pod, Zeroable};

/// One cache line, and one AVX-512 register.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes aligned to 64. Growing keeps the allocation where it can.
#[derive(Clone, Default)]
pub struct Buffer {
    lines: Vec<Line>,
    size_bytes: usize,
}

impl Buffer {
    pub fn zeroed(size_bytes: usize) -> Self {
        Self { lines: vec![Line::zeroed(); size_bytes.div_ceil(64)], size_bytes }
    }

    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.as_bytes_mut().copy_from_slice(bytes);
        buffer
    }

    /// Sets the length. Bytes that were in use before keep their old values.
    pub fn resize(&mut self, size_bytes: usize) {
        let line_count = size_bytes.div_ceil(64);
        if line_count > self.lines.len() {
            self.lines.resize(line_count, Line::zeroed());
        }
        self.size_bytes = size_bytes;
    }

    /// Bytes that fit without another allocation.
    pub fn capacity_bytes(&self) -> usize {
        self.lines.capacity() * 64
    }

    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub fn as_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.size_bytes]
    }

    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.size_bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_start_on_a_cache_line() {
        let buffer = Buffer::from_bytes(&[1, 2, 3]);
        assert_eq!(buffer.as_bytes().as_ptr() as usize % 64, 0);
        assert_eq!(buffer.as_bytes(), [1, 2, 3]);
    }

    #[test]
    fn shrinking_and_growing_again_allocates_nothing() {
        let mut buffer = Buffer::zeroed(1000);
        let start = buffer.as_bytes().as_ptr();
        buffer.resize(10);
        buffer.resize(1000);
        assert_eq!(buffer.as_bytes().as_ptr(), start);
    }
}
