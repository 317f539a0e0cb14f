//! How much may be written before room is measured again.
//!
//! Threads that write share it. `tests/loom` goes through all interleavings of two.

use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long to wait where there was no room, before looking again.
const PAUSE: Duration = Duration::from_secs(1);

/// Bytes that may be written.
#[derive(Debug)]
pub(super) struct Room(Mutex<Measured>);

#[derive(Debug)]
struct Measured {
    bytes: u64,
    /// When there was none, not to look again before.
    look_again: Instant,
}

impl Room {
    /// Nothing, until it is measured.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Measured { bytes: 0, look_again: Instant::now() }))
    }

    /// Takes `cost` bytes of it, if there are so many; where there are not, `measure` says how many there
    /// are now, for one thread at a time. Never takes more than was measured.
    ///
    /// # Errors
    /// What `measure` says.
    pub(super) fn take(
        &self,
        cost: u64,
        measure: impl FnOnce() -> io::Result<u64>,
    ) -> io::Result<bool> {
        let mut room = self.0.lock();
        if room.bytes < cost && Instant::now() >= room.look_again {
            room.bytes = measure()?;
            let pause = if room.bytes < cost { PAUSE } else { Duration::ZERO };
            room.look_again = Instant::now() + pause;
        }
        let has_room = room.bytes >= cost;
        room.bytes -= if has_room { cost } else { 0 };
        Ok(has_room)
    }
}
