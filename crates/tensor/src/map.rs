//! A file as shared bytes, read by the kernel when touched.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a file into memory. An empty file gives empty bytes.
///
/// # Errors
/// Whatever opening or mapping reports, a folder included.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only. Another process that shortens the file while
    // it is mapped ends ours with SIGBUS; attar itself replaces files by rename, which keeps the
    // mapped inode whole.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
