//! `thawfs watch`: what changes in a mount, as it happens.

use std::io::{self, BufWriter, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueHint};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use serde::Serialize;

use super::cursor::check_cursor;
use super::output::{Output, say, stdout_failed};
use crate::failure::{Code, Failure};
use crate::names::{self, printable, printable_json};
use crate::server::{ChangesRequest, Following, Line, Told, find_around};
use crate::types::FileKind;
use crate::watch::Cursor;

/// How long nothing has to change before a command is run, and how long it waits for that at most.
const QUIET: Duration = Duration::from_millis(50);
const AT_MOST: Duration = Duration::from_secs(1);

/// What one run of a command is told at most, in lines; the rest waits with the server.
const BATCH: usize = 4096;

#[derive(Debug, Args)]
#[command(after_help = "\
One line for each change, in the order in which they took effect:
  create PATH   write PATH   remove PATH   attributes PATH
  rename OLD -> NEW          exchange ONE <-> OTHER
Paths are from the root of the mount; those of directories end in a slash. Where changes are no
longer known, `missed` or `reset` says so, and `changed` lines follow as thawfs diff --since
has them, until `caught-up`.

Behind `caught-up` things may be told once more that were among them.

What happens to a directory on the way to PATH is told, too: look again at what is there then.

It lasts until SIGINT or SIGTERM (status 0), until the mount is gone (14), or until its server is
killed (1). In JSON each change has a cursor to go on from; else the last one is said at the end. A
cursor is good for the upper that it is of.")]
pub(crate) struct WatchArgs {
    /// A mount, or a directory in one.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,

    /// A path in it, which need not be there yet: tell only of that, and of what is in it.
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<PathBuf>,

    /// Also tell of everything that is further below.
    #[arg(long, short)]
    pub(crate) recursive: bool,

    /// Go on from there, also if the mount's server was killed or the same upper was mounted again.
    #[arg(long, value_name = "CURSOR")]
    pub(crate) since: Option<Cursor>,

    /// Add what each file is now: size, mode, owner, time.
    #[arg(long)]
    pub(crate) include_entry: bool,

    /// Run this with sh once nothing has changed for 50 ms, with the changes on its standard input, a JSON
    /// object per line; while it runs, changes wait. THAWFS_CURSOR is the place behind them.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) exec: Option<String>,
}

/// What is told, and what the file is.
#[derive(Serialize)]
struct WithEntry<'a> {
    #[serde(flatten)]
    line: &'a Line,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Entry>,
}

/// A file as it was a moment after the change.
#[derive(Serialize)]
struct Entry {
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    nlink: u32,
    #[serde(flatten)]
    target: Option<Target>,
}

/// Where a symbolic link leads.
#[derive(Serialize)]
struct Target {
    #[serde(flatten, with = "names::target")]
    target: PathBuf,
}

pub(super) fn watch(args: &WatchArgs, output: &Output) -> Result<(), Failure> {
    check_cursor(args.since.as_ref())?;
    let (mount, server, inside) = find_around(&args.dir)?;
    let below = match &args.path {
        Some(path) => join(&inside, path)?,
        None => inside,
    };
    let request = ChangesRequest {
        below,
        recursive: args.recursive,
        since: args.since.as_ref().map(ToString::to_string),
    };
    let root = args.include_entry.then_some(&*mount.mountpoint);
    let mut following = Following::begin(&server.control_path(), request)?;
    let stopped = stop_at_signals(&following)?;
    let mut last = None;
    let mut follow = |each: &mut dyn FnMut(&Line, bool) -> Result<(), Failure>| {
        while let Some(line) = following.next()? {
            if let Some(cursor) = cursor(&line) {
                last = Some(cursor.to_owned());
            }
            each(&line, following.has_more())?;
        }
        Ok(())
    };
    let told = match &args.exec {
        None => {
            let mut shown = Shown { output, root, out: BufWriter::new(io::stdout()) };
            follow(&mut |line, more| shown.show(line, more))
        }
        Some(command) => {
            let (changes, waiting) = bounded(BATCH);
            std::thread::scope(|scope| {
                let runs = scope.spawn(|| run_batches(command, waiting, output));
                let followed = follow(&mut |line, _| {
                    if matches!(line, Line::Start { .. }) {
                        return Ok(());
                    }
                    let told = (json(line, root)?, cursor(line).map(str::to_owned));
                    // Why it has ended, it says itself.
                    let ended = |_| Failure::new(Code::Failed, "the command cannot be run");
                    changes.send(told).map_err(ended)
                });
                drop(changes);
                runs.join().map_or(followed.clone(), |ran| ran.and(followed))
            })
        }
    };
    if let Some(cursor) = last
        && !output.json
        && !output.quiet
    {
        say(&format!("to go on from here: --since {cursor}"));
    }
    match told {
        _ if stopped.load(Ordering::Relaxed) => Ok(()),
        Ok(()) => {
            let message = format!("{} is no longer mounted", mount.mountpoint.display());
            Err(Failure::new(Code::NotMounted, message))
        }
        Err(failure) => Err(failure),
    }
}

