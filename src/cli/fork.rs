//! `thawfs fork`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};

use super::mount::{find_mountpoint, lock};
use super::options;
use super::output::Output;
use crate::failure::{Code, Failure};
use crate::server::Mounted;
use crate::server::checkpoints::{ForkRequest, Forked};
use crate::server::{Found, MountRequest, resolve_mountpoint};

#[derive(Debug, Args)]
#[command(after_help = "\
NEW is mounted with all that DIR has at that moment, and from then on each of the two goes its own way.
Nothing is copied, and nothing fetched that this machine has. Without --at a checkpoint is made first.
  thawfs fork ~/work ~/try                 what ~/work is now
  thawfs fork ~/work ~/old --at before     what it was at a checkpoint
  thawfs unmount ~/try                     and it is gone, with its changes
It is mounted as DIR is, unless options are given, and is a mount as others: it has checkpoints of its own, and can be
rolled back to those of DIR that it lies on, and forked. Either can be unmounted first.")]
pub(crate) struct ForkArgs {
    /// A mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,

    /// Where to mount it: an empty directory, which is made if it does not exist.
    #[arg(value_name = "NEW", value_hint = ValueHint::DirPath)]
    pub(crate) new: PathBuf,

    /// At which checkpoint: its id, the first eight digits of that or more, or its name [default: a new one].
    #[arg(long, value_name = "ID|NAME")]
    pub(crate) at: Option<String>,

    /// Do not remove the changes in the fork when it is unmounted.
    #[arg(long)]
    pub(crate) keep_upper: bool,

    /// Options as mount(8) writes them, besides those that DIR is mounted with.
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    pub(crate) options: Vec<OsString>,
}

/// A directory that was made for a mount, removed again unless that comes to be.
struct Made(Option<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            // One that somebody uses by now stays.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

pub(super) fn fork(args: &ForkArgs, output: &Output) -> Result<(), Failure> {
    let asked = Mounted::at(&args.dir)?;
    let named = resolve_mountpoint(&args.new).map_err(|failure| {
        let message = format!("the mountpoint {}: {}", args.new.display(), failure.message);
        Failure { code: Code::Mountpoint, message, ..failure }
    })?;
    asked.check_fork_place(&named)?;
    let mut made = make(&args.new)?;
    let (directory, id) = find_mountpoint(&args.new)?;
    let new = directory.path().to_owned();
    asked.check_fork_place(&new)?;
    let _lock = lock(&new, output)?;
    asked.check_fork_free(&directory)?;
    let held = asked.to_be_forked(&new, Found::at(id))?;
    let was_read_only = held.read_only;
    let mut mount = MountRequest { keep_upper: args.keep_upper, ..held };
    for option in args.options.iter().flat_map(|text| options::split(text)) {
        option.apply(&mut mount)?;
    }
    if mount.read_only && !was_read_only {
        let message = "a fork is there to be written to: it cannot be read-only";
        return Err(Failure::new(Code::Usage, message).hint("leave ro out"));
    }
    if mount.upper.is_some() || mount.workdir.is_some() {
        let message = "the changes in a fork go to a directory of its own: it takes no upper";
        return Err(Failure::new(Code::Usage, message).hint("--keep-upper keeps them"));
    }
    let done = asked.fork_as(ForkRequest { at: args.at.clone(), mount })?;
    made.0 = None;
    let Forked { id, name, ready } = &done;
    ready.warnings.iter().for_each(|warning| output.warn(warning));
    if output.json {
        return output.print_json_line(&serde_json::json!({
            "id": id, "name": name, "dir": asked.shown, "mountpoint": new.to_string_lossy(),
            "pid": ready.pid, "upper": ready.upper.as_deref().map(Path::to_string_lossy),
        }));
    }
    let at = match name {
        None => id.to_string(),
        Some(name) => format!("{id} ({name})"),
    };
    output.print_line(&format!("{} is {} at {at}", new.display(), asked.shown))
}

/// Makes `new` if it does not exist.
fn make(new: &Path) -> Result<Made, Failure> {
    match std::fs::create_dir(new) {
        Ok(()) => Ok(Made(Some(new.to_owned()))),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Made(None)),
        Err(error) => {
            let message = format!("the mountpoint {}: {error}", new.display());
            Err(Failure::new(Code::Mountpoint, message))
        }
    }
}
