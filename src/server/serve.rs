//! A server's life: open, mount, answer, clean up.
//!
//! Its directory and its lock come first, so that whatever it leaves when it is killed can be found. The
//! record comes once the mount answers, and the command hears of it last: what it was told of is there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::checkpoints::{Checkpoints, PublishTarget};
use super::control;
use super::directories::{Directories, cannot_use, find, open_upper_warning, state_failed};
use super::files_worker::FilesWorker;
use super::group::{Group, Groups};
use super::layers::Layers;
use super::mounts::{MountInfo, in_words, mounted_inside, read_mount_at, read_mounts};
use super::questions::Questions;
use super::rebase::{check_is_same, is_elsewhere, rebase};
use super::report::{
    ArchiveReport, BlockReport, ChangesReport, ChunkReport, DiskReport, FaultReport, LayersReport,
    Report, StoreReport,
};
use super::request::{MountRequest, Ready};
use super::state::{HostId, MountDir, Record, StateDir, check_outside_state};
use super::traces::Traces;
use super::write_back::WriteBack;
use crate::backup::{OpenArchive, Requests};
use crate::failure::{Code, Failure};
use crate::fuse::{Faults, Mount, MountOptions, Unmounter};
use crate::overlay::{self, Overlay};

/// Mounts and serves `request` until it is unmounted, from its source, which is `opened`. `ready` is
/// called once, when the merged tree answers, with the path of the log to write from then on; if it
/// fails the mount is taken down.
///
/// # Errors
/// When the mount cannot be made. Nothing is left behind then.
pub fn serve(
    request: &MountRequest,
    opened: OpenArchive,
    ready: impl FnOnce(Ready, &Path) -> io::Result<()>,
) -> Result<(), Failure> {
    serve_in(&Groups::stay("it runs in the foreground"), request, opened, ready)
}

