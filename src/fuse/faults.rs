//! What went wrong below a mount, for whoever asks why a program got EIO.

use std::fmt::Display;
use std::time::SystemTime;

use parking_lot::Mutex;

/// A failure of the archive or of the network.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it was answered to the program.
    pub when: SystemTime,
    /// The reason, one line.
    pub reason: String,
}

/// How many requests failed below the overlay, and the last reason.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    seen: Mutex<(u64, Option<Fault>)>,
}

impl Faults {
    /// Logs `reason` and keeps it as the last one.
    pub(super) fn record(&self, reason: &dyn Display) {
        let fault = Fault { when: SystemTime::now(), reason: reason.to_string() };
        tracing::error!("{}", fault.reason);
        let mut seen = self.seen.lock();
        seen.0 += 1;
        seen.1 = Some(fault);
    }

    /// The number of failed requests so far, and the last failure.
    pub(crate) fn seen(&self) -> (u64, Option<Fault>) {
        self.seen.lock().clone()
    }
}
