//! A merged tree that is published from within: entry by entry the same as a backup of its mount, onto the archive that
//! it is made over as from scratch, and no more is sent or fetched than that takes.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, lsetxattr, makedev, mknodat};
use rustix::io::Errno;
use serde_json::Value;
use thawfs::backup::{
    Backups, BucketRequest, CreateProgress, Created, OpenArchive, PublishRequest, SourceRequest,
};
use thawfs::cache::DiskLimit;
use thawfs::environment::Environment;
use thawfs::overlay::{
    Caller, IdNamespace, IdOptions, IdView, Identity, Options, Overlay, SetAttr, Upper,
};
use thawfs::squashfs::Archive;
use thawfs::store::Access;
use thawfs::types::{FileKind, FileOffset, Ino};

use crate::overlay_support::{layer_dir, roll_back};
use crate::support::corpus::Numbers;
use crate::support::mount::can_mount;
use crate::support::place::Place;
use crate::support::s3::{ACCESS_KEY, SECRET_KEY, Seen};
use crate::support::surrounding::{Need, Surrounding, has};

/// Size of the parts of an upload.
const PART: u64 = 8 << 20;
/// Size of a block.
const BLOCK: usize = 128 << 10;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The bucket of a place, as a program has it that is linked with the library.
pub(crate) struct Library {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) backups: Backups,
}

impl Library {
    pub(crate) fn new(place: &Place) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut request = BucketRequest::new(place.url.as_str());
        if let Some(server) = &place.server {
            let keys = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
            let environment: Environment = keys.into_iter().collect();
            request.access =
                Access { endpoint: Some(server.url()), environment, ..Access::default() };
        }
        let backups = runtime.block_on(Backups::open(&request)).unwrap();
        Self { runtime, backups }
    }

    pub(crate) fn open(&self, id: &str) -> OpenArchive {
        let source = self.backups.archive(&id.parse().unwrap()).unwrap();
        let opened =
            SourceRequest { disk_cache: DiskLimit::Off, cache_memory: 256 << 20, ..source }
                .open()
                .unwrap();
        opened.archive.hold_metadata().unwrap();
        opened
    }

    pub(crate) fn publish(&self, tree: &Arc<Overlay>, request: &PublishRequest) -> Created {
        let progress = Arc::new(CreateProgress::default());
        self.runtime.block_on(self.backups.publish(tree, request, progress)).unwrap()
    }
}

/// The merged tree of a backup and an upper that nobody has mounted.
fn merged(opened: &OpenArchive, upper: Option<(&Path, &Path)>) -> Arc<Overlay> {
    let upper = upper.map(|(upper, work)| Upper::open(upper, work).unwrap());
    let tree = Overlay::new(Arc::clone(&opened.archive), upper, Options::default()).unwrap();
    Arc::new(tree.named(opened.as_mounted()))
}

/// What an archive says of one name.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    kind: FileKind,
    permissions: u16,
    owner: (u32, u32),
    mtime: i64,
    nlink: u32,
    size: u64,
    rdev: u64,
    /// A hash of its bytes, or of where it leads.
    content: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same inode.
    first: Vec<u8>,
}

fn facts(archive: &Archive) -> BTreeMap<Vec<u8>, Facts> {
    let mut firsts = HashMap::new();
    let mut entries: Vec<_> = archive.walk().map(Result::unwrap).collect();
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut all = BTreeMap::new();
    for entry in entries {
        let inode = entry.inode;
        let first = firsts.entry(inode.number).or_insert_with(|| entry.path.clone()).clone();
        let mut hash = DefaultHasher::new();
        match inode.kind {
            FileKind::Regular => {
                let mut at = 0;
                while at < inode.size {
                    let bytes = archive.read(&inode, FileOffset(at), 1 << 20).unwrap();
                    hash.write(&bytes);
                    at += bytes.len() as u64;
                }
            }
            FileKind::Symlink => archive.read_link(&inode).unwrap().hash(&mut hash),
            _ => {}
        }
        let xattrs = archive.xattrs(&inode).unwrap();
        let is_directory = inode.kind == FileKind::Directory;
        let facts = Facts {
            kind: inode.kind,
            permissions: inode.permissions,
            owner: (inode.uid, inode.gid),
            mtime: inode.mtime.seconds,
            nlink: inode.nlink,
            size: if is_directory { 0 } else { inode.size },
            rdev: inode.rdev,
            content: hash.finish(),
            xattrs: xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
            first,
        };
        all.insert(entry.path, facts);
    }
    all
}