/// As [`serve()`], in control groups that the process has entered.
pub(super) fn serve_in(
    groups: &Groups,
    request: &MountRequest,
    mut opened: OpenArchive,
    ready: impl FnOnce(Ready, &Path) -> io::Result<()>,
) -> Result<(), Failure> {
    request.check()?;
    check_outside_state(&request.mountpoint)?;
    let identity = request.owners.identity()?;
    let mountpoint = find(&request.mountpoint, request.found.mountpoint)
        .map_err(|error| cannot_use(Code::Mountpoint, "mountpoint", &request.mountpoint, &error))?;
    // Modes arrive whole from the kernel, or with the umask to apply.
    rustix::process::umask(rustix::fs::Mode::empty());
    raise_file_limit();
    let state = StateDir::locate();
    let (mount_dir, lock) = state.create_mount().map_err(state_failed)?;
    // Held until the process is no more: whoever waits for that waits for all of it.
    std::mem::forget(lock);
    let since = seconds_since_epoch(SystemTime::now());
    let mut directories = Directories::new(state, mount_dir.clone(), request);
    let mut upper = directories.open_upper(request, &opened.name, since)?;
    let mut said = Vec::new();
    if request.rebase
        && let Some(stack) = upper.take()
    {
        let rebased = rebase(request, opened, stack)?;
        (opened, upper, said) = (rebased.opened, Some(rebased.upper), rebased.said);
    }
    // They end with the mount, and with them what they have started; the rest lasts as long as the process.
    let requests = opened.take_requests();
    let mut options = MountOptions::new(request.fsname.as_deref().unwrap_or(&opened.name));
    options.read_only = request.read_only;
    options.flags = request.flags;
    options.allow_other = request.allow_other.unwrap_or(options.allow_other);
    options.entry_ttl = request.entry_ttl.unwrap_or(options.entry_ttl);
    options.attr_ttl = request.attr_ttl.unwrap_or(options.attr_ttl);
    options.max_nodes = request.max_nodes.unwrap_or(options.max_nodes);
    options.upper_stack_depth = upper
        .as_ref()
        .filter(|_| request.passthrough && rustix::process::geteuid().is_root())
        // What the kernel reads by itself moves st_atime as the upper's own mount has it.
        .filter(|_| !options.flags.no_atime())
        .and_then(|upper| upper.stack_depth);
    let upper_path = upper.as_ref().map(|upper| upper.path.clone());
    let (mut below, mut layers) = (Vec::new(), None);
    let upper = upper.map(|upper| {
        (below, layers) = (upper.below, Some(upper.layers));
        upper.upper
    });

    let behaviour = overlay::Options {
        no_atime: options.flags.no_atime(),
        no_dir_atime: options.flags.no_dir_atime(),
        ..overlay::Options::default()
    };
    let archive = Arc::clone(&opened.archive);
    let onto = layers.as_ref().and_then(|layers: &Layers| layers.manifest().onto().cloned());
    check_is_same(onto.as_ref(), &opened.name)?;
    let overlay = Overlay::stacked(archive, below, upper, behaviour)
        .map_err(|error| is_elsewhere(error, onto.as_ref()))?;
    let overlay = overlay.showing(identity.clone()).named(opened.as_mounted());
    let overlay = Arc::new(overlay);
    let mut warnings = request.owners.warnings(&overlay, &opened.archive, &identity);
    warnings.extend(said);
    warnings.extend(upper_path.as_ref().and_then(|upper| open_upper_warning(request, upper)));
    let faults = Arc::new(Faults::default());
    let hides_files = mountpoint.has_entries().unwrap_or(false);
    let tree = Arc::downgrade(&overlay);
    let mount = Mount::new(overlay, &mountpoint, &options, Arc::clone(&faults))
        .map_err(|error| mount_failed(&request.mountpoint, &error))?;
    // Nor is the file system that it is on in use any longer than the mount is there.
    drop(mountpoint);
    let (unmounter, kernel) = (mount.unmounter(&request.mountpoint), mount.kernel());
    let mounted = read_mount_at(&request.mountpoint).ok().flatten();
    let checkpoints = Checkpoints::new(
        (Weak::clone(&tree), kernel),
        request.mountpoint.clone(),
        mounted.clone(),
        opened.source.clone(),
        layers,
        PublishTarget::of(&opened, requests.as_ref().and_then(Requests::handle)),
    );
    let checkpoints = Arc::new(checkpoints);
    let signals = unmount_on_signal(unmounter.clone(), mounted.clone()).map_err(state_failed)?;
    let write_back = WriteBack::new(request.mountpoint.clone());
    let serving = std::thread::Builder::new()
        .name("thawfs-serve".into())
        .spawn(move || mount.serve(move || write_back.begin()))
        .map_err(state_failed)?;

    let record = Record {
        mountpoint: request.mountpoint.clone(),
        source: opened.name.clone(),
        pid: std::process::id(),
        upper: upper_path,
        upper_is_ours: request.upper.is_none() && !request.keep_upper,
        since,
        device: mounted.as_ref().map(|mount| mount.device.clone()),
        place: HostId::here(),
        groups: groups.own(),
    };
    if let Some(mount) = &mounted {
        raise_readahead(mount);
    }
    let traces =
        Traces::start(&opened, request.share_trace, request.fill).unwrap_or_else(|error| {
            tracing::warn!("nothing is fetched ahead: {error}");
            None
        });
    let found = groups.found().to_vec();
    let written = mount_dir.write_options(&request.on_record(&options));
    let answers =
        Answers { groups: found, tree, checkpoints: Arc::clone(&checkpoints), opened, faults };
    let told = written.and_then(|()| publish(&mount_dir, &record, answers));
    let told = told.and_then(|()| {
        let Record { mountpoint, source, pid, upper, .. } = record;
        ready(
            Ready { mountpoint, source, pid, upper, hides_files, warnings },
            &mount_dir.log_path(),
        )
    });
    if let Err(error) = told {
        // Nobody knows of the mount: take it down again.
        let _ = unmounter.unmount();
        let _ = serving.join();
        checkpoints.end(directories.stay());
        traces.map(Traces::finish).unwrap_or_default();
        return Err(Failure::new(
            Code::Failed,
            format!(
                "{} was mounted, but nobody could be told: {error}",
                request.mountpoint.display()
            ),
        ));
    }

    let ended = serving.join();
    signals.close();
    checkpoints.end(directories.stay());
    drop(directories);
    traces.map(Traces::finish).unwrap_or_default();
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::new(Code::Fuse, format!("the FUSE device failed: {error}"))),
        Err(_) => {
            Err(Failure::new(Code::Failed, "the serving thread panicked; please report this"))
        }
    }
}

