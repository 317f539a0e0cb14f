//! An archive as we read it beside the same archive as the kernel mounts it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::fs::{SeekFrom, lgetxattr, llistxattr, seek};
use thawfs::squashfs::{Archive, DirCursor, Inode};
use thawfs::types::{FileKind, FileOffset};

use crate::support::corpus::Numbers;
use crate::support::surrounding::skip;

/// Files beyond this are compared in places only.
const READ_WHOLE: u64 = 16 << 20;

/// Checks that every file of the archive is as the kernel shows it below `mount`. Returns how many
/// there are.
pub(crate) fn assert_same(archive: &Archive, mount: &Path) -> usize {
    let mut numbers = Numbers(7);
    let mut files = 0;
    for entry in archive.walk() {
        let entry = entry.unwrap();
        let path = mount.join(OsStr::from_bytes(&entry.path));
        assert_same_inode(&entry.inode, &path);
        assert_same_xattrs(archive, &entry.inode, &path);
        match entry.inode.kind {
            FileKind::Directory => assert_same_listing(archive, &entry.inode, &path, &mut numbers),
            FileKind::Regular => assert_same_contents(archive, &entry.inode, &path, &mut numbers),
            FileKind::Symlink => {
                let target = fs::read_link(&path).unwrap();
                let ours = archive.read_link(&entry.inode).unwrap();
                assert_eq!(ours, target.as_os_str().as_bytes(), "target of {path:?}");
            }
            _ => {}
        }
        files += 1;
    }
    files
}

fn assert_same_inode(inode: &Inode, path: &Path) {
    let theirs = fs::symlink_metadata(path).unwrap();
    let ours = [
        ("mode", u64::from(inode.kind.mode_bits() | u32::from(inode.permissions))),
        ("number", inode.number.0.into()),
        ("uid", inode.uid.into()),
        ("gid", inode.gid.into()),
        ("nlink", inode.nlink.into()),
        ("size", inode.size),
        ("blocks", inode.blocks),
        ("rdev", inode.rdev),
        ("mtime", inode.mtime.seconds as u64),
    ];
    let theirs = [
        ("mode", u64::from(theirs.mode())),
        ("number", theirs.ino()),
        ("uid", theirs.uid().into()),
        ("gid", theirs.gid().into()),
        ("nlink", theirs.nlink()),
        ("size", theirs.size()),
        ("blocks", theirs.blocks()),
        ("rdev", theirs.rdev()),
        ("mtime", theirs.mtime() as u64),
    ];
    assert_eq!(ours, theirs, "{path:?}");
}

fn assert_same_listing(archive: &Archive, inode: &Inode, path: &Path, numbers: &mut Numbers) {
    let theirs: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            use std::os::unix::fs::DirEntryExt;
            (entry.file_name().as_bytes().to_vec(), entry.ino())
        })
        .collect();
    let entries: Vec<_> =
        archive.read_dir(inode, DirCursor::START).unwrap().collect::<Result<_, _>>().unwrap();
    let ours: Vec<_> =
        entries.iter().map(|entry| (entry.name.clone(), u64::from(entry.number.0))).collect();
    assert_eq!(ours.len(), theirs.len(), "entries of {path:?}");
    assert!(ours == theirs, "listing of {path:?}");

    // Some of the names, at any place, are found, and the listing goes on from there.
    for _ in 0..entries.len().min(50) {
        let position = numbers.below(entries.len() as u64) as usize;
        let entry = &entries[position];
        assert_eq!(archive.lookup(inode, &entry.name).unwrap().as_ref(), Some(entry));
        let rest = archive.read_dir(inode, entry.next).unwrap();
        let next = rest.take(3).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(next, entries[position + 1..].iter().take(3).cloned().collect::<Vec<_>>());
        let mut absent = entry.name.clone();
        absent.push(b'!');
        if !entries.iter().any(|entry| entry.name == absent) {
            assert_eq!(archive.lookup(inode, &absent).unwrap(), None);
        }
    }
    for absent in [&b""[..], b"\0", b"\xff\xff", b".", b".."] {
        assert_eq!(archive.lookup(inode, absent).unwrap(), None, "{absent:?} in {path:?}");
    }
}

