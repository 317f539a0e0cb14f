//! The process's one instance of inotify(7), and who its watches are for.
//!
//! Instances are few (`fs.inotify.max_user_instances`, 128), so all trees share one. An inode has one watch in it,
//! whoever watches it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
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

/// Watches that are removed at a time. Each leaves an event behind, and the kernel has room for some 16,000 of all.
const REMOVED_AT_ONCE: usize = 1024;

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

impl Event {
    /// That which says that there was no room for more.
    pub(super) fn overflow(self) -> Self {
        Self { watch: None, mask: ReadFlags::QUEUE_OVERFLOW, name: Vec::new(), ..self }
    }
}

/// Who gets events.
pub(super) trait Receiver: Send + Sync {
    /// Takes one, to be looked at by [`Receiver::pump`].
    fn push(&self, event: Event);

    /// Looks at those that have come. Says when to be called again, though no more have come.
    fn pump(self: Arc<Self>, hub: &Hub) -> Option<Instant>;
}

/// The instance.
pub(super) struct Hub {
    inotify: OwnedFd,
    /// Interrupts the wait for events.
    wake: OwnedFd,
    reading: Mutex<Reading>,
    watches: Mutex<Watches>,
    /// Everybody, for what concerns all.
    receivers: Mutex<Vec<Weak<dyn Receiver>>>,
    /// Those that have something to do, and when.
    due: Mutex<Vec<(Instant, Weak<dyn Receiver>)>>,
}

/// Held from when events are read until they are with who gets them, so that they come in order.
struct Reading {
    /// How many bytes of events there have been.
    bytes: u64,
    buffer: Vec<u8>,
}

#[derive(Default)]
struct Watches {
    receivers: HashMap<i32, Vec<Weak<dyn Receiver>>>,
    /// Those that nobody has a use for any more, and that are yet to be removed.
    unused: HashSet<i32>,
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
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            reading: Mutex::new(Reading { bytes: 0, buffer: vec![0; BUFFER] }),
            watches: Mutex::default(),
            receivers: Mutex::default(),
            due: Mutex::default(),
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

    /// Watches a directory for `receiver`. One that is watched already has the same watch.
    pub(super) fn add(&self, receiver: &Weak<dyn Receiver>, dir: &OwnedFd) -> io::Result<i32> {
        let mut watches = self.watches.lock();
        let add = || add_watch(&self.inotify, proc_path(dir), MASK);
        let watch = match add() {
            Err(Errno::NOSPC) if !watches.unused.is_empty() => {
                self.remove_unused(&mut watches, usize::MAX);
                add()
            }
            added => added,
        };
        let watch = watch.map_err(|errno| match errno {
            Errno::NOSPC => too_few("watches", "fs.inotify.max_user_watches"),
            errno => errno.into(),
        })?;
        watches.unused.remove(&watch);
        let receivers = watches.receivers.entry(watch).or_default();
        if !receivers.iter().any(|other| other.ptr_eq(receiver)) {
            receivers.push(receiver.clone());
        }
        Ok(watch)
    }

    /// `receiver` has no use for a watch any more, nor has any that is gone.
    pub(super) fn remove(&self, receiver: &Weak<dyn Receiver>, watch: i32) {
        let mut watches = self.watches.lock();
        let Some(receivers) = watches.receivers.get_mut(&watch) else { return };
        receivers.retain(|other| other.strong_count() > 0 && !other.ptr_eq(receiver));
        if receivers.is_empty() {
            watches.receivers.remove(&watch);
            watches.unused.insert(watch);
            if watches.unused.len() == 1 {
                self.wake();
            }
        }
    }

    fn remove_unused(&self, watches: &mut Watches, at_most: usize) {
        let some: Vec<_> = watches.unused.iter().copied().take(at_most).collect();
        for watch in some {
            watches.unused.remove(&watch);
            // It may have gone with its directory.
            let _ = remove_watch(&self.inotify, watch);
        }
    }