/// Has the end of what is told come at SIGINT, SIGTERM or SIGHUP. Says whether one has.
fn stop_at_signals(following: &Following) -> Result<Arc<AtomicBool>, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let failed =
        |error: io::Error| Failure::new(Code::Failed, format!("signals cannot be heard: {error}"));
    let stopped = Arc::new(AtomicBool::new(false));
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let (stops, connection) = (Arc::clone(&stopped), following.connection().map_err(failed)?);
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stops.store(true, Ordering::Relaxed);
            // It fails where the connection has ended.
            let _ = connection.shutdown(Shutdown::Both);
        }
    });
    Ok(stopped)
}

/// A path from the root of the mount, of `path` in directory `inside`.
fn join(inside: &Path, path: &Path) -> Result<PathBuf, Failure> {
    let mut joined = inside.to_owned();
    for component in path.components() {
        match component {
            Component::Normal(name) => joined.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                let message = format!("{} is no path within the directory", path.display());
                return Err(Failure::new(Code::Usage, message)
                    .hint("name it from there, without a slash before it and without .."));
            }
        }
    }
    Ok(joined)
}

/// The place behind what `line` tells, if it says so.
fn cursor(line: &Line) -> Option<&str> {
    match line {
        Line::Start { cursor } | Line::CaughtUp { cursor } => Some(cursor),
        line => told(line).map(|told| &*told.cursor),
    }
}

fn told(line: &Line) -> Option<&Told> {
    match line {
        Line::Create(told)
        | Line::Write(told)
        | Line::Remove(told)
        | Line::Rename(told)
        | Line::Exchange(told)
        | Line::Attributes(told) => Some(told),
        _ => None,
    }
}

fn json(line: &Line, root: Option<&Path>) -> Result<String, Failure> {
    let entry = match line {
        Line::Create(told) | Line::Write(told) | Line::Attributes(told) => {
            root.and_then(|root| entry(&root.join(&told.path)))
        }
        _ => None,
    };
    let json = serde_json::to_string(&WithEntry { line, entry });
    json.map(|json| printable_json(&json)).map_err(|error| stdout_failed(&error.into()))
}

/// What is at `path`, if it is there still.
fn entry(path: &Path) -> Option<Entry> {
    // Who has made the change may have yet to be told that it is done, and until then the kernel remembers what was
    // before.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS).ok()?;
    let kind = FileKind::from_mode(stat.stx_mode.into());
    let target = (kind == Some(FileKind::Symlink)).then(|| std::fs::read_link(path).ok());
    Some(Entry {
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        mtime: stat.stx_mtime.tv_sec,
        nlink: stat.stx_nlink,
        target: target.flatten().map(|target| Target { target }),
    })
}

/// How lines are shown.
struct Shown<'a> {
    output: &'a Output,
    /// Where the mount is, if files are to be described.
    root: Option<&'a Path>,
    out: BufWriter<io::Stdout>,
}

