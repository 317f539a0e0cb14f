//! `thawfs unmount`.

use super::args::UnmountArgs;
use super::mount::lock;
use super::output::Output;
use crate::failure::Failure;
use crate::server::{Manner, resolve_mountpoint, unmount as unmount_one};

pub(super) fn unmount(args: &UnmountArgs, output: &Output) -> Result<(), Failure> {
    let manner = match (args.lazy, args.dead) {
        (true, _) => Manner::Lazy,
        (_, true) => Manner::Dead,
        _ => Manner::Whole,
    };
    for mountpoint in &args.mountpoints {
        let mountpoint = resolve_mountpoint(mountpoint)?;
        let _lock = lock(&mountpoint, output)?;
        unmount_one(&mountpoint, manner)?;
    }
    Ok(())
}
