//! `thawfs mount`.

use std::io::Read;
use std::path::Path;

use super::groups::{AheadArgs, ReadingArgs, SourceArgs, StoreArgs};
use super::{options, output::Output};
use crate::backup::SourceRequest;
use crate::cache::DiskLimit;
use crate::failure::{Code, Failure};
use crate::inode_ops::{Directory, DirectoryId, Location};
use crate::server::state::{Lock, lock_directory};
use crate::server::{
    MountRequest, Ready, ServerProgram, check_free, restart_limited, restrict, serve,
    start_detached,
};
use crate::store::Source;
use clap::{Args, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    #[command(flatten)]
    pub(crate) ahead: AheadArgs,

    /// Where to mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) mountpoint: PathBuf,

    /// Keep changes in this directory (overlayfs format) [default: one that is removed at unmount].
    #[arg(long, value_name = "DIR", help_heading = "Changes", value_hint = ValueHint::DirPath)]
    pub(crate) upper: Option<PathBuf>,

    /// A directory on the same file system as the upper, for work in progress [default: .NAME.work
    /// beside the upper].
    #[arg(long, value_name = "DIR", help_heading = "Changes", requires = "upper",
          value_hint = ValueHint::DirPath)]
    pub(crate) workdir: Option<PathBuf>,

    /// Put the changes in the upper onto the newest backup that checkpoints of them have become, and free
    /// what is in that: the upper needs as much less room, and the mount is of that backup from then on.
    /// SOURCE is what it was mounted with before.
    #[arg(long, help_heading = "Changes", conflicts_with_all = ["keep_upper", "read_only"])]
    pub(crate) rebase: bool,

    /// Do not remove the upper that was made for this mount.
    #[arg(long, help_heading = "Changes", conflicts_with_all = ["upper", "read_only"])]
    pub(crate) keep_upper: bool,

    /// Allow no changes; there is no upper then.
    #[arg(long, visible_alias = "ro", help_heading = "Changes",
          conflicts_with_all = ["upper", "workdir"])]
    pub(crate) read_only: bool,

    /// The source to show in /proc/mounts [default: SOURCE without its query].
    #[arg(long, value_name = "NAME", help_heading = "Mount")]
    pub(crate) fsname: Option<String>,

    /// Stay attached until unmounted; log to standard error.
    #[arg(long, short, help_heading = "Mount")]
    pub(crate) foreground: bool,

    /// Options as mount(8) writes them: ro, allow_other, suid, dev, noexec, noatime, upper=DIR,
    /// workdir=DIR, uid=N, gid=N, squash_to_root, uidmapping=RANGES, gidmapping=RANGES,
    /// entry_ttl=TIME, attr_ttl=TIME, max_nodes=N, no_passthrough, …
    ///
    /// Without suid, no program of the mount gets the rights of its owner; without dev, no device in
    /// it can be opened.
    #[arg(short = 'o', value_name = "OPTIONS", help_heading = "Mount", action = clap::ArgAction::Append)]
    pub(crate) options: Vec<OsString>,
}

/// Mounts, and returns when the mount answers (or, in the foreground, when it is gone).
pub(super) fn mount(args: MountArgs, output: &Output) -> Result<(), Failure> {
    if args.foreground {
        // This process is the server.
        restart_limited();
    }
    let mut request = MountRequest {
        upper: args.upper,
        workdir: args.workdir,
        rebase: args.rebase,
        keep_upper: args.keep_upper,
        read_only: args.read_only,
        fsname: args.fsname,
        share_trace: args.ahead.share_trace,
        fill: args.ahead.fill,
        ..MountRequest::new(source_request(&args.source)?, args.mountpoint)
    };
    for option in args.options.iter().flat_map(|text| options::split(text)) {
        option.apply(&mut request)?;
    }
    start(request, args.foreground, output)
}

/// Starts `request`'s server and shows what it says. Shared with the mount(8) helper.
pub(super) fn start(
    mut request: MountRequest,
    foreground: bool,
    output: &Output,
) -> Result<(), Failure> {
    request.check()?;
    // Open until the server has them, so that no others get their numbers.
    let _found = prepare(&mut request)?;
    let shown = request.mountpoint.display().to_string();
    let lock = lock(&request.mountpoint, output)?;
    check_free(&request.mountpoint)?;
    if is_occupied(&request.mountpoint) {
        output.warn(&format!("{shown} is not empty; what is in it is hidden until the unmount"));
    }
    if !foreground {
        return show(&start_detached(&ServerProgram::this()?, &request)?, output);
    }
    // This process is the server.
    restrict(&request.source);
    let mut lock = Some(lock);
    serve(&request, request.source.open()?, |ready, _log| {
        lock.take();
        show(&ready, output).map_err(std::io::Error::other)
    })
}

/// Waits until no other process mounts, unmounts, restores or backs up `dir`.
pub(super) fn lock(dir: &Path, output: &Output) -> Result<Lock, Failure> {
    lock_directory(dir, || {
        let shown = dir.display();
        output.warn(&format!("waiting for another thawfs that is busy with {shown}"));
    })
}

