//! How results, warnings and failures are shown.

use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::failure::{Code, Failure};
use crate::names::{printable, printable_json};

/// Where and how to speak.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// JSON on standard output, results and failures alike.
    pub(super) json: bool,
    /// No warnings, no progress.
    pub(super) quiet: bool,
}

impl Output {
    /// Prints one JSON document.
    pub(super) fn print_json(&self, value: &impl Serialize) -> Result<(), Failure> {
        print_document(serde_json::to_string_pretty(value))
    }

    /// Prints a JSON document on one line, where more of them follow.
    pub(super) fn print_json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        print_document(serde_json::to_string(value))
    }

    /// Prints a line for people, in which nothing is left for a terminal to obey.
    pub(super) fn print_line(&self, line: &str) -> Result<(), Failure> {
        let line = printable(line);
        writeln!(std::io::stdout(), "{line}").map_err(|error| stdout_failed(&error))
    }

    /// Says something that is no failure.
    pub(super) fn warn(&self, message: &str) {
        if !self.quiet {
            say(&format!("thawfs: warning: {message}"));
        }
    }

    /// Shows a failure, and gives its exit status.
    pub(super) fn fail(&self, failure: &Failure) -> ExitCode {
        if self.json && self.print_json_line(failure).is_ok() {
            return ExitCode::from(failure.code.exit_status());
        }
        if failure.code == Code::Failed && failure.message == BROKEN_PIPE {
            // The reader had enough (`thawfs ls … | head`): no failure of anybody.
            return ExitCode::from(failure.code.exit_status());
        }
        if failure.list.is_empty() {
            say(&format!("thawfs: {failure}"));
        } else {
            let first = Failure { list: Vec::new(), ..failure.clone() };
            say(&format!("thawfs: {first}:"));
            failure.list.iter().for_each(|item| say(&format!("  {item}")));
        }
        ExitCode::from(failure.code.exit_status())
    }
}

fn print_document(json: serde_json::Result<String>) -> Result<(), Failure> {
    let json = json.map_err(|error| stdout_failed(&error.into()))?;
    let json = printable_json(&json);
    writeln!(std::io::stdout(), "{json}").map_err(|error| stdout_failed(&error))
}

/// Says a line on standard error, as [`Output::print_line`] prints one. That nobody listens is no reason
/// to stop.
pub(super) fn say(line: &str) {
    let line = printable(line);
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The message that stands for a reader who went away.
const BROKEN_PIPE: &str = "standard output was closed";

/// Standard output could not be written.
pub(super) fn stdout_failed(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Failure::new(Code::Failed, BROKEN_PIPE);
    }
    Failure::new(Code::Failed, format!("cannot write to standard output: {error}"))
}

/// Bytes for people: `512 B`, `1.5 KiB`, `20 MiB`.
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for larger in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A moment for people, in UTC: `2026-01-31 23:59`.
pub(super) fn human_time(seconds: i64) -> String {
    chrono::DateTime::from_timestamp(seconds, 0)
        .map_or_else(|| seconds.to_string(), |time| time.format("%Y-%m-%d %H:%M").to_string())
}

/// How long ago a moment was, for people: `3 h 20 min`. `since` is in seconds since the epoch.
pub(super) fn human_age(since: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let seconds = now.saturating_sub(since);
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (20 << 20, "20 MiB"),
            (3 << 40, "3.0 TiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
