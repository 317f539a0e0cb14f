//! The mount(8) helper: `mount.fuse.thawfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`.
//!
//! mount(8) and systemd call it for `mount -t fuse.thawfs` and for lines of fstab; its exit codes
//! are those mount(8) documents.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use super::groups::disk_limit_of_environment;
use super::mount::{find_mountpoint, start};
use super::options::{self, MountOption};
use super::output::Output;
use super::remount::remount;
use crate::backup::SourceRequest;
use crate::failure::{Code, Failure};
use crate::server::MountRequest;

/// mount(8): incorrect invocation or permissions.
const INVOCATION: u8 = 1;
/// mount(8): mount failure.
const MOUNT_FAILED: u8 = 32;

/// What mount(8) passes.
#[derive(Default)]
struct Invocation {
    words: Vec<OsString>,
    options: Vec<MountOption>,
    /// `-s`: ignore options nobody knows.
    sloppy: bool,
    /// `-f`: do everything but mount.
    fake: bool,
}

pub(super) fn run(arguments: &[OsString]) -> ExitCode {
    let output = Output { json: false, quiet: true };
    match parse(arguments).and_then(|invocation| mount(invocation, &output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(mut failure) => {
            failure.hint = failure.hint.as_deref().map(options::respell);
            output.fail(&failure);
            let usage = failure.code == Code::Usage;
            ExitCode::from(if usage { INVOCATION } else { MOUNT_FAILED })
        }
    }
}

fn parse(arguments: &[OsString]) -> Result<Invocation, Failure> {
    let mut invocation = Invocation::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-o") => {
                let text = arguments.next().map(OsString::as_os_str).unwrap_or(OsStr::new(""));
                invocation.options.extend(options::split(text));
            }
            // Type and namespace are mount(8)'s to act on.
            Some("-t" | "-N") => {
                arguments.next();
            }
            Some(flags) if flags.starts_with('-') && flags.len() > 1 => {
                invocation.sloppy |= flags.contains('s');
                invocation.fake |= flags.contains('f');
            }
            _ => invocation.words.push(argument.clone()),
        }
    }
    Ok(invocation)
}

fn mount(invocation: Invocation, output: &Output) -> Result<(), Failure> {
    let [source, mountpoint] = invocation.words.as_slice() else {
        return Err(Failure::new(Code::Usage, "a source and a directory are needed")
            .hint("mount -t fuse.thawfs SOURCE DIR -o OPTIONS"));
    };
    let mountpoint = Path::new(mountpoint);
    if invocation.options.iter().any(|option| option.is("remount")) {
        return remount(mountpoint, &invocation.options, invocation.sloppy);
    }
    let disk_cache = disk_limit_of_environment()?;
    let source = SourceRequest { disk_cache, ..SourceRequest::new(source.to_string_lossy()) };
    let mut request = MountRequest::new(source, mountpoint.to_owned());
    for option in &invocation.options {
        match option.apply(&mut request) {
            Err(failure) if invocation.sloppy => tracing::debug!("{failure}"),
            applied => applied?,
        }
    }
    if invocation.fake {
        return find_mountpoint(mountpoint).map(drop);
    }
    start(request, false, output)
}
