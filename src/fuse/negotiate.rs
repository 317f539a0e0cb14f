//! What is agreed upon with the kernel before the first request.

use std::sync::atomic::Ordering;

use fuser::{InitFlags, KernelConfig};

use super::adapter::Adapter;

/// Largest read or write request. The kernel's own limit at its default `max_pages_limit` of 256.
const MAX_IO: u32 = 1 << 20;

/// Requests in flight for what the kernel reads ahead, and for pages that programs wrote through mappings.
/// They share one queue in the kernel: with fewer, readers who wait for a store that does not answer would
/// hold up what others have written. The kernel grants an ordinary user less where there is little memory
/// (2,600 with 8 GiB). One that waits for its turn costs the server some hundred bytes.
const MAX_BACKGROUND: u16 = 4096;

impl Adapter {
    /// Asks for what makes requests fewer or cheaper, as far as this kernel has it.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) {
        // Each is a feature the kernel may lack; what then happens is its older default. Not among them
        // is FUSE_ATOMIC_O_TRUNC: with it the kernel sets a size of 0 some time after the open that
        // truncated, and forgets what others have written by then. Nor is FUSE_WRITEBACK_CACHE: what the
        // kernel then shows of a file's size, times and holes is neither what the upper has nor what it
        // has once all is written.
        for wanted in [
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // For file handles: it asks for `.` and `..` of what it has forgotten.
            InitFlags::FUSE_EXPORT_SUPPORT,
            // Without it the kernel asks for security.capability before each write, which makes a
            // passthrough write of 4 KiB nine times slower. In exchange dropping setuid bits is
            // ours: see drop_setid.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!("this kernel's FUSE lacks {missing:?}");
            }
        }
        // The bounds are the constants', so these cannot be refused.
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_background(MAX_BACKGROUND);

        let context = &self.context;
        let passthrough = context.passthrough.load(Ordering::Relaxed)
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(context.stack_depth + 1).is_ok();
        context.passthrough.store(passthrough, Ordering::Relaxed);
        let no_opendir = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok();
        context.no_opendir.store(no_opendir, Ordering::Relaxed);
    }
}
