//! The program itself, run as a user would, on a real kernel mount.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::surrounding::{Need, Surrounding, cannot_run};

/// A directory for one test: a tree, archives, mountpoints, and a state directory of its own.
/// Dropping it takes down whatever the test left mounted.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    /// What its file system is made of, where it has one of its own.
    below: Option<tempfile::TempDir>,
}

fn temporary() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("thawfs-test-").tempdir().unwrap();
    // Ordinary users of some tests must get through.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), mode).unwrap();
    dir
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = temporary();
        let below = match Surrounding::current() {
            Surrounding::Tmpfs => Some(mount_tmpfs(dir.path())),
            Surrounding::Overlayfs => Some(mount_overlayfs(dir.path())),
            _ => None,
        };
        Self { dir, below }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Makes a directory on the file system that temporary files are on, whatever the others are on: what
    /// a mount does is compared with what that does.
    pub(crate) fn plain_directory(&self, name: &str) -> PathBuf {
        let path = self.below.as_ref().unwrap_or(&self.dir).path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.path("cache")
    }

    /// Packs `tree` with the real mksquashfs.
    pub(crate) fn archive(&self, tree: &Path, name: &str, flags: &[&str]) -> PathBuf {
        let archive = self.path(name);
        let packed = Command::new("mksquashfs")
            .args([tree, &archive])
            .args(["-noappend", "-quiet", "-no-progress"])
            .args(flags)
            .stdout(Stdio::null())
            .status()
            .expect("mksquashfs is installed");
        assert!(packed.success());
        archive
    }

    /// A command line of thawfs with this bench's state directory and no settings of the user's.
    pub(crate) fn thawfs(&self) -> Command {
        self.command(Path::new(program()))
    }

    /// The same of the program by another name, as mount(8) calls it.
    pub(crate) fn thawfs_as(&self, name: &str) -> Command {
        let link = self.path(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(program(), &link).unwrap();
        }
        self.command(&link)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("THAWFS_TEST_PROGRAM", env!("CARGO_BIN_EXE_thawfs"));
        command.env("THAWFS_STATE_DIR", self.state_dir());
        command.env("THAWFS_CACHE_DIR", self.cache_dir());
        command.env("HOME", self.dir.path());
        for name in std::env::vars_os().map(|(name, _)| name) {
            let shown = name.to_string_lossy();
            if ["AWS_", "XDG_", "THAWFS_BUCKET", "THAWFS_DISK_CACHE"]
                .iter()
                .any(|start| shown.starts_with(start))
            {
                command.env_remove(name);
            }
        }
        if Surrounding::current() == Surrounding::DiskCacheOff {
            command.env("THAWFS_DISK_CACHE", "off");
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs thawfs to its end, with its output.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Output {
        self.thawfs().args(arguments).output().unwrap()
    }

    /// Runs thawfs and insists that it succeeds. Gives what it printed.
    pub(crate) fn ok<A: AsRef<OsStr>>(&self, arguments: &[A]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "thawfs failed: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Insists that nothing of this bench is mounted, running or recorded.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.mounted(), Vec::<PathBuf>::new());
        for kind in ["mounts", "uppers"] {
            let left: Vec<_> = std::fs::read_dir(self.state_dir().join(kind))
                .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
                .unwrap_or_default();
            assert_eq!(left, Vec::<PathBuf>::new());
        }
        assert_eq!(self.servers(), Vec::<u32>::new());
    }

    /// Mountpoints below this bench.
    pub(crate) fn mounted(&self) -> Vec<PathBuf> {
        thawfs::server::mounts::read_mounts()
            .unwrap()
            .into_iter()
            .map(|mount| mount.mountpoint)
            .filter(|mountpoint| mountpoint.starts_with(self.dir.path()))
            // The file system that all of it is on.
            .filter(|mountpoint| mountpoint != self.dir.path())
            .collect()
    }

    /// The process that serves `mountpoint`.
    pub(crate) fn server_of(&self, mountpoint: &Path) -> u32 {
        let mountpoint = format!("\0{}\0", mountpoint.display());
        let serves = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).ends_with(&mountpoint)
        };
        self.servers().into_iter().find(serves).unwrap()
    }

    /// Processes that serve a mountpoint below this bench.
    pub(crate) fn servers(&self) -> Vec<u32> {
        let here = self.dir.path().to_string_lossy().into_owned();
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| {
                let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).into_owned();
                (line.starts_with("thawfs\0serve\0") && line.contains(&here)).then_some(pid)
            })
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for mountpoint in self.mounted() {
            let _ =
                self.run(&[OsStr::new("unmount"), OsStr::new("--lazy"), mountpoint.as_os_str()]);
            let _ = thawfs::fuse::detach(&mountpoint);
        }
        if self.below.is_some() {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(self.dir.path(), flags);
        }
    }
}

