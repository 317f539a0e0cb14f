//! Messages on standard error, which of a detached server is its log.
//!
//! Each is one line: when, how grave, and what; with the spans that it was said in, outermost first, where the
//! level lets them be. Libraries that write to `log` are heard, too.

use std::fmt::{self, Write};
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_log::log::{self, Level, Log, Metadata, Record};
use tracing_log::{AsLog, LogTracer, NormalizeEvent};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

use super::output::say;
use crate::environment::Environment;
use crate::names::printable;

/// Messages of the libraries and ours go to standard error, from warnings up, or from errors where the
/// command is `quiet`; `THAWFS_LOG` takes other levels, such as `debug` or `thawfs::cache=trace`.
pub(super) fn start(quiet: bool) {
    let filter = match Environment::of_process().get("THAWFS_LOG") {
        Some(words) => parse(words),
        // What the HTTP/2 library warns of is the peer's doing, and no request fails on it.
        None => Targets::new()
            .with_default(if quiet { LevelFilter::ERROR } else { LevelFilter::WARN })
            .with_target("h2", LevelFilter::ERROR),
    };
    // Each fails where there is a logger already, which then has its own way.
    if tracing::subscriber::set_global_default(subscriber(filter, std::io::stderr)).is_ok() {
        let _ = log::set_boxed_logger(Box::new(Weighed(LogTracer::new())));
        log::set_max_level(LevelFilter::current().as_log());
    }
}

/// What writes messages to `out`, a line at a time.
fn subscriber<W>(filter: Targets, out: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().event_format(Line).with_writer(out);
    tracing_subscriber::registry().with(filter).with(lines)
}

/// Levels by module, separated by commas. What makes no sense is said, and passed over.
fn parse(words: &str) -> Targets {
    let mut filter = Targets::new();
    for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word.parse::<Targets>() {
            Ok(one) => {
                filter = match one.default_level() {
                    Some(level) => filter.with_default(level),
                    None => filter.with_targets(one),
                }
            }
            Err(error) => say(&format!("thawfs: warning: THAWFS_LOG: {word}: {error}")),
        }
    }
    filter
}

/// The form of a message.
struct Line;

impl<S, F> FormatEvent<S, F> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    F: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, F>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut words = Words::default();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            words.0.push_str(span.name());
            match span.extensions().get::<FormattedFields<F>>() {
                Some(fields) if !fields.is_empty() => write!(words.0, "{{{fields}}}: ")?,
                _ => words.0.push_str(": "),
            }
        }
        event.record(&mut words);
        let of_log = event.normalized_metadata();
        let level = of_log.as_ref().map_or(event.metadata().level(), |metadata| metadata.level());
        let now = DateTime::<Utc>::from(SystemTime::now());
        let now = now.to_rfc3339_opts(SecondsFormat::Millis, true);
        writeln!(out, "{now} {level}: {}", printable(words.0))
    }
}

/// What an event says: its message, and its fields.
#[derive(Default)]
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            // Where the message is from, of which there is no word in a line.
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

/// A logger to which what is no error does not come as one.
struct Weighed(LogTracer);

impl Log for Weighed {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() < Level::Debug && (answers_nobody(record) || is_of_verifier(record)) {
            let (args, target) = (*record.args(), record.target());
            self.0.log(&Record::builder().level(Level::Debug).target(target).args(args).build());
        } else {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Whether this is the FUSE library's word that nobody waits for an answer any more: the kernel has given
/// the request up (`ENOENT`), or the mount is gone (`ENODEV`).
fn answers_nobody(record: &Record<'_>) -> bool {
    if !record.target().starts_with("fuser") {
        return false;
    }
    let text = record.args().to_string();
    text.starts_with("Failed to send FUSE reply")
        && [libc::ENOENT, libc::ENODEV]
            .iter()
            .any(|errno| text.ends_with(&format!("(os error {errno})")))
}

/// Whether this is a certificate that is no good: the failure tells of it, and the verifier of every
/// attempt.
fn is_of_verifier(record: &Record<'_>) -> bool {
    record.level() == Level::Error && record.target().starts_with("rustls_platform_verifier")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What is written where `filter` holds, without the time.
    fn written(filter: Targets, work: impl FnOnce()) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let subscriber = subscriber(filter, Arc::new(file.reopen().unwrap()));
        tracing::subscriber::with_default(subscriber, work);
        let text = std::fs::read_to_string(file.path()).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn a_message_is_one_line_whatever_it_is_about() {
        let lines = written(parse("info,, thawfs=debug,other=off"), || {
            tracing::warn!("{} is\n gone \u{1b}[31m", "a\u{202e}b");
            tracing::debug_span!("read", name = "c\n\u{1b}d", n = 7).in_scope(|| {
                tracing::debug_span!("get").in_scope(|| tracing::debug!(bytes = 4, "within"));
            });
            tracing::trace!("not told");
            tracing::info!(target: "elsewhere", "told");
            tracing::debug!(target: "elsewhere", "not told");
            tracing::error!(target: "other", "not told");
        });
        let expected = [
            r"WARN: a\u{202e}b is\n gone \u{1b}[31m",
            r#"DEBUG: read{name="c\n\u{1b}d" n=7}: get: within bytes=4"#,
            "INFO: told",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn libraries_that_write_to_log_are_heard() {
        let lines = written(parse("info"), || {
            let logger = Weighed(LogTracer::new());
            for (target, level, text) in [
                ("fuser::session", Level::Warn, "a\nb"),
                ("fuser::reply", Level::Error, "Failed to send FUSE reply: gone (os error 2)"),
                ("fuser::reply", Level::Error, "Failed to send FUSE reply: no (os error 22)"),
                ("rustls_platform_verifier", Level::Error, "no good"),
                ("reqwest", Level::Debug, "not told"),
            ] {
                let args = format_args!("{text}").to_string();
                let mut record = Record::builder();
                let record = record.target(target).level(level);
                logger.log(&record.args(format_args!("{args}")).build());
            }
        });
        let expected = [r"WARN: a\nb", "ERROR: Failed to send FUSE reply: no (os error 22)"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn only_answers_that_nobody_waits_for_are_no_errors() {
        let failed = |errno| {
            format!("Failed to send FUSE reply: {}", std::io::Error::from_raw_os_error(errno))
        };
        for (target, text, expected) in [
            ("fuser::reply", failed(libc::ENOENT), true),
            ("fuser::reply", failed(libc::ENODEV), true),
            ("fuser::reply", failed(libc::EINVAL), false),
            ("fuser::reply", failed(libc::EINTR), false),
            ("fuser::session", "No such file or directory (os error 2)".to_owned(), false),
            ("thawfs::fuse", failed(libc::ENOENT), false),
        ] {
            let args = format_args!("{text}").to_string();
            let record = answers_nobody(
                &Record::builder().target(target).args(format_args!("{args}")).build(),
            );
            assert_eq!(record, expected, "{target}: {text}");
        }
    }
}