pub(crate) fn assert_same(ours: &Archive, theirs: &Archive, what: &str) {
    let (ours, theirs) = (facts(ours), facts(theirs));
    let names = |facts: &BTreeMap<Vec<u8>, Facts>| -> Vec<String> {
        facts.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    };
    assert_eq!(names(&ours), names(&theirs), "{what}");
    for (name, facts) in &ours {
        assert_eq!(*facts, theirs[name], "{what}: {:?}", OsStr::from_bytes(name));
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    Numbers(seed).bytes(len)
}

/// Whether the file system makes the device 0/0: a whiteout to the kernel's overlayfs, which lets nobody make one.
fn makes_null() -> bool {
    Surrounding::current() != Surrounding::Overlayfs
}

/// A tree with some of everything that is to be had.
fn varied(root: &Path) {
    let at = |name: &str| root.join(name);
    for (number, len) in
        [0, 1, 5000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7].into_iter().enumerate()
    {
        fs::write(at(&format!("file-{len}")), bytes(number as u64 + 1, len)).unwrap();
        fs::write(at(&format!("other-{len}")), bytes(number as u64 + 50, len)).unwrap();
    }
    for dir in ["moved/in/deep", "whited/in", "opaque", "links", "wide", "empty-directory"] {
        fs::create_dir_all(at(dir)).unwrap();
        fs::write(at(dir).join("inside"), dir).unwrap();
    }
    fs::remove_file(at("empty-directory/inside")).unwrap();
    for name in 0..700 {
        fs::write(at(&format!("wide/{name:03}-{}", "n".repeat(name % 200))), name.to_string())
            .unwrap();
    }
    for (number, size) in [10, 10, 2 * BLOCK].into_iter().enumerate() {
        fs::write(at(&format!("links/{number}-a")), bytes(90 + number as u64, size)).unwrap();
        for name in ["b", "c"] {
            fs::hard_link(at(&format!("links/{number}-a")), at(&format!("links/{number}-{name}")))
                .unwrap();
        }
    }
    fs::write(at("duplicate"), bytes(3, 5000)).unwrap();
    for (name, islands) in [("holes", &[0, 1 << 19, (1 << 20) + 5][..]), ("hole", &[])] {
        let file = File::create(at(name)).unwrap();
        file.set_len(2 << 20).unwrap();
        for island in islands {
            file.write_all_at(b"an island", *island).unwrap();
        }
    }
    let odd: [&[u8]; 4] = [b"\xff not utf-8", b"new\nline", b".wh.x", &[b'x'; 255]];
    for name in odd {
        fs::write(root.join(OsStr::from_bytes(name)), b"named").unwrap();
    }
    symlink("file-1", at("link")).unwrap();
    symlink("x/".repeat(2000), at("long-link")).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
    fs::set_permissions(at("other-1"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::set_permissions(at("empty-directory"), PermissionsExt::from_mode(0o1777)).unwrap();
    set(&at("other-5000"), "user.kept", b"value");
    set(&at("other-5000"), "user.empty", b"");
    set(&at("wide"), "user.on-directory", &bytes(5, 2000));
    if has(Need::Root) {
        for (name, kind, major, minor) in [
            ("block-device", FileType::BlockDevice, 8, 1),
            ("char-device", FileType::CharacterDevice, 4095, 0xf_ffff),
            ("null", FileType::CharacterDevice, 0, 0),
        ] {
            let made = mknodat(CWD, at(name), kind, Mode::from(0o640), makedev(major, minor));
            match name == "null" && !makes_null() {
                true => assert_eq!(made, Err(Errno::PERM)),
                false => made.unwrap(),
            }
        }
        std::os::unix::fs::lchown(at("other-0"), Some(70_000), Some(4_000_000_000)).unwrap();
        std::os::unix::fs::lchown(at("link"), Some(3), Some(4)).unwrap();
        set(&at("link"), "trusted.on-link", b"l");
        set(&at("other-1"), "trusted.overlay.opaque", b"y");
    }
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_234_567_890);
    File::options().write(true).open(at("file-1")).unwrap().set_modified(then).unwrap();
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn append(path: &Path, data: &[u8]) {
    use std::io::Write;
    File::options().append(true).open(path).unwrap().write_all(data).unwrap();
}

type Change = fn(&Path);

/// What is done to a mount, one after the other.
const CHANGES: &[(&str, Change)] = &[
    ("nothing", |_| {}),
    ("data", |root| {
        for len in [0, 1, 5000, BLOCK - 1, BLOCK, BLOCK + 1] {
            append(&root.join(format!("file-{len}")), b"more");
            fs::write(root.join(format!("new-{len}")), bytes(len as u64 + 900, len)).unwrap();
        }
        File::options().write(true).open(root.join("other-131073")).unwrap().set_len(7).unwrap();
        fs::write(root.join("new-duplicate"), bytes(900 + 5000, 5000)).unwrap();
        let sparse = File::create(root.join("new-holes")).unwrap();
        sparse.set_len(5 << 20).unwrap();
        sparse.write_all_at(b"end", 3 << 20).unwrap();
        File::options()
            .write(true)
            .open(root.join("holes"))
            .unwrap()
            .write_all_at(b"!", 700_000)
            .unwrap();
    }),
    ("attributes", |root| {
        let at = |name: &str| root.join(name);
        fs::set_permissions(at("other-5000"), PermissionsExt::from_mode(0o600)).unwrap();
        fs::set_permissions(at("file-393223"), PermissionsExt::from_mode(0o4711)).unwrap();
        fs::set_permissions(at("opaque"), PermissionsExt::from_mode(0o2770)).unwrap();
        set(&at("other-131072"), "user.added", b"1");
        set(&at("other-131072"), "user.overlay.mine", b"2");
        set(&at("moved"), "user.on-directory", b"3");
        // An ACL that is more than the mode, which no archive can hold.
        let entries = [
            (1u16, 6u16, u32::MAX),
            (2, 4, 12),
            (4, 4, u32::MAX),
            (0x10, 6, u32::MAX),
            (0x20, 0, u32::MAX),
        ];
        let acl = entries.iter().flat_map(|(tag, rights, id)| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        });
        let acl: Vec<u8> = 2u32.to_le_bytes().into_iter().chain(acl).collect();
        // Not every file system below has them.
        let _ = lsetxattr(at("duplicate"), "system.posix_acl_access", &acl, XattrFlags::empty());
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000);
        File::options().write(true).open(at("hole")).unwrap().set_modified(then).unwrap();
        rustix::fs::removexattr(at("other-5000"), "user.kept").unwrap();
        if has(Need::Root) {
            std::os::unix::fs::lchown(at("other-5000"), Some(12), Some(34)).unwrap();
            std::os::unix::fs::lchown(at("long-link"), Some(56), Some(78)).unwrap();
            set(&at("long-link"), "trusted.overlay.redirect", b"mine");
        }
    }),
    ("links", |root| {
        let at = |name: &str| root.join("links").join(name);
        // Of one a name is gone, of one another has come, and one is changed through one of its names.
        fs::remove_file(at("0-b")).unwrap();
        fs::hard_link(at("1-b"), root.join("one-more")).unwrap();
        append(&at("2-c"), b"changed");
        fs::hard_link(root.join("other-1"), root.join("wide/second")).unwrap();
        fs::write(root.join("made"), "made").unwrap();
        fs::hard_link(root.join("made"), root.join("opaque/made-too")).unwrap();
        fs::set_permissions(at("1-a"), PermissionsExt::from_mode(0o604)).unwrap();
        symlink("target", root.join("new-link")).unwrap();
        fs::hard_link(root.join("new-link"), root.join("new-link-too")).unwrap();
    }),
    ("names", |root| {
        let at = |name: &str| root.join(name);
        fs::rename(at("moved"), at("wide/was-moved")).unwrap();
        fs::write(at("wide/was-moved/in/new"), "new").unwrap();
        fs::rename(at("file-393223"), at("wide/large")).unwrap();
        fs::rename(at("links/0-a"), at("moved")).unwrap();
        fs::remove_dir_all(at("whited")).unwrap();
        fs::remove_dir_all(at("opaque")).unwrap();
        fs::create_dir(at("opaque")).unwrap();
        fs::write(at("opaque/only"), "this").unwrap();
        fs::remove_file(at("duplicate")).unwrap();
        fs::create_dir(at("duplicate")).unwrap();
        fs::remove_dir(at("empty-directory")).unwrap();
        symlink("was a directory", at("empty-directory")).unwrap();
        fs::remove_file(root.join(OsStr::from_bytes(&[b'x'; 255]))).unwrap();
        fs::write(root.join(OsStr::from_bytes(&[b'y'; 255])), "long").unwrap();
    }),
    ("special files", |root| {
        let at = |name: &str| root.join(name);
        mknodat(CWD, at("new-fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        mknodat(CWD, at("new-socket"), FileType::Socket, Mode::from(0o600), 0).unwrap();
        fs::set_permissions(at("fifo"), PermissionsExt::from_mode(0o606)).unwrap();
        if has(Need::Root) {
            let null = makedev(0, 0);
            mknodat(CWD, at("new-null"), FileType::CharacterDevice, Mode::from(0o600), null)
                .unwrap();
            mknodat(CWD, at("new-device"), FileType::BlockDevice, Mode::from(0o600), makedev(7, 8))
                .unwrap();
            if makes_null() {
                fs::set_permissions(at("null"), PermissionsExt::from_mode(0o606)).unwrap();
            }
            fs::remove_file(at("char-device")).unwrap();
        }
    }),
    ("many names", |root| {
        // More than are looked up together.
        for n in 0..4500 {
            fs::write(root.join(format!("wide/new-{n}")), []).unwrap();
        }
        for n in 0..300 {
            fs::create_dir(root.join(format!("opaque/{n}"))).unwrap();
        }
    }),
    ("all removed", |root| {
        for entry in fs::read_dir(root).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => fs::remove_dir_all(entry.path()).unwrap(),
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
    }),
];

/// The answer of a command that succeeds.
fn ok(place: &Place, arguments: &[&str]) -> Value {
    let (status, mut lines) = place.json(arguments);
    assert_eq!(status, 0, "{}: {arguments:?}: {lines:?}", place.name);
    lines.pop().unwrap()
}

fn id(created: &Value) -> &str {
    created["id"].as_str().unwrap()
}

/// A backup, and where it is mounted with an upper that stays.
struct World {
    place: Place,
    library: Library,
    first: String,
    target: PathBuf,
    upper: PathBuf,
    work: PathBuf,
}

impl World {
    fn new(place: Place, fill: impl FnOnce(&Path)) -> Self {
        let tree = place.bench.directory("tree");
        fill(&tree);
        let first = id(&ok(&place, &["create", text(&tree)])).to_owned();
        let [target, upper, work] =
            ["mnt", "upper", "work"].map(|name| place.bench.directory(name));
        let library = Library::new(&place);
        Self { library, place, first, target, upper, work }
    }

    /// Changes the mount, and gives its backup as the program makes it.
    fn change(&self, change: impl FnOnce(&Path)) -> Value {
        let Self { place, first, target, upper, work, .. } = self;
        let how = ["--upper", text(upper), "--workdir", text(work)];
        let source = self.library.backups.archive(&first.parse().unwrap()).unwrap().source;
        ok(place, &[&["mount", &source.to_string(), text(target)], &how[..]].concat());
        change(target);
        // With an option that only the command knows: the server would make a layer of the upper.
        let created = ok(place, &["create", "--threads", "2", text(target)]);
        place.bench.ok(&["unmount", text(target)]);
        created
    }

    fn tree(&self, opened: &OpenArchive) -> Arc<Overlay> {
        merged(opened, Some((&self.upper, &self.work)))
    }
}

#[test]
fn what_is_published_is_what_a_backup_of_the_mount_holds() {
    if !can_mount("what_is_published_is_what_a_backup_of_the_mount_holds") {
        return;
    }
    for place in Place::both() {
        let world = World::new(place, varied);
        let name = world.place.name;
        for (what, change) in CHANGES {
            // What is packed does not depend on where it goes.
            let both = [false, true];
            let wholes = if world.place.server.is_some() { &both[..1] } else { &both };
            let theirs = world.change(change);
            let theirs_open = world.library.open(id(&theirs));
            let opened = world.library.open(&world.first);
            let tree = world.tree(&opened);
            let nodes = tree.node_count();
            for &whole in wholes {
                let request = PublishRequest { whole, ..PublishRequest::new("/some/dir") };
                let ours = world.library.publish(&tree, &request);
                let case = format!("{name}, {what}, whole: {whole}");
                let is_onto = !whole && theirs["base"].is_string();
                assert_eq!(ours.base.is_some(), is_onto, "{case}: {:?}", ours.whole_because);
                if is_onto {
                    assert_eq!(ours.bytes_kept, theirs["bytesKept"].as_u64().unwrap(), "{case}");
                }
                assert_eq!(ours.bytes, theirs["bytes"].as_u64().unwrap(), "{case}");
                assert_eq!(ours.metadata.dir, "/some/dir");
                let ours_open = world.library.open(ours.metadata.id.as_str());
                assert_same(&ours_open.archive, &theirs_open.archive, &case);
                assert_eq!(tree.node_count(), nodes, "{case}: lookups are given back");
            }
        }
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    Numbers(seed).noise(len)
}

#[test]
fn owners_are_published_as_they_are_stored_whatever_is_shown() {
    let world = World::new(Place::local(), varied);
    let opened = world.library.open(&world.first);
    let all =
        || IdView::new(IdOptions { all: Some(7), ..IdOptions::default() }, IdNamespace::default());
    let upper = Upper::open(&world.upper, &world.work).unwrap();
    let tree = Overlay::new(Arc::clone(&opened.archive), Some(upper), Options::default()).unwrap();
    let tree = tree.showing(Identity { uids: all(), gids: all() }).named(opened.as_mounted());
    let shown = tree.lookup(Ino::ROOT, OsStr::new("file-5000")).unwrap();
    assert_eq!((shown.uid, shown.gid), (7, 7));
    let mode = SetAttr { mode: Some(shown.perm.into()), ..SetAttr::default() };
    tree.setattr(&ROOT, shown.ino, None, &mode).unwrap();
    tree.forget(shown.ino, 1);
    let created = world.library.publish(&Arc::new(tree), &PublishRequest::new("/dir"));
    let ours = world.library.open(created.metadata.id.as_str());
    assert_same(&ours.archive, &opened.archive, "one of the upper, and the others");
}

/// Several parts of an upload.
fn large(root: &Path) {
    for n in 0..6 {
        fs::write(root.join(format!("large-{n}")), noise(n + 1, 6 << 20)).unwrap();
    }
    for n in 0..200 {
        let dir = root.join(format!("dir-{}", n / 10));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("small-{n}")), noise(100 + n, 10_000)).unwrap();
    }
}

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

/// Writes to a file of a merged tree, without a mount.
fn write(tree: &Overlay, path: &str, at: u64, data: &[u8]) {
    let mut ino = Ino::ROOT;
    let mut held = Vec::new();
    for name in Path::new(path) {
        ino = tree.lookup(ino, name).unwrap().ino;
        held.push(ino);
    }
    let opened = tree.open(ino, libc::O_WRONLY).unwrap();
    tree.write(opened.handle, at, data).unwrap();
    tree.release(opened.handle);
    held.into_iter().for_each(|ino| tree.forget(ino, 1));
}

fn length(seen: &Seen) -> u64 {
    seen.headers.get("content-length").map_or(0, |len| len.to_str().unwrap().parse().unwrap())
}

#[test]
fn no_more_is_sent_or_fetched_than_the_changes_take() {
    let world = World::new(Place::s3(), large);
    let server = world.place.server.as_ref().unwrap();
    let opened = world.library.open(&world.first);
    let tree = world.tree(&opened);
    for round in 0..3u8 {
        if round > 0 {
            // What a copy-up reads ahead of itself would be taken for ours. So all is in memory by now.
            assert_eq!(facts(&opened.archive).len(), 227);
            write(&tree, "dir-3/small-31", 5, &[round; 100]);
            write(&tree, "dir-4/small-44", 20_000, &[round; 100]);
        }
        if round > 1 {
            write(&tree, "large-2", 5, &[round]);
        }
        let fetched = opened.chunk_counters().fetched_bytes;
        server.clear_log();
        let created = world.library.publish(&tree, &PublishRequest::new("/dir"));
        let log = server.log();
        assert_eq!(created.base.as_ref().map(|id| id.as_str()), Some(world.first.as_str()));
        let changed = created.bytes - created.bytes_kept;
        assert_eq!(changed, [0, 30_100, 30_100 + (6 << 20)][usize::from(round)]);
        let sent: u64 = log.iter().map(length).sum();
        assert!(sent <= changed + 2 * PART + (64 << 10), "{round}: {sent} bytes are sent");
        // The two seams, and the last byte of either archive.
        let gets: Vec<_> = log.iter().filter(|seen| seen.method == "GET").collect();
        let ranges: Vec<_> = gets.iter().map(|seen| seen.range.as_deref().unwrap()).collect();
        assert_eq!(ranges.len(), 4, "{round}: {ranges:?}");
        let got: u64 = gets.iter().map(|seen| seen.sent).sum();
        assert!(got <= 2 * PART + 2, "{round}: {got} bytes are fetched");
        let fetched_since = opened.chunk_counters().fetched_bytes - fetched;
        assert_eq!(fetched_since, 0, "{round}: the archive is not read");
        let copies = log.iter().filter(|seen| seen.headers.contains_key("x-amz-copy-source"));
        assert_eq!(copies.count() as u64, opened.archive.superblock().inode_table.0 / PART - 1);
        world.library.runtime.block_on(async {
            let progress = Arc::default();
            world.library.backups.verify(&created.metadata.id, 2, progress).await.unwrap();
        });
    }
}

#[test]
fn a_tree_that_cannot_be_published_onto_its_archive_is_packed_anew_and_says_why() {
    let world = World::new(Place::s3_as(|config| config.copies = false), large);
    let opened = world.library.open(&world.first);
    let tree = world.tree(&opened);
    write(&tree, "large-0", 5, b"changed");
    let reference = world
        .library
        .publish(&tree, &PublishRequest { whole: true, ..PublishRequest::new("/dir") });
    assert_eq!((&reference.base, &reference.whole_because), (&None, &None));
    let reference_open = world.library.open(reference.metadata.id.as_str());
    let whole = |library: &Library, tree: &Arc<Overlay>, compression, reason: &str| {
        let request = PublishRequest { compression, ..PublishRequest::new("/dir") };
        let created = library.publish(tree, &request);
        let because = created.whole_because.as_deref().unwrap_or_default();
        assert!(because.contains(reason), "{because}");
        assert_eq!((&created.base, created.bytes_kept), (&None, 0), "{reason}");
        let open = library.open(created.metadata.id.as_str());
        assert_same(&open.archive, &reference_open.archive, reason);
    };
    whole(&world.library, &tree, None, "the store does not copy it");
    let lz4 = Some(thawfs::squashfs::write::Compression::Lz4);
    whole(&world.library, &tree, lz4, "of zstd, and not of lz4");
    // Elsewhere, and of what does not say what it is made over.
    let other = Place::local();
    let elsewhere = Library::new(&other);
    let created = elsewhere.publish(&tree, &PublishRequest::new("/dir"));
    let because = created.whole_because.unwrap();
    assert!(because.contains("no backup in this bucket"), "{because}");
    let open = elsewhere.open(created.metadata.id.as_str());
    assert_same(&open.archive, &reference_open.archive, "elsewhere");
    drop(tree);
    let (archive, options) = (Arc::clone(&opened.archive), Options::default());
    let upper = Upper::open(&world.upper, &world.work).unwrap();
    let nameless = Arc::new(Overlay::new(archive, Some(upper), options).unwrap());
    whole(&world.library, &nameless, None, "not known where the archive");
    drop(nameless);
    // Its archive is in memory, if nowhere else.
    let opened = world.library.open(&world.first);
    let tree = world.tree(&opened);
    let every = facts(&opened.archive);
    assert!(every.len() > 200);
    ok(&world.place, &["delete", &world.first]);
    whole(&world.library, &tree, None, "the archive of the mount cannot be read");
}

#[test]
fn an_archive_that_would_be_dead_for_the_most_part_is_packed_anew() {
    let world = World::new(Place::local(), large);
    let opened = world.library.open(&world.first);
    let tree = world.tree(&opened);
    for (number, is_onto) in [(0, true), (1, true), (2, true), (3, false)] {
        tree.unlink(Ino::ROOT, OsStr::new(&format!("large-{number}"))).unwrap();
        let created = world.library.publish(&tree, &PublishRequest::new("/dir"));
        assert_eq!(created.base.is_some(), is_onto, "{number}: {:?}", created.whole_because);
        let because = created.whole_because.unwrap_or_default();
        assert_eq!(because.contains("more than half"), !is_onto, "{because}");
        assert_eq!(created.metadata.size_bytes < 20 << 20, !is_onto);
    }
}

#[test]
fn an_id_that_is_taken_is_refused_and_its_backup_stays() {
    let world = World::new(Place::local(), large);
    let opened = world.library.open(&world.first);
    let tree = merged(&opened, None);
    let id = Some("11111111-2222-4333-8444-555555555555".parse().unwrap());
    let request = PublishRequest { id, ..PublishRequest::new("/dir") };
    let created = world.library.publish(&tree, &request);
    assert_eq!(Some(&created.metadata.id), request.id.as_ref());
    assert_eq!(created.bytes, created.bytes_kept, "a tree without an upper");
    let again = world.library.backups.publish(&tree, &request, Arc::default());
    let failure = world.library.runtime.block_on(again).unwrap_err();
    assert_eq!(failure.code, thawfs::failure::Code::InvalidBackupConfig);
    let open = world.library.open(created.metadata.id.as_str());
    assert_same(&open.archive, &opened.archive, "without an upper");
    for (dir, why) in [("relative", "absolute"), ("/a/../b", "..")] {
        let bad = PublishRequest::new(dir);
        let bad = world.library.backups.publish(&tree, &bad, Arc::default());
        let failure = world.library.runtime.block_on(bad).unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
    }
}

#[test]
fn a_tree_that_changes_meanwhile_is_published_without_an_error() {
    let world = World::new(Place::local(), varied);
    let opened = world.library.open(&world.first);
    let tree = world.tree(&opened);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let (tree, done) = (&tree, &done);
            scope.spawn(move || {
                let dir = tree.lookup(Ino::ROOT, OsStr::new("wide")).unwrap().ino;
                for n in (0..).take_while(|_| !done.load(Ordering::Relaxed)) {
                    let names =
                        [format!("{thread}-{}", n % 50), format!("{thread}-{}-moved", n % 50)];
                    let [from, to] = names.each_ref().map(OsStr::new);
                    let made = tree.create(&ROOT, dir, from, 0o644, libc::O_WRONLY).unwrap();
                    tree.write(made.1.handle, 0, &[thread as u8; 5000]).unwrap();
                    tree.rename(&ROOT, dir, from, dir, to, RenameFlags::empty()).unwrap();
                    tree.release(made.1.handle);
                    tree.forget(made.0.ino, 1);
                    if n % 3 == 0 {
                        tree.unlink(dir, to).unwrap();
                    }
                    append_to(tree, "file-5000");
                    // As editors do it. Two at once in a directory the kernel does not let through.
                    if thread > 0 {
                        continue;
                    }
                    let (made, opened) =
                        tree.create(&ROOT, Ino::ROOT, from, 0o600, libc::O_WRONLY).unwrap();
                    let target = OsStr::new("file-1");
                    tree.write(opened.handle, 0, b"one of many").unwrap();
                    tree.release(opened.handle);
                    tree.rename(&ROOT, Ino::ROOT, from, Ino::ROOT, target, RenameFlags::empty())
                        .unwrap();
                    tree.forget(made.ino, 1);
                }
                tree.forget(dir, 1);
            });
        }
        for round in 0..6 {
            let request = PublishRequest { whole: round % 2 == 1, ..PublishRequest::new("/dir") };
            let created = world.library.publish(&tree, &request);
            let now = facts(&world.library.open(created.metadata.id.as_str()).archive);
            for (name, before) in &facts(&opened.archive) {
                // What has a name all the while is there, and what nobody touches as it was.
                assert!(now.contains_key(name), "{:?}", OsStr::from_bytes(name));
                if !name.starts_with(b"file-") && name != b"wide" && !name.is_empty() {
                    assert_eq!(now.get(name), Some(before), "{:?}", OsStr::from_bytes(name));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(tree.node_count(), 1, "lookups are given back");
}

#[test]
fn files_that_a_rollback_changed_and_somebody_knows_are_published_as_they_are() {
    let world = World::new(Place::local(), varied);
    let opened = world.library.open(&world.first);
    let dir = tempfile::tempdir().unwrap();
    let (upper, work) = (layer_dir(dir.path(), 0), dir.path().join("work"));
    for made in [&upper, &work] {
        std::fs::create_dir_all(made).unwrap();
    }
    let tree = merged(&opened, Some((&upper, &work)));
    let name = OsStr::new("file-5000");
    let before = tree.lookup(Ino::ROOT, name).unwrap();
    append_to(&tree, "file-5000");
    roll_back(&tree, dir.path(), &[], 1);
    let after = tree.lookup(Ino::ROOT, name).unwrap();
    assert_eq!((after.number, after.size), (before.number, before.size));
    assert_ne!(after.ino, before.ino, "what was known of it is another node's");
    let request = PublishRequest { whole: true, ..PublishRequest::new("/dir") };
    let created = world.library.publish(&tree, &request);
    let published = world.library.open(created.metadata.id.as_str());
    assert_same(&published.archive, &opened.archive, "rolled back");
    for known in [before, after] {
        tree.forget(known.ino, 1);
    }
    assert_eq!(tree.node_count(), 1, "lookups are given back");
}

fn append_to(tree: &Overlay, name: &str) {
    let attr = tree.lookup(Ino::ROOT, OsStr::new(name)).unwrap();
    let opened = tree.open(attr.ino, libc::O_WRONLY).unwrap();
    tree.write(opened.handle, attr.size, b"more").unwrap();
    tree.release(opened.handle);
    tree.forget(attr.ino, 1);
}

#[test]
fn a_directory_of_70000_names_takes_the_memory_of_a_batch_of_nodes() {
    const NAMES: usize = 70_000;
    let world = World::new(Place::local(), |root| {
        let dir = root.join("many");
        fs::create_dir(&dir).unwrap();
        for n in 0..NAMES {
            File::create(dir.join(n.to_string())).unwrap();
        }
        // Another of as many in the upper.
        fs::create_dir(root.join("new")).unwrap();
    });
    fs::create_dir(world.upper.join("new")).unwrap();
    for n in 0..NAMES {
        File::create(world.upper.join(format!("new/{n}"))).unwrap();
    }
    let opened = world.library.open(&world.first);
    let tree = world.tree(&opened);
    let most = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let created = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(tree.node_count(), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let created = world.library.publish(&tree, &PublishRequest::new("/dir"));
        done.store(true, Ordering::Relaxed);
        created
    });
    assert_eq!(created.inodes as usize, 2 * NAMES + 3);
    let most = most.into_inner();
    assert!((2..5000).contains(&most), "{most} nodes at once");
    assert_eq!(tree.node_count(), 1);
    let facts = facts(&world.library.open(created.metadata.id.as_str()).archive);
    for dir in ["many/", "new/"] {
        let within = facts.keys().filter(|name| name.starts_with(dir.as_bytes()));
        assert_eq!(within.count(), NAMES, "{dir}");
    }
}