fn assert_same_xattrs(archive: &Archive, inode: &Inode, path: &Path) {
    let mut list = Vec::with_capacity(1 << 16);
    match llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        // From an archive that has none at all.
        Err(error) => assert_eq!(error, rustix::io::Errno::OPNOTSUPP, "{path:?}"),
    }
    let mut theirs = BTreeMap::new();
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(1 << 16);
        lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).unwrap();
        theirs.insert(name.to_vec(), value);
    }
    let xattrs = archive.xattrs(inode).unwrap();
    let ours: BTreeMap<_, _> =
        xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect();
    assert_eq!(ours.len(), xattrs.len(), "a name twice on {path:?}");
    assert_eq!(ours, theirs, "xattrs of {path:?}");
    assert!(inode.has_xattrs() || theirs.is_empty(), "{path:?} hides its xattrs");
    let names: Vec<_> = xattrs.iter().map(|xattr| xattr.name.clone()).collect();
    assert_eq!(archive.xattr_names(inode).unwrap(), names);
    for xattr in xattrs {
        assert_eq!(archive.xattr(inode, &xattr.name).unwrap(), Some(xattr.value));
    }
    assert_eq!(archive.xattr(inode, b"user.absent").unwrap(), None);
}

fn assert_same_contents(archive: &Archive, inode: &Inode, path: &PathBuf, numbers: &mut Numbers) {
    let file = File::open(path).unwrap();
    if inode.size <= READ_WHOLE {
        assert_eq!(read_whole(archive, inode, numbers).len() as u64, inode.size);
        assert!(read_whole(archive, inode, numbers) == fs::read(path).unwrap(), "{path:?}");
    }
    let mut places: Vec<_> = (0..4).map(|_| numbers.below(inode.size + 1)).collect();
    places.extend([0, inode.size / 2, inode.size.saturating_sub(100), inode.size, 1 << 60]);
    for at in places {
        let mut theirs = vec![0; 1 + numbers.below(200_000) as usize];
        let len = read_at_most(&file, &mut theirs, at);
        let ours = archive.read(inode, FileOffset(at), theirs.len()).unwrap();
        assert!(ours == theirs[..len], "{} bytes from {at} of {path:?}", theirs.len());
        if let Some(cached) = archive.get(inode, FileOffset(at), theirs.len()) {
            assert!(cached == ours, "cached bytes from {at} of {path:?}");
        }
        assert_same_seek(archive, inode, &file, at);
    }
}

fn read_whole(archive: &Archive, inode: &Inode, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let len = 1 + numbers.below(300_000) as usize;
        let read = archive.read(inode, FileOffset(bytes.len() as u64), len).unwrap();
        if read.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&read);
    }
}

fn read_at_most(file: &File, out: &mut [u8], at: u64) -> usize {
    let mut len = 0;
    loop {
        match file.read_at(&mut out[len..], at + len as u64).unwrap() {
            0 => return len,
            read => len += read,
        }
    }
}

/// Whether the kernel finds holes in an archive, which it does since 6.16. Says so if not.
fn kernel_seeks() -> bool {
    static SEEKS: LazyLock<bool> = LazyLock::new(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let seeks = (numbers.next(), numbers.next()) >= (Some(6), Some(16));
        if !seeks {
            skip("comparing holes", &format!("kernel {release} knows none in an archive"));
        }
        seeks
    });
    *SEEKS
}

fn assert_same_seek(archive: &Archive, inode: &Inode, file: &File, at: u64) {
    if !kernel_seeks() {
        return;
    }
    let theirs = |from| seek(file, from).ok();
    let data = archive.seek_data(inode, FileOffset(at)).unwrap().map(|at| at.0);
    assert_eq!(data, theirs(SeekFrom::Data(at)), "data from {at}");
    let hole = archive.seek_hole(inode, FileOffset(at)).unwrap().map(|at| at.0);
    assert_eq!(hole, theirs(SeekFrom::Hole(at)), "hole from {at}");
}
