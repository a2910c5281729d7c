//! Where memory goes that is freed.
#![allow(unsafe_code)]

/// While it lives, large blocks go back to the system when they are freed. glibc raises the size from
/// which they do with every such block, up to 32 MiB, and its heap then keeps what a pass over a model
/// frees, tensor by tensor: a quarter more at the peak.
pub(crate) struct SmallHeap(());

/// glibc's own at the start, and the most that it raises it to.
const SMALL: i32 = 128 << 10;
const LARGE: i32 = 32 << 20;

impl SmallHeap {
    pub(crate) fn new() -> Self {
        set_threshold(SMALL);
        Self(())
    }
}

impl Drop for SmallHeap {
    fn drop(&mut self) {
        set_threshold(LARGE);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set_threshold(bytes: i32) {
    // SAFETY: it sets one integer of the allocator, under its lock, and touches no memory of ours.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn set_threshold(_: i32) {}