impl Shown<'_> {
    /// Shows a line; others may wait for the one behind it if `more` have come.
    fn show(&mut self, line: &Line, more: bool) -> Result<(), Failure> {
        let mut text = match self.output.json {
            true => json(line, self.root)?.into_bytes(),
            false => match self.line(line) {
                // A name shall not end its line, or be taken for another.
                Some(text) => printable(text).into_bytes(),
                None => return self.out.flush().map_err(|error| stdout_failed(&error)),
            },
        };
        text.push(b'\n');
        let flush = |out: &mut BufWriter<io::Stdout>| if more { Ok(()) } else { out.flush() };
        let written = self.out.write_all(&text).and_then(|()| flush(&mut self.out));
        written.map_err(|error| stdout_failed(&error))
    }

    fn line(&self, line: &Line) -> Option<Vec<u8>> {
        let words = |word: &str, paths: &[&[u8]]| [word.as_bytes(), b" ", &paths.concat()].concat();
        let one = |word: &str, told: &Told| {
            let mut text = words(word, &[told.path.as_os_str().as_bytes(), slash(&told.kind)]);
            if let Some(entry) = self.root.and_then(|root| entry(&root.join(&told.path))) {
                let Entry { mode, uid, gid, size, .. } = entry;
                text.extend(format!("  {mode:04o} {uid}:{gid} {size}").into_bytes());
            }
            text
        };
        let two = |word: &str, told: &Told, sign: &[u8]| {
            let to = told.to.as_deref().unwrap_or(Path::new("")).as_os_str().as_bytes();
            let end = slash(&told.kind);
            words(word, &[told.path.as_os_str().as_bytes(), end, sign, to, end])
        };
        Some(match line {
            Line::Create(told) => one("create", told),
            Line::Write(told) => one("write", told),
            Line::Attributes(told) => one("attributes", told),
            Line::Remove(told) => {
                words("remove", &[told.path.as_os_str().as_bytes(), slash(&told.kind)])
            }
            Line::Rename(told) => two("rename", told, b" -> "),
            // The other may be no directory, or the only one.
            Line::Exchange(told) => {
                two("exchange", &Told { kind: String::new(), ..told.clone() }, b" <-> ")
            }
            Line::Missed { from, to } => format!("missed {from} to {to}").into_bytes(),
            Line::Reset { since } => format!("reset since {since}").into_bytes(),
            Line::Changed(entry) => {
                let path = entry.path.as_os_str().as_bytes();
                let status = format!("changed {:?} ", entry.status).to_lowercase();
                [status.as_bytes(), path, slash(entry.kind.name())].concat()
            }
            Line::CaughtUp { .. } => b"caught-up".to_vec(),
            Line::Start { .. } | Line::End | Line::Failed(_) => return None,
        })
    }
}

fn slash(kind: &str) -> &'static [u8] {
    if kind == FileKind::Directory.name() { b"/" } else { b"" }
}

/// Runs `command` for what is waiting, again and again, until there is nothing more to come.
fn run_batches(
    command: &str,
    waiting: Receiver<(String, Option<String>)>,
    output: &Output,
) -> Result<(), Failure> {
    while let Ok((first, mut cursor)) = waiting.recv() {
        let mut lines = vec![first];
        let end = Instant::now() + AT_MOST;
        while lines.len() < BATCH {
            let patience = QUIET.min(end.saturating_duration_since(Instant::now()));
            match waiting.recv_timeout(patience) {
                Ok((line, behind)) => {
                    lines.push(line);
                    cursor = behind.or(cursor);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        run(command, &lines, cursor.as_deref(), output)?;
    }
    Ok(())
}

fn run(
    command: &str,
    lines: &[String],
    cursor: Option<&str>,
    output: &Output,
) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::new(Code::Failed, format!("cannot run {}: {error}", printable(command)))
    };
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::piped());
    if let Some(cursor) = cursor {
        shell.env("THAWFS_CURSOR", cursor);
    }
    let mut child = shell.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read what changed has its reasons.
        let _ = stdin.write_all((lines.join("\n") + "\n").as_bytes());
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        output.warn(&format!("{command}: {status}"));
    }
    Ok(())
}