/// Open files are the mount's users', not ours alone, so take all the descriptors we may have.
pub(super) fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit on open files stays as it is: {error}");
    }
}

/// Unmounts on SIGTERM, SIGINT, SIGHUP and SIGQUIT, once nothing is mounted inside any more; the server then
/// ends as after any unmount.
fn unmount_on_signal(
    unmounter: Unmounter,
    mounted: Option<MountInfo>,
) -> io::Result<signal_hook::iterator::Handle> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT])?;
    let handle = signals.handle();
    let waits = handle.clone();
    std::thread::Builder::new().name("thawfs-signals".into()).spawn(move || {
        if signals.forever().next().is_none() {
            return;
        }
        let mut told = false;
        while let Some(inside) = mounted.as_ref().and_then(inside_of) {
            if !told {
                tracing::warn!("asked to end, which waits for what is mounted inside: {inside}");
                told = true;
            }
            std::thread::sleep(Duration::from_millis(100));
            if waits.is_closed() {
                return;
            }
        }
        if let Err(error) = unmounter.unmount() {
            tracing::error!("cannot unmount: {error}");
        }
    })?;
    Ok(handle)
}

/// What would go with `mounted`, or is on top of it, in words.
fn inside_of(mounted: &MountInfo) -> Option<String> {
    let mounts = read_mounts().ok()?;
    let inside = mounted_inside(&mounts, mounted.id);
    (!inside.is_empty()).then(|| in_words(inside))
}

/// The kernel reads 128 KiB ahead by default, less than one round trip is worth. Only root may say
/// otherwise, and sysfs may be read-only in a container: then the default stays.
fn raise_readahead(mount: &MountInfo) {
    // The number is not from a stat of the mount, which would wait for ourselves: killed meanwhile, a
    // thread that does keeps the device open, and waits for ever.
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(error) = std::fs::write(&path, "1024") {
        tracing::debug!("readahead stays at the kernel's default: {path}: {error}");
    }
}

/// What a server tells of.
struct Answers {
    groups: Vec<Group>,
    tree: Weak<Overlay>,
    checkpoints: Arc<Checkpoints>,
    opened: OpenArchive,
    faults: Arc<Faults>,
}

/// Opens the control socket and writes the record down.
fn publish(mount_dir: &MountDir, record: &Record, answers: Answers) -> io::Result<()> {
    let about = record.clone();
    let Answers { groups, tree, checkpoints, opened, faults } = answers;
    let questions = Questions::new(Weak::clone(&tree), Arc::clone(&checkpoints));
    let answer = move |asked: &[u8], mut connection: UnixStream| {
        if !asked.is_empty() {
            return questions.answer(asked, connection);
        }
        let (groups, layers) = (groups.clone(), checkpoints.report());
        let report = Report { groups, layers, ..report(&about, &tree, &opened, &faults) };
        connection.write_all(&serde_json::to_vec(&report)?)
    };
    let worker = FilesWorker::new(record.mountpoint.clone());
    control::listen(&mount_dir.control_path(), answer, move |connection| {
        worker.hand_over(connection)
    })?;
    mount_dir.write_record(record)
}

