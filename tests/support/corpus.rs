//! Archives to read: trees of every kind of file, packed by mksquashfs, and the kernel's own mount
//! of them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::surrounding::{Need, cannot_run};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use tempfile::TempDir;

/// A sequence of numbers that is the same every time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Bytes that do not compress.
    pub(crate) fn noise(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(len).collect()
    }

    /// Bytes that compress to about half.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 32);
        while bytes.len() < len {
            let value = self.next();
            bytes.extend(value.to_le_bytes());
            bytes.extend(std::iter::repeat_n(value as u8, (value >> 8) as usize % 24));
        }
        bytes.truncate(len);
        bytes
    }
}

/// Whether this process may mount and make devices. Says so if it may not.
pub(crate) fn is_root(test: &str) -> bool {
    !cannot_run(test, &[Need::Root])
}

/// A directory with at least one of everything a squashfs archive can hold.
pub(crate) fn varied_tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let mut numbers = Numbers(1);
    for block in [4096, 131_072, 1 << 20] {
        for len in [block - 1, block, block + 1, 2 * block + 100] {
            fs::write(root.join(format!("file-{len}")), numbers.bytes(len)).unwrap();
        }
    }
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("zeros"), vec![0; 300_000]).unwrap();
    fs::write(root.join("duplicate"), fs::read(root.join("file-131073")).unwrap()).unwrap();
    // Something for xz's x86 filter to work on.
    fs::copy("/bin/true", root.join("program")).unwrap();
    fs::hard_link(root.join("program"), root.join("hard-link")).unwrap();
    for len in 0..40 {
        fs::write(root.join(format!("small-{len}")), numbers.bytes(len * 13)).unwrap();
    }
    holes(&root.join("holes"), 1 << 20);

    fs::create_dir_all(root.join("empty-directory")).unwrap();
    let mut deep = root.join("deep");
    for level in 0..60 {
        deep.push(format!("level-{level}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"bottom").unwrap();
    // Long names make listings of several metadata blocks, and with them an index.
    let wide = root.join("wide");
    fs::create_dir(&wide).unwrap();
    for entry in 0..700 {
        let name = format!("{entry:03}-{}", "n".repeat(entry % 200));
        fs::write(wide.join(name), entry.to_string()).unwrap();
    }
    let names: [&[u8]; 5] =
        [b"\xff\xfe not utf-8 \x80", b"new\nline", b"...", b".wh.x", &[b'x'; 255]];
    for name in names {
        fs::write(root.join(OsStr::from_bytes(name)), b"named").unwrap();
    }

    symlink("file-4096", root.join("link")).unwrap();
    symlink(OsString::from_vec(b"./".repeat(2047)), root.join("long-link")).unwrap();
    for (name, kind, major, minor) in [
        ("block-device", FileType::BlockDevice, 8, 1),
        ("char-device", FileType::CharacterDevice, 4095, 0xf_ffff),
        ("whiteout", FileType::CharacterDevice, 0, 0),
        ("fifo", FileType::Fifo, 0, 0),
        ("socket", FileType::Socket, 0, 0),
    ] {
        mknodat(CWD, root.join(name), kind, Mode::from(0o640), makedev(major, minor)).unwrap();
    }
    for (name, mode) in [("small-1", 0o4755), ("small-2", 0o2711), ("empty-directory", 0o1777)] {
        fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    for (name, uid, gid) in [("small-3", 70_000, 4_000_000_000), ("small-4", 1, 2), ("link", 3, 4)]
    {
        std::os::unix::fs::lchown(root.join(name), Some(uid), Some(gid)).unwrap();
    }
    xattrs(root, &mut numbers);
    for (name, seconds) in [("small-5", 0), ("small-6", 4_294_967_295), ("small-7", 2_147_483_648)]
    {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        File::options().write(true).open(root.join(name)).unwrap().set_modified(time).unwrap();
    }
    dir
}

/// Writes a file whose data is islands in holes: at its start, in the middle, and at its end.
fn holes(path: &Path, len: u64) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for at in [0, len / 2 + 5, len - 10] {
        file.write_all_at(b"an island.", at).unwrap();
    }
}

fn xattrs(root: &Path, numbers: &mut Numbers) {
    // Two files with the same long value: it is stored once, out of line.
    let shared = numbers.bytes(1500);
    let cases: &[(&str, &str, &[u8])] = &[
        ("small-8", "user.empty", b""),
        ("small-8", "user.plain", b"value"),
        ("small-8", "trusted.overlay.opaque", b"y"),
        ("small-8", "security.ours", b"\0\x01binary"),
        ("small-9", "user.shared", &shared),
        ("small-10", "user.shared", &shared),
        ("small-10", "user.also", &shared),
        ("empty-directory", "user.on-directory", b"d"),
        ("wide", "user.on-directory", b"w"),
        ("link", "trusted.on-link", b"l"),
        ("fifo", "trusted.on-fifo", b"f"),
        ("socket", "trusted.on-socket", b"s"),
        ("char-device", "trusted.on-device", b"c"),
        ("block-device", "security.on-device", b"b"),
        (".", "user.on-root", b"r"),
    ];
    for (file, name, value) in cases {
        lsetxattr(root.join(file), *name, value, XattrFlags::empty()).unwrap();
    }
    for number in 0..60 {
        let name = format!("user.number-{number}");
        lsetxattr(root.join("small-11"), name.as_str(), b"x", XattrFlags::empty()).unwrap();
    }
}

/// A directory of two files that are holes for the most part, one of more than 4 GiB.
pub(crate) fn huge_tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    holes(&dir.path().join("holes"), (4 << 30) + (256 << 20));
    File::create(dir.path().join("hole")).unwrap().set_len(256 << 20).unwrap();
    dir
}

/// A directory in memory where the machine has that: making and removing 100,000 files on a busy
/// disk takes minutes.
fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A directory with 70,000 links and one with 70,000 directories.
pub(crate) fn wide_tree() -> TempDir {
    let dir = memory_dir();
    let (links, directories) = (dir.path().join("links"), dir.path().join("directories"));
    fs::create_dir(&links).unwrap();
    fs::create_dir(&directories).unwrap();
    for number in 0..70_000 {
        symlink(format!("target-{number}"), links.join(number.to_string())).unwrap();
        fs::create_dir(directories.join(number.to_string())).unwrap();
    }
    dir
}

/// 64,000 pipes with an owner each.
pub(crate) fn many_owners_tree() -> TempDir {
    let dir = memory_dir();
    for id in 0..64_000 {
        let path = dir.path().join(format!("pipe-{id}"));
        mknodat(CWD, &path, FileType::Fifo, Mode::from(0o644), 0).unwrap();
        std::os::unix::fs::lchown(&path, Some(100_000 + id), Some(0)).unwrap();
    }
    dir
}

/// An archive in a directory of its own.
pub(crate) struct Packed {
    dir: TempDir,
}

impl Packed {
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("data.sqsh")
    }
}

/// Packs `source` into an archive.
pub(crate) fn pack(source: &Path, args: &[&str]) -> Packed {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("mksquashfs");
    command.arg(source).arg(dir.path().join("data.sqsh"));
    command.args(["-no-progress", "-noappend", "-quiet"]).args(args);
    let output = command.stdin(Stdio::null()).output().expect("mksquashfs is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Packed { dir }
}

/// An archive mounted by the kernel; unmounted when dropped.
pub(crate) struct KernelMount {
    dir: TempDir,
}

impl KernelMount {
    /// Mounts the archive at `offset` in a file; `Err` is what mount(8) says.
    pub(crate) fn new(archive: &Path, offset: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "squashfs", "-o", &format!("ro,loop,offset={offset}")])
            .arg(archive)
            .arg(dir.path())
            .output()
            .expect("mount is installed");
        match output.status.success() {
            true => Ok(Self { dir }),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path()).status();
        if !std::thread::panicking() {
            assert!(unmounted.unwrap().success(), "{:?} is still mounted", self.dir.path());
        }
    }
}
