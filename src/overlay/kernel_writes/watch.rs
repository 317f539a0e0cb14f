//! What there is while somebody watches: the marks, and the files that are looked at although they are closed.

use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::io::Errno;

use super::MAX_CLOSED;
use super::file::File;
use crate::types::{Ino, Timestamp};

/// How much older than the beginning of a watch a change may look: what the kernel's clock lags behind, at most.
const CLOCK_LAG: Duration = Duration::from_millis(20);

/// What there is while somebody watches.
#[derive(Debug)]
pub(super) struct Watch {
    /// Changes from then on are to be told.
    pub(super) began: Timestamp,
    /// None where the kernel gives none.
    pub(super) inotify: Option<OwnedFd>,
    pub(super) marked: HashMap<i32, Ino>,
    /// Without a handle, the oldest first.
    pub(super) retained: VecDeque<Ino>,
    pub(super) max_retained: usize,
    /// When the pages of files were last made clean.
    pub(super) cleaned: Option<Instant>,
}

impl Watch {
    pub(super) fn begin(began: Timestamp) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags);
        if let Err(errno) = &inotify {
            tracing::info!("writes are told a moment later, as there is no inotify: {errno}");
        }
        let lag = i64::from(CLOCK_LAG.subsec_nanos());
        let nanos = i64::from(began.nanos) - lag;
        let began = Timestamp {
            seconds: began.seconds + nanos.div_euclid(1_000_000_000),
            nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
        };
        Self {
            began,
            inotify: inotify.ok(),
            marked: HashMap::new(),
            retained: VecDeque::new(),
            max_retained: MAX_CLOSED.min(quarter_of_descriptors()),
            // At once: what is dirty now hides what is stored from now on.
            cleaned: None,
        }
    }

    pub(super) fn mark(&mut self, ino: Ino, file: &mut File) {
        let Some(inotify) = &self.inotify else { return };
        let path = format!("/proc/self/fd/{}", file.fd.as_raw_fd());
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CLOSE_WRITE;
        match inotify::add_watch(inotify, path, flags) {
            Ok(mark) => {
                self.marked.insert(mark, ino);
                file.mark = Some(mark);
            }
            Err(errno) => tracing::debug!("writes to inode {ino} are told a moment later: {errno}"),
        }
    }

    pub(super) fn unmark(&mut self, file: &File) {
        if let (Some(inotify), Some(mark)) = (&self.inotify, file.mark) {
            self.marked.remove(&mark);
            // It goes by itself with the inode.
            let _ = inotify::remove_watch(inotify, mark);
        }
    }

    /// What the marks have told since it was last asked: files that were written to, and those that somebody who
    /// could write has closed.
    pub(super) fn told(&self) -> (Vec<Ino>, Vec<Ino>) {
        let (mut written, mut closed) = (Vec::new(), Vec::new());
        let Some(inotify) = &self.inotify else { return (written, closed) };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => return (written, closed),
            };
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                // Any of them may have been.
                written.extend(self.marked.values());
            }
            let Some(ino) = self.marked.get(&event.wd()) else { continue };
            if event.events().contains(inotify::ReadFlags::MODIFY) {
                written.push(*ino);
            }
            if event.events().contains(inotify::ReadFlags::CLOSE_WRITE) {
                closed.push(*ino);
            }
        }
    }
}

fn quarter_of_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit / 4).ok()).unwrap_or(usize::MAX)
}
