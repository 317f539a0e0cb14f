//! The process's one instance of inotify(7), and who its watches are for.
//!
//! Instances are few (`fs.inotify.max_user_instances`, 128), so all trees share one. An inode has one watch in it,
//! whoever watches it.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, ReadFlags, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

use crate::inode_ops::proc_path;

/// What is asked of the kernel for each directory. A file that has no name any more is nobody's to hear of.
const MASK: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);

/// Bytes of events that are read at a time.
const BUFFER: usize = 64 << 10;

/// One event of the kernel's.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Of which watch; none if the kernel had no room for more events.
    pub(super) watch: Option<i32>,
    pub(super) mask: ReadFlags,
    /// The two halves of a rename have the same.
    pub(super) cookie: u32,
    /// The name in the directory; empty for the directory itself.
    pub(super) name: Vec<u8>,
    /// When it was read.
    pub(super) read_at: Instant,
}

/// Who gets events.
pub(super) trait Receiver: Send + Sync {
    /// Takes one, to be looked at by [`Receiver::pump`].
    fn push(&self, event: Event);

    /// Looks at those that have come, unless another thread is at it, which will then.
    fn pump(self: Arc<Self>, hub: &Hub) -> Pumped;
}

/// What a receiver has to do later.
pub(super) struct Pumped {
    pub(super) is_waiting: bool,
    /// At this time; else once more events have come.
    pub(super) again_at: Option<Instant>,
}

/// The instance.
pub(super) struct Hub {
    inotify: OwnedFd,
    /// How many bytes of events have been read; held while they are.
    read: Mutex<u64>,
    /// How many of these are with the trees.
    delivered: AtomicU64,
    watches: Mutex<HashMap<i32, Vec<Weak<dyn Receiver>>>>,
    /// Everybody, for what concerns all.
    receivers: Mutex<Vec<Weak<dyn Receiver>>>,
}

impl Hub {
    /// That of this process.
    pub(super) fn get() -> io::Result<Arc<Self>> {
        static HUB: OnceLock<Arc<Hub>> = OnceLock::new();
        static MAKING: Mutex<()> = Mutex::new(());
        let _making = MAKING.lock();
        if let Some(hub) = HUB.get() {
            return Ok(Arc::clone(hub));
        }
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let inotify = init(flags).map_err(|errno| match errno {
            Errno::MFILE => too_few("instances", "fs.inotify.max_user_instances"),
            errno => errno.into(),
        })?;
        let hub = Arc::new(Self {
            inotify,
            read: Mutex::new(0),
            delivered: AtomicU64::new(0),
            watches: Mutex::default(),
            receivers: Mutex::default(),
        });
        let runs = Arc::clone(&hub);
        std::thread::Builder::new().name("thawfs-inotify".into()).spawn(move || runs.run())?;
        Ok(Arc::clone(HUB.get_or_init(|| hub)))
    }

    /// Has `receiver` told of what concerns all.
    pub(super) fn join(&self, receiver: Weak<dyn Receiver>) {
        let mut receivers = self.receivers.lock();
        receivers.retain(|receiver| receiver.strong_count() > 0);
        receivers.push(receiver);
    }

    /// Watches a directory for `receiver`.
    pub(super) fn add(&self, receiver: &Weak<dyn Receiver>, dir: &OwnedFd) -> io::Result<i32> {
        let mut watches = self.watches.lock();
        let watch =
            add_watch(&self.inotify, proc_path(dir), MASK).map_err(|errno| match errno {
                Errno::NOSPC => too_few("watches", "fs.inotify.max_user_watches"),
                errno => errno.into(),
            })?;
        let receivers = watches.entry(watch).or_default();
        if !receivers.iter().any(|other| other.ptr_eq(receiver)) {
            receivers.push(receiver.clone());
        }
        Ok(watch)
    }

