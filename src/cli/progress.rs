//! How far long work is: the same line for all of it, on a terminal alone.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Output;

/// What takes less shows nothing.
const SHOWN_AFTER: Duration = Duration::from_millis(250);

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How far some work is.
pub(super) struct At {
    /// What it does, in one word.
    doing: &'static str,
    /// Of how much, once that is known.
    total: u64,
    done: u64,
    unit: Unit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Seconds,
}

impl At {
    /// `done` of `total` bytes, which are 0 while nobody knows.
    pub(super) const fn bytes(doing: &'static str, done: u64, total: u64) -> Self {
        Self { doing, total, done, unit: Unit::Bytes }
    }

    /// `done` of `total` seconds.
    pub(super) const fn seconds(doing: &'static str, done: u64, total: u64) -> Self {
        Self { doing, total, done, unit: Unit::Seconds }
    }

    /// Somewhere: nobody will know.
    pub(super) const fn unknown(doing: &'static str) -> Self {
        Self::bytes(doing, 0, 0)
    }

    fn template(&self) -> &'static str {
        match self.unit {
            _ if self.total == 0 => "{msg} {spinner} {elapsed}",
            Unit::Bytes => "{msg} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
            Unit::Seconds => "{msg} {wide_bar} {pos}/{len} s",
        }
    }
}

/// Shows how far some work is until it is dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Shows what `look` says, ten times a second, if the work lasts and somebody looks.
    pub(super) fn progress(&self, look: impl Fn() -> At + Send + 'static) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let ended = Arc::new(AtomicBool::new(false));
        let is_seen = !self.quiet && !self.json && std::io::stderr().is_terminal();
        let thread = is_seen.then(|| {
            let (bar, ended) = (bar.clone(), Arc::clone(&ended));
            std::thread::spawn(move || show(&bar, &ended, look))
        });
        Progress { bar, ended, thread }
    }
}

impl Progress {
    /// The line itself, for who says something while it is shown: [`ProgressBar::suspend`].
    pub(super) fn line(&self) -> ProgressBar {
        self.bar.clone()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only shows.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

fn show(bar: &ProgressBar, ended: &AtomicBool, look: impl Fn() -> At) {
    std::thread::park_timeout(SHOWN_AFTER);
    if ended.load(Ordering::Relaxed) {
        return;
    }
    bar.set_draw_target(ProgressDrawTarget::stderr());
    let mut template = "";
    while !ended.load(Ordering::Relaxed) {
        let at = look();
        if template != at.template()
            && let Ok(style) = ProgressStyle::with_template(at.template())
        {
            bar.set_style(style);
            template = at.template();
        }
        bar.set_message(at.doing);
        bar.set_length(at.total);
        bar.set_position(at.done);
        bar.tick();
        std::thread::park_timeout(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_one_that_can_be_shown() {
        for at in [At::bytes("a", 1, 2), At::seconds("a", 1, 2), At::unknown("a")] {
            let template = at.template();
            assert!(template.starts_with("{msg} "), "{template}");
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
