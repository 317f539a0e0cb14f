//! `thawfs unmount`.

use super::mount::lock;
use super::output::Output;
use super::published::{self, NotPublished};
use crate::failure::{Code, Failure};
use crate::server::{
    Manner, held_on, resolve_mountpoint, unmount_locked, unpublished_in_words, unpublished_on,
};
use clap::{Args, ValueHint};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

#[derive(Debug, Args)]
pub(crate) struct UnmountArgs {
    /// What to unmount.
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    pub(crate) mountpoints: Vec<PathBuf>,

    /// Detach now, end when the last file in it is closed.
    #[arg(long, short = 'z')]
    pub(crate) lazy: bool,

    /// Only if its server was killed; a mount that lives is left alone.
    #[arg(long, conflicts_with = "lazy")]
    pub(crate) dead: bool,

    /// Wait first until all checkpoints that are to be backups are in the bucket.
    #[arg(long, conflicts_with = "dead")]
    pub(crate) wait_published: bool,
}

pub(super) fn unmount(args: &UnmountArgs, output: &Output) -> Result<(), Failure> {
    let manner = match (args.lazy, args.dead) {
        (true, _) => Manner::Lazy,
        (_, true) => Manner::Dead,
        _ => Manner::Whole,
    };
    for mountpoint in &args.mountpoints {
        let mountpoint = resolve_mountpoint(mountpoint)?;
        let _lock = lock(&mountpoint, output)?;
        if args.wait_published {
            wait_published(&mountpoint, output)?;
        }
        let (held, unpublished) = (held_on(&mountpoint), unpublished_on(&mountpoint));
        unmount_locked(&mountpoint, manner)?;
        if let Some((_, unpublished)) = unpublished {
            output.warn(&unpublished_in_words(&unpublished, held.as_ref()));
        }
        if let Some(said) = held.and_then(|(upper, held)| held.in_words(&upper)) {
            output.warn(&said);
        }
    }
    Ok(())
}

/// Waits until all that is to be published is.
fn wait_published(mountpoint: &Path, output: &Output) -> Result<(), Failure> {
    let never = AtomicBool::new(false);
    while let Some((control, unpublished)) = unpublished_on(mountpoint) {
        for id in &unpublished {
            let waited = published::wait(&control, (id, false), &never, output);
            let Err(NotPublished::Failed(failure)) = waited else { continue };
            let shown = mountpoint.display();
            let message = format!("checkpoint {id} of {shown} is not in the bucket");
            let message = format!("{message}: {}", failure.message);
            let failure = Failure { code: Code::BackupCreateFailed, message, ..failure };
            let hint = failure.hint.clone().unwrap_or_default();
            let ways =
                "it is still mounted; without --wait-published, it is unmounted all the same";
            return Err(match hint.is_empty() {
                true => failure.hint(ways),
                false => failure.hint(format!("{hint}; {ways}")),
            });
        }
    }
    Ok(())
}
