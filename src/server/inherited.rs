//! What a server does not take over from the process that started it.
//!
//! A server outlives its caller by days. Whatever it kept of the caller's would be held as long: a lock, the other
//! end of a pipe, a file system that cannot be unmounted. A low priority would slow every user of the mount.
//! Limits are another matter, and stay: `setrlimit`, `oom_score_adj`, affinity, control groups.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::SigSet;

use crate::environment::Environment;

/// Variables that hold paths, which count from the caller's directory where they are relative.
const PATHS: [&str; 8] = [
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "THAWFS_CACHE_DIR",
    "THAWFS_STATE_DIR",
];

/// Has `server` start in a directory that nobody wants to unmount, with variables that mean what they
/// mean here.
pub(super) fn leave_directory(server: &mut Command) {
    server.current_dir("/");
    let environment = Environment::of_process();
    for name in PATHS {
        if let Some(path) = environment.path(name)
            && let Ok(absolute) = std::path::absolute(path)
        {
            server.env(name, absolute);
        }
    }
}

/// Has a process that the server starts know nothing of what the server's environment may tell of keys.
pub(super) fn leave_secrets(process: &mut Command) {
    let environment = Environment::of_process();
    process.env_clear();
    for name in ["PATH", "HOME", "XDG_STATE_HOME", "THAWFS_STATE_DIR", "THAWFS_LOG"] {
        if let Some(value) = environment.path(name) {
            process.env(name, value);
        }
    }
}

/// Leaves the rest of the caller behind, as far as this user may. To be called by a server before it
/// opens anything or starts a thread.
pub(super) fn leave_caller() {
    // No signal of the terminal, or of the job that mounted, reaches a session of its own. It fails for
    // a process that leads one already, which is as good.
    let _ = rustix::process::setsid();
    type Step = fn() -> io::Result<()>;
    let steps: [(&str, Step); 3] = [
        ("descriptors", close_descriptors),
        ("signals", reset_signals),
        ("priority", reset_priority),
    ];
    for (what, step) in steps {
        if let Err(error) = step() {
            tracing::debug!("the caller's {what} stay: {error}");
        }
    }
}

/// Closes everything above the standard streams.
fn close_descriptors() -> io::Result<()> {
    // Gathered first: the list has a descriptor itself while it is read.
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // One that the list had is closed by now.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// Lets every signal through, and has those of which a server must hear heard: that a child has ended,
/// which cannot be waited for where the signal is ignored, and that a file would exceed the caller's
/// limit, which is EFBIG for whoever writes it and not the end of the mount.
fn reset_signals() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    for signal in [signal_hook::consts::SIGCHLD, libc::SIGXFSZ] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

/// Takes the priority and the scheduling class that a program has by default. Only those who may raise
/// a priority can leave a low one.
fn reset_priority() -> io::Result<()> {
    let (nice, class) = read_priority()?;
    if (nice, class) == (0, 0) {
        return Ok(());
    }
    let own = std::process::id().to_string();
    // No library sets these two without unsafe code. util-linux is there wherever a shell is.
    if class != 0 {
        run("chrt", &["--other", "--pid", "0", &own]);
    }
    run("ionice", &["--class", "none", "--pid", &own]);
    rustix::process::setpriority_process(None, 0)?;
    Ok(())
}

/// The nice value and the scheduling class (0 for `SCHED_OTHER`) of this thread.
fn read_priority() -> io::Result<(i32, u32)> {
    let stat = std::fs::read_to_string(Path::new("/proc/thread-self/stat"))?;
    // The name before may hold anything; see proc_pid_stat(5) for the fields, of which the third is the
    // first here.
    let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(16);
    let nice = fields.next().and_then(|field| field.parse().ok());
    let class = fields.nth(21).and_then(|field| field.parse().ok());
    nice.zip(class).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn run(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments.iter().map(OsStr::new)).stdin(Stdio::null()).stdout(Stdio::null());
    match command.stderr(Stdio::null()).status() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::debug!("{program}: {status}"),
        Err(error) => tracing::debug!("{program}: {error}"),
    }
}
