//! Data of writes that wait until their file has been copied.
//!
//! A request's data lies in a buffer that the next request needs. Any number of programs may wait with a
//! megabyte each for a store that does not answer, so what does not fit into a few lies on the disk that it
//! is written to in the end.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::overlay::{Overlay, Result};

/// Most bytes that wait in memory.
const IN_MEMORY: usize = 4 << 20;

/// The data of one write.
pub(super) struct Parked {
    held: Held,
    /// What all that are held in memory have together.
    total: Arc<AtomicUsize>,
}

enum Held {
    Memory(Vec<u8>),
    File(OwnedFd, usize),
}

impl Parked {
    /// Keeps `data`; `total` counts what is held in memory.
    pub(super) fn new(data: &[u8], total: &Arc<AtomicUsize>, overlay: &Overlay) -> Result<Self> {
        let total = Arc::clone(total);
        let take = |held: usize| (held + data.len() <= IN_MEMORY).then_some(held + data.len());
        let held = match total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Held::Memory(data.to_owned()),
            Err(_) => Held::File(overlay.scratch(data)?, data.len()),
        };
        Ok(Self { held, total })
    }

    pub(super) fn data(&self) -> Result<Cow<'_, [u8]>> {
        match &self.held {
            Held::Memory(data) => Ok(Cow::Borrowed(data)),
            Held::File(file, len) => Ok(Cow::Owned(Overlay::read_scratch(file, *len)?.into())),
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Held::Memory(data) = &self.held {
            self.total.fetch_sub(data.len(), Ordering::Relaxed);
        }
    }
}