pub(super) fn show(ready: &Ready, output: &Output) -> Result<(), Failure> {
    ready.warnings.iter().for_each(|warning| output.warn(warning));
    if output.json {
        return output.print_json(ready);
    }
    if output.quiet {
        return Ok(());
    }
    let mut line = format!("{} on {}", ready.source, ready.mountpoint.display());
    match &ready.upper {
        Some(upper) => line.push_str(&format!(", changes in {}", upper.display())),
        None => line.push_str(", read-only"),
    }
    output.print_line(&line)
}

/// What to open, from the command line.
pub(super) fn source_request(args: &SourceArgs) -> Result<SourceRequest, Failure> {
    Ok(SourceRequest {
        disk_cache: args.disk.limit()?,
        ..request_for(&args.source, &args.store, &args.reading)
    })
}

/// The same without the disk cache, for a command that takes several sources, or reads them to the
/// end.
pub(super) fn request_for(source: &str, store: &StoreArgs, reading: &ReadingArgs) -> SourceRequest {
    SourceRequest {
        source: source.to_owned(),
        access: store.access(),
        offset: reading.offset,
        cache_memory: reading.cache_memory,
        disk_cache: DiskLimit::Off,
        current: None,
    }
}

/// The directory to mount on, and its number.
pub(super) fn find_mountpoint(path: &Path) -> Result<(Directory, DirectoryId), Failure> {
    check_not_source(path, Code::Mountpoint)?;
    let shown = path.display();
    let found = Directory::open(path).and_then(|found| found.id().map(|id| (found, id)));
    found.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => {
            Failure::new(Code::Mountpoint, format!("the mountpoint {shown} does not exist"))
                .hint(format!("make it first: mkdir -p {shown}"))
        }
        Some(libc::ENOTCONN) => {
            Failure::new(Code::Mountpoint, format!("a dead mount is still on {shown}"))
                .hint(format!("clear it first: thawfs unmount --dead {shown}"))
        }
        Some(libc::ENOTDIR) => {
            Failure::new(Code::Mountpoint, format!("the mountpoint {shown} is not a directory"))
        }
        _ => Failure::new(Code::Mountpoint, format!("the mountpoint {shown}: {error}")),
    })
}

/// Refuses what is a source where a directory is due: the two are easily swapped.
pub(super) fn check_not_source(directory: &Path, code: Code) -> Result<(), Failure> {
    let text = directory.to_string_lossy();
    let is_archive = || {
        let mut magic = [0; 4];
        let file = std::fs::File::open(directory);
        file.and_then(|mut file| file.read_exact(&mut magic)).is_ok() && is_squashfs(&magic)
    };
    let is_url = text.contains("://") && !directory.is_dir();
    // Of a pipe, opening would wait for a writer.
    let is_source = is_url || directory.is_file() && is_archive();
    if !is_source {
        return Ok(());
    }
    let shown = text.parse::<Source>().map_or_else(|_| "a URL".to_owned(), |it| it.to_string());
    Err(Failure::new(code, format!("{shown} is a source, where a directory is due"))
        .hint("the source comes first, the directory behind it"))
}

/// Whether a file that begins so is an archive.
pub(super) fn is_squashfs(start: &[u8]) -> bool {
    start.starts_with(b"hsqs")
}

/// Makes the request's paths absolute (a server has another working directory), makes upper and
/// work directories that do not exist yet, and refuses those that overlap with the mountpoint. Gives all
/// of them as they were found.
fn prepare(request: &mut MountRequest) -> Result<Vec<Directory>, Failure> {
    if request.read_only && (request.upper.is_some() || request.workdir.is_some()) {
        return Err(Failure::new(Code::Usage, "a read-only mount takes no upper directory"));
    }
    if request.workdir.is_some() && request.upper.is_none() {
        return Err(Failure::new(Code::Usage, "a work directory needs an upper directory"));
    }
    request.source.make_absolute();
    let (mountpoint, id) = find_mountpoint(&request.mountpoint)?;
    request.mountpoint = mountpoint.path().to_owned();
    request.found.mountpoint = Some(id);
    let mut found = vec![mountpoint];
    for (what, path, id) in [
        ("upper", &mut request.upper, &mut request.found.upper),
        ("work", &mut request.workdir, &mut request.found.workdir),
    ] {
        let Some(path) = path else { continue };
        let failed = |error: std::io::Error| {
            Failure::new(Code::Upper, format!("the {what} directory {}: {error}", path.display()))
        };
        let place = Location::find_or_make_above(path).map_err(failed)?;
        let directory = place.open_or_make(0o777).map_err(failed)?;
        *id = Some(directory.id().map_err(failed)?);
        let real = directory.path().to_owned();
        if real.starts_with(&request.mountpoint) || request.mountpoint.starts_with(&real) {
            return Err(Failure::new(
                Code::Upper,
                format!(
                    "the {what} directory {} and the mountpoint {} lie within each other",
                    real.display(),
                    request.mountpoint.display()
                ),
            )
            .hint("keep changes in a directory elsewhere"));
        }
        *path = real;
        found.push(directory);
    }
    Ok(found)
}

fn is_occupied(mountpoint: &Path) -> bool {
    std::fs::read_dir(mountpoint).is_ok_and(|mut entries| entries.next().is_some())
}