    /// A place behind all events of what has happened by now, in bytes.
    pub(super) fn now(&self) -> u64 {
        let reading = self.reading.lock();
        reading.bytes + rustix::io::ioctl_fionread(&self.inotify).unwrap_or(0)
    }

    /// The place up to which events are with who gets them.
    pub(super) fn delivered(&self) -> u64 {
        self.reading.lock().bytes
    }

    /// Has `receiver` called by the thread that reads events.
    pub(super) fn call(&self, receiver: Weak<dyn Receiver>) {
        self.due_at(Instant::now(), receiver);
        self.wake();
    }

    fn due_at(&self, when: Instant, receiver: Weak<dyn Receiver>) {
        let mut due = self.due.lock();
        match due.iter_mut().find(|(_, other)| other.ptr_eq(&receiver)) {
            Some((before, _)) => *before = when.min(*before),
            None => due.push((when, receiver)),
        }
    }

    fn wake(&self) {
        // It cannot but fit, unless it is to be woken already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn run(&self) {
        loop {
            self.wait();
            self.read();
            self.remove_unused(&mut self.watches.lock(), REMOVED_AT_ONCE);
            let now = Instant::now();
            let (called, later) = std::mem::take(&mut *self.due.lock())
                .into_iter()
                .partition(|(when, _)| *when <= now);
            let called: Vec<(Instant, Weak<dyn Receiver>)> = called;
            let later: Vec<(Instant, Weak<dyn Receiver>)> = later;
            later.into_iter().for_each(|(when, receiver)| self.due_at(when, receiver));
            for receiver in called.into_iter().filter_map(|(_, receiver)| receiver.upgrade()) {
                let weak = Arc::downgrade(&receiver);
                if let Some(when) = receiver.pump(self) {
                    self.due_at(when, weak);
                }
            }
        }
    }

    /// Takes events from the kernel, which has no room for many. Whoever is long at something does so now and then.
    pub(super) fn deliver(&self) {
        self.read();
        self.wake();
    }

    /// Reads events, and hands them to who gets them.
    fn read(&self) {
        let mut reading = self.reading.lock();
        let Reading { bytes, buffer } = &mut *reading;
        let len = rustix::io::read(&self.inotify, &mut *buffer).unwrap_or(0);
        *bytes += len as u64;
        let now = Instant::now();
        let mut rest = buffer.get(..len).unwrap_or_default();
        while let Some(event) = parse(&mut rest, now) {
            for receiver in self.receivers_of(&event) {
                receiver.push(event.clone());
                self.due_at(now, Arc::downgrade(&receiver));
            }
            if let (Some(watch), true) = (event.watch, event.mask.contains(ReadFlags::IGNORED)) {
                let mut watches = self.watches.lock();
                watches.receivers.remove(&watch);
                watches.unused.remove(&watch);
            }
        }
    }

    fn receivers_of(&self, event: &Event) -> Vec<Arc<dyn Receiver>> {
        match event.watch {
            Some(watch) => {
                let watches = self.watches.lock();
                let receivers = watches.receivers.get(&watch).into_iter().flatten();
                receivers.filter_map(Weak::upgrade).collect()
            }
            None => self.receivers.lock().iter().filter_map(Weak::upgrade).collect(),
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let until = match self.watches.lock().unused.is_empty() {
            true => self.due.lock().iter().map(|(when, _)| *when).min(),
            false => Some(Instant::now()),
        };
        let patience = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = [&self.inotify, &self.wake].map(|fd| PollFd::new(fd, PollFlags::IN));
        // Interrupted, it finds nothing, and waits again.
        let _ = poll(&mut fds, patience.as_ref());
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Has nothing read for as long as what it gives is held.
    #[cfg(test)]
    pub(super) fn stop_reading(&self) -> parking_lot::MutexGuard<'_, impl Sized> {
        self.reading.lock()
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