/// What tests start as the program.
fn program() -> &'static str {
    match Surrounding::current() {
        Surrounding::PidNamespace | Surrounding::NoPassthrough => {
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/surroundings/program")
        }
        _ => env!("CARGO_BIN_EXE_thawfs"),
    }
}

fn mount_tmpfs(at: &Path) -> tempfile::TempDir {
    let options = Some(c"mode=755");
    rustix::mount::mount("none", at, "tmpfs", rustix::mount::MountFlags::empty(), options).unwrap();
    temporary()
}

fn mount_overlayfs(at: &Path) -> tempfile::TempDir {
    let below = temporary();
    let layer = |name: &str| {
        let layer = below.path().join(name);
        std::fs::create_dir(&layer).unwrap();
        layer.display().to_string()
    };
    let (lower, upper, work) = (layer("lower"), layer("upper"), layer("work"));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", at, "overlay", flags, Some(&*options)).unwrap();
    below
}

/// Whether `test` can mount where the tests run. Says so where it cannot.
pub(crate) fn can_mount(test: &str) -> bool {
    can_mount_with(test, &[])
}

/// Whether `test` can mount where the tests run, and has what it needs besides. Says so where not.
pub(crate) fn can_mount_with(test: &str, needs: &[Need]) -> bool {
    !cannot_run(test, &[&[Need::Mount], needs].concat())
}

/// Debian's udev rules open the device to everyone; a container may have it for root alone. Tests run at
/// the same time, so that none takes this back.
pub(crate) fn open_fuse_to_users() {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions("/dev/fuse", mode).unwrap();
}

/// A small tree with a bit of everything.
pub(crate) fn write_tree(root: &Path) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    std::fs::create_dir_all(root.join("sub/deeper")).unwrap();
    std::fs::write(root.join("hello"), "hello from the archive\n").unwrap();
    std::fs::write(root.join("sub/data"), big_contents()).unwrap();
    std::fs::write(root.join("sub/deeper/empty"), "").unwrap();
    symlink("../hello", root.join("sub/link")).unwrap();
    std::fs::hard_link(root.join("hello"), root.join("sub/hello-too")).unwrap();
    std::fs::write(root.join("script"), "#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(root.join("script"), PermissionsExt::from_mode(0o755)).unwrap();
}

/// A megabyte and a bit that compresses well and tells every offset apart.
pub(crate) fn big_contents() -> Vec<u8> {
    (0..160_000u32).flat_map(|n| format!("{n:06}\n").into_bytes()).collect()
}

/// A bench with an archive of a small tree, and a mountpoint.
pub(crate) struct Mounts {
    pub(crate) bench: Bench,
    pub(crate) archive: PathBuf,
    pub(crate) mountpoint: PathBuf,
}

impl Mounts {
    pub(crate) fn new() -> Self {
        let bench = Bench::new();
        write_tree(&bench.directory("tree"));
        let archive = bench.archive(&bench.path("tree"), "data.sqsh", &["-comp", "zstd"]);
        let mountpoint = bench.directory("mnt");
        Self { bench, archive, mountpoint }
    }
}
