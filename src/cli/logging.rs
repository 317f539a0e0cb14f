//! Messages on standard error, which of a detached server is its log.

use std::io::Write;

use log::{Level, Log, Metadata, Record};

use crate::environment::Environment;
use crate::names::printable;

/// Messages of the libraries and ours go to standard error, from warnings up; `THAWFS_LOG` takes
/// other levels, such as `debug` or `thawfs::cache=trace`.
pub(super) fn start() {
    let environment = Environment::of_process();
    let logger = env_logger::Builder::new()
        .parse_filters(environment.get("THAWFS_LOG").unwrap_or("warn"))
        .format(|out, record| {
            let message = printable(record.args().to_string());
            writeln!(out, "{} {}: {message}", out.timestamp_millis(), record.level())
        })
        .build();
    log::set_max_level(logger.filter());
    // Fails where there is a logger already, which then has its own way.
    let _ = log::set_boxed_logger(Box::new(Weighed(logger)));
}

/// A logger to which what is no error does not come as one.
struct Weighed(env_logger::Logger);

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
    use super::*;

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
