//! `thawfs unmount`.

use super::mount::lock;
use super::output::Output;
use crate::failure::Failure;
use crate::server::{Manner, held_on, resolve_mountpoint, unmount_locked};
use clap::{Args, ValueHint};
use std::path::PathBuf;

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
        let held = held_on(&mountpoint);
        unmount_locked(&mountpoint, manner)?;
        if let Some(said) = held.and_then(|(upper, held)| held.in_words(&upper)) {
            output.warn(&said);
        }
    }
    Ok(())
}
