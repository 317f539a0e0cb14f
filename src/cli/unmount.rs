//! `thawfs unmount`.

use super::args::UnmountArgs;
use super::mount::lock;
use super::output::Output;
use crate::failure::Failure;
use crate::server::{resolve_mountpoint, unmount as unmount_one};

pub(super) fn unmount(args: &UnmountArgs, output: &Output) -> Result<(), Failure> {
    for mountpoint in &args.mountpoints {
        let mountpoint = resolve_mountpoint(mountpoint)?;
        let _lock = lock(&mountpoint, output)?;
        unmount_one(&mountpoint, args.lazy)?;
    }
    Ok(())
}