    /// `receiver` has no use for a watch any more, nor has any that is gone.
    pub(super) fn remove(&self, receiver: &Weak<dyn Receiver>, watch: i32) {
        let mut watches = self.watches.lock();
        let Some(receivers) = watches.get_mut(&watch) else { return };
        receivers.retain(|other| other.strong_count() > 0 && !other.ptr_eq(receiver));
        if receivers.is_empty() {
            watches.remove(&watch);
            // It may have gone with its directory.
            let _ = remove_watch(&self.inotify, watch);
        }
    }

    /// A place behind all events of what has happened by now, in bytes.
    pub(super) fn now(&self) -> u64 {
        // In this order, as what is read meanwhile counts twice rather than not at all.
        let read = self.read.lock();
        *read + rustix::io::ioctl_fionread(&self.inotify).unwrap_or(0)
    }

    /// The place up to which trees have the events.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    fn run(&self) {
        let mut buffer = vec![0; BUFFER];
        // Those that have something to do later, or once more has come.
        let mut later: Vec<(Option<Instant>, Weak<dyn Receiver>)> = Vec::new();
        loop {
            self.wait(later.iter().filter_map(|(when, _)| *when).min());
            let (read, events) = self.read(&mut buffer);
            let mut busy: Vec<Arc<dyn Receiver>> =
                later.drain(..).filter_map(|(_, receiver)| receiver.upgrade()).collect();
            for event in events {
                for receiver in self.receivers_of(&event) {
                    receiver.push(event.clone());
                    if !busy.iter().any(|other| Arc::ptr_eq(other, &receiver)) {
                        busy.push(receiver);
                    }
                }
                if let (Some(watch), true) = (event.watch, event.mask.contains(ReadFlags::IGNORED))
                {
                    self.watches.lock().remove(&watch);
                }
            }
            self.delivered.store(read, Ordering::Release);
            for receiver in busy {
                let pumped = Arc::clone(&receiver).pump(self);
                if pumped.is_waiting {
                    later.push((pumped.again_at, Arc::downgrade(&receiver)));
                }
            }
        }
    }

    fn receivers_of(&self, event: &Event) -> Vec<Arc<dyn Receiver>> {
        match event.watch {
            Some(watch) => {
                let watches = self.watches.lock();
                let receivers = watches.get(&watch).into_iter().flatten();
                receivers.filter_map(Weak::upgrade).collect()
            }
            None => self.receivers.lock().iter().filter_map(Weak::upgrade).collect(),
        }
    }

    fn wait(&self, until: Option<Instant>) {
        let patience = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
        // Interrupted, it reads nothing, and waits again.
        let _ = poll(&mut fds, patience.as_ref());
    }

    /// What there is to read, and how many bytes have been read with that.
    fn read(&self, buffer: &mut [u8]) -> (u64, Vec<Event>) {
        let mut read = self.read.lock();
        let len = rustix::io::read(&self.inotify, &mut *buffer).unwrap_or(0);
        *read += len as u64;
        let read_at = Instant::now();
        let mut rest = buffer.get(..len).unwrap_or_default();
        let events = std::iter::from_fn(|| parse(&mut rest, read_at));
        (*read, events.collect())
    }
}

/// Takes one event off `text`: watch, mask, cookie and the length of the name, four bytes each, and the name with
/// NULs behind it.
fn parse(text: &mut &[u8], read_at: Instant) -> Option<Event> {
    let mut number = || -> Option<[u8; 4]> { text.split_off(..4)?.try_into().ok() };
    let watch = i32::from_ne_bytes(number()?);
    let [mask, cookie, len] = [number()?, number()?, number()?].map(u32::from_ne_bytes);
    let name = text.split_off(..len as usize)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    let mask = ReadFlags::from_bits_retain(mask);
    let watch = (!mask.contains(ReadFlags::QUEUE_OVERFLOW)).then_some(watch);
    Some(Event { watch, mask, cookie, name, read_at })
}

fn too_few(what: &str, sysctl: &str) -> io::Error {
    let message =
        format!("this user has as many inotify {what} as the kernel allows; raise {sysctl}");
    io::Error::new(io::ErrorKind::QuotaExceeded, message)
}
