//! Where and as whom the tests run, and what becomes of a test that cannot run there.
//!
//! `THAWFS_TEST_SURROUNDING` names one of [`Surrounding`]; the test programs are then to be started by
//! `tests/surroundings/run`, which makes what a process cannot make for itself (another user, another
//! namespace). Each test says what it needs. A test that needs what a surrounding lacks by its nature does
//! not apply there. Where a test needs what should be there and is not, it is skipped; where everything is
//! meant to run (`CI`), it fails.

use std::io::Write;
use std::path::Path;

/// Where and as whom the tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surrounding {
    /// Root, on the file system that temporary files are on.
    Root,
    /// Root, and the kernel does not read and write upper files by itself.
    NoPassthrough,
    /// Root, and nothing that was fetched is kept on disk.
    DiskCacheOff,
    /// Root, and everything lies on the kernel's overlayfs, as in a container.
    Overlayfs,
    /// Root, and everything lies on tmpfs.
    Tmpfs,
    /// Root, and the program and its servers live in another pid namespace than those who use the mount.
    PidNamespace,
    /// An ordinary user, who mounts through fusermount3.
    OrdinaryUser,
    /// Root of a user namespace that holds one user, as `unshare --map-root-user` makes it.
    UserNamespace,
}

/// What a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// FUSE mounts.
    Mount,
    /// To be root of the whole machine: other users, devices, the kernel's own mounts and caches.
    Root,
    /// The kernel reads and writes upper files by itself.
    Passthrough,
    /// What was fetched is kept on disk.
    DiskCache,
    /// What a disk's file system can, and tmpfs cannot: to zero a range in place, and to move the times
    /// of a file that is written through a mapping.
    Disk,
    /// An upper that the kernel's overlayfs takes as its `upperdir`.
    KernelUpper,
    /// The process that is started is the program itself, with the same number for everybody.
    Processes,
}

impl Surrounding {
    const ALL: [(&str, Self); 8] = [
        ("root", Self::Root),
        ("no-passthrough", Self::NoPassthrough),
        ("disk-cache-off", Self::DiskCacheOff),
        ("overlayfs", Self::Overlayfs),
        ("tmpfs", Self::Tmpfs),
        ("pid-namespace", Self::PidNamespace),
        ("ordinary-user", Self::OrdinaryUser),
        ("user-namespace", Self::UserNamespace),
    ];

    /// Whether whoever runs the tests can write down the number of every file, symbolic links and special files among them.
    pub(crate) fn can_mark_all() -> bool {
        !matches!(Self::current(), Self::OrdinaryUser | Self::UserNamespace)
    }

    /// The one that the environment names.
    pub(crate) fn current() -> Self {
        let Some(name) = std::env::var_os("THAWFS_TEST_SURROUNDING") else { return Self::Root };
        let found = Self::ALL.iter().find(|(known, _)| name == *known);
        found.expect("THAWFS_TEST_SURROUNDING names a surrounding").1
    }

    /// What is not there by its nature.
    const fn lacks(self) -> &'static [Need] {
        match self {
            Self::Root => &[],
            Self::Tmpfs => &[Need::Disk],
            Self::NoPassthrough => &[Need::Passthrough],
            Self::DiskCacheOff => &[Need::DiskCache],
            Self::Overlayfs => &[Need::KernelUpper],
            Self::PidNamespace => &[Need::Processes],
            Self::OrdinaryUser | Self::UserNamespace => {
                &[Need::Root, Need::Passthrough, Need::KernelUpper]
            }
        }
    }
}

/// Whether `test` cannot run here, because one of `needs` is not to be had. Says so.
pub(crate) fn cannot_run(test: &str, needs: &[Need]) -> bool {
    let surrounding = Surrounding::current();
    if let Some(need) = needs.iter().find(|need| surrounding.lacks().contains(need)) {
        tell(&format!("{test} does not apply: it needs {need:?}"));
        return true;
    }
    if let Some(reason) = needs.iter().find_map(|need| missing(*need)) {
        skip(test, reason);
        return true;
    }
    false
}

/// Whether `need` is to be had where the tests run.
pub(crate) fn has(need: Need) -> bool {
    !Surrounding::current().lacks().contains(&need) && missing(need).is_none()
}

/// The rights that whoever runs the tests has to leave to a file's owner, to look at it afterwards.
pub(crate) fn owners_share() -> u32 {
    if has(Need::Root) { 0 } else { 0o700 }
}

/// Why `need` is not to be had on this machine.
fn missing(need: Need) -> Option<&'static str> {
    let is_root = rustix::process::geteuid().is_root();
    match need {
        Need::Mount if !Path::new("/dev/fuse").exists() => Some("there is no /dev/fuse"),
        Need::Mount if !is_root && Surrounding::current() != Surrounding::OrdinaryUser => {
            Some("mounting as an ordinary user is a surrounding of its own")
        }
        Need::Root | Need::KernelUpper if !is_root => Some("it needs root"),
        _ => None,
    }
}

/// Says that `test` is left out, and why. The test then has to return.
///
/// # Panics
/// Where everything is meant to run.
pub(crate) fn skip(test: &str, reason: &str) {
    let all_run = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    assert!(!all_run, "{test} has to run here, and does not: {reason}");
    tell(&format!("{test} SKIPPED: {reason}"));
}

/// A line for whoever reads what a passing test prints, and for `scripts/test`, which counts them.
pub(crate) fn tell(line: &str) {
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("THAWFS_TEST_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        written.expect("THAWFS_TEST_SKIPS names a file to write to");
    }
}