fn report(record: &Record, tree: &Weak<Overlay>, opened: &OpenArchive, faults: &Faults) -> Report {
    let superblock = opened.archive.superblock();
    let (store, chunks) = (opened.store_counters(), opened.chunk_counters());
    let blocks = opened.archive.counters().data;
    let (count, last) = faults.seen();
    Report {
        mountpoint: record.mountpoint.clone(),
        source: record.source.clone(),
        pid: record.pid,
        since: record.since,
        upper: record.upper.clone(),
        groups: Vec::new(),
        archive: ArchiveReport {
            bytes: superblock.bytes_used,
            inodes: superblock.inodes,
            compressor: superblock.compressor.to_string(),
            block_size: superblock.block_size,
        },
        store: StoreReport {
            gets: store.gets,
            bytes: store.bytes_in,
            retries: store.retries,
            hedges: store.hedges,
            hedges_won: store.hedges_won,
            errors: store.errors,
        },
        chunks: ChunkReport {
            hits: chunks.hits,
            misses: chunks.misses,
            joined: chunks.joined,
            fetched_again: chunks.fetched_again,
            timeouts: chunks.timeouts,
            resident_bytes: chunks.memory_bytes,
            prefetched_bytes: chunks.prefetched_bytes,
            prefetched_used_bytes: chunks.prefetched_used_bytes,
        },
        disk: DiskReport {
            hits: chunks.disk_hits,
            bytes: chunks.disk_bytes,
            written_bytes: chunks.disk_written_bytes,
            damaged: chunks.disk_damaged,
            dropped: chunks.disk_dropped,
        },
        blocks: BlockReport { hits: blocks.hits, decoded: blocks.decodes },
        changes: tree.upgrade().map_or_else(ChangesReport::default, |tree| {
            let kept = tree.change_log().kept();
            ChangesReport {
                readers: kept.readers as u64,
                written: kept.written,
                memory_bytes: kept.memory_bytes as u64,
                journal_bytes: kept.journal_bytes,
            }
        }),
        layers: LayersReport::default(),
        nodes: tree.upgrade().map_or(0, |tree| tree.node_count() as u64),
        faults: FaultReport {
            count,
            last_at: last.as_ref().map(|fault| seconds_since_epoch(fault.when)),
            last: last.map(|fault| fault.reason),
        },
        resident_bytes: resident_bytes().unwrap_or(0),
    }
}

fn seconds_since_epoch(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Resident set of this process, from the second field of statm.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Why mount(2) or fusermount3 failed, in words.
fn mount_failed(mountpoint: &Path, error: &io::Error) -> Failure {
    let what = mountpoint.display();
    if !Path::new("/dev/fuse").exists() {
        return Failure::new(Code::Fuse, "/dev/fuse does not exist")
            .hint("load it with modprobe fuse; in a container add --device /dev/fuse");
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse")
        && rustix::process::geteuid().is_root()
    {
        return device_failed(&error);
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::new(Code::Fuse, format!("not permitted to mount at {what}: {error}"))
        }
        io::ErrorKind::NotFound => Failure::new(Code::Fuse, "fusermount3 is not installed")
            .hint("install the package fuse3, or mount as root"),
        _ => Failure::new(Code::Fuse, format!("cannot mount at {what}: {error}")),
    }
    .hint(match rustix::process::geteuid().is_root() {
        true => {
            "mounting needs CAP_SYS_ADMIN over the mount namespace: in a container add --cap-add \
             SYS_ADMIN, in a user namespace unshare its mounts, too (unshare -rm)"
        }
        false => {
            "/dev/fuse must be open to you (mode 0666 on most systems), the directory yours, and \
             allow_other needs user_allow_other in /etc/fuse.conf"
        }
    })
}

/// Why `/dev/fuse` cannot be opened. That of an ordinary user is opened by fusermount3, but root of a
/// user namespace is nobody to the device.
fn device_failed(error: &io::Error) -> Failure {
    let hint = match error.raw_os_error() {
        Some(libc::EACCES) => {
            "its mode must let this user in (0666 on most systems), as root of a user namespace is an \
             ordinary user to it; and /dev may not be mounted nodev"
        }
        Some(libc::EPERM) => {
            "a device control group forbids it: in a container add --device /dev/fuse, in a unit of \
             systemd DeviceAllow=/dev/fuse rw"
        }
        _ => "load the module: modprobe fuse",
    };
    Failure::new(Code::Fuse, format!("cannot open /dev/fuse: {error}")).hint(hint)
}
