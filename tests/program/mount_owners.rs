//! Whose files a mount shows: the options for it, as root, as an ordinary user, and in a user namespace;
//! with what the upper and a backup keep.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::mount::{Bench, can_mount_with, open_fuse_to_users};
use crate::support::surrounding::{Need, skip};

const NOBODY: u32 = 65_534;

/// A bench with an archive of which nearly all is 1000:1001's, a copy of the program that everybody
/// can run, and a mountpoint.
struct Owners {
    bench: Bench,
    archive: PathBuf,
    mountpoint: PathBuf,
    program: PathBuf,
}

impl Owners {
    fn new() -> Self {
        let bench = Bench::new();
        let tree = bench.directory("tree");
        std::fs::create_dir_all(tree.join("dir/deeper")).unwrap();
        for name in ["file", "private", "dir/inner", "dir/deeper/last", "other"] {
            std::fs::write(tree.join(name), "archived\n").unwrap();
        }
        std::fs::set_permissions(tree.join("private"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::hard_link(tree.join("file"), tree.join("dir/file-too")).unwrap();
        symlink("file", tree.join("link")).unwrap();
        for entry in walkdir::WalkDir::new(&tree) {
            lchown(entry.unwrap().path(), Some(1000), Some(1001)).unwrap();
        }
        chown(tree.join("other"), Some(2003), Some(2004)).unwrap();
        let archive = bench.archive(&tree, "data.sqsh", &["-comp", "zstd"]);
        let program = bench.path("thawfs");
        std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
        open_fuse_to_users();
        let mountpoint = bench.directory("mnt");
        Self { bench, archive, mountpoint, program }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    fn upper(&self) -> PathBuf {
        self.bench.path("work/upper")
    }

    /// Mounts as root, with the upper that is kept from mount to mount.
    fn mount(&self, options: &str) -> Output {
        std::fs::create_dir_all(self.bench.path("work")).unwrap();
        let places = [self.archive.as_os_str(), self.mountpoint.as_os_str()];
        let upper = self.upper();
        let rest = [OsStr::new("--upper"), upper.as_os_str(), OsStr::new("-o"), options.as_ref()];
        let mut command = self.bench.thawfs();
        command.arg("mount").args(places).args(rest).output().unwrap()
    }

    fn mount_ok(&self, options: &str) {
        let output = self.mount(options);
        assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn unmount(&self) {
        self.bench.ok(&["unmount".as_ref(), self.mountpoint.as_os_str()]);
    }

    /// Owner and group of everything that is mounted, as they are shown.
    fn shown(&self) -> Vec<(String, (u32, u32))> {
        owners(&self.mountpoint)
    }

    /// What `thawfs create` puts into a backup of the mount, by the archive's own words.
    fn backed_up(&self) -> Vec<(String, (u32, u32))> {
        let bucket = self.bench.directory("bucket");
        let handle = self.bench.ok(&[
            "create".as_ref(),
            self.mountpoint.as_os_str(),
            "--bucket".as_ref(),
            bucket.as_os_str(),
        ]);
        let handle: serde_json::Value = serde_json::from_str(&handle).unwrap();
        let archive = bucket.join("backups").join(handle["id"].as_str().unwrap()).join("data.sqsh");
        self.archived(&archive)
    }

    fn archived(&self, archive: &Path) -> Vec<(String, (u32, u32))> {
        let listing =
            Command::new("unsquashfs").args(["-lln", "-d", ""]).arg(archive).output().unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        let mut found: Vec<_> = listing
            .lines()
            .filter_map(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                let (uid, gid) = words.get(1)?.split_once('/')?;
                let path = words.get(5)?.trim_start_matches('/').to_owned();
                Some((path, (uid.parse().ok()?, gid.parse().ok()?)))
            })
            .collect();
        found.sort();
        assert!(found.len() > 5, "{listing}");
        found
    }

    /// Runs a shell script by which `$thawfs`, `$archive`, `$mnt` and `$upper` are known: as nobody,
    /// directly or in what `within` makes of it.
    fn as_nobody(&self, within: &[&str], script: &str) -> Output {
        let work = self.bench.directory("work");
        for path in [
            &self.mountpoint,
            &self.bench.directory("state"),
            &self.bench.directory("cache"),
            &work,
        ] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let bucket = self.bench.directory("bucket-of-nobody");
        chown(&bucket, Some(NOBODY), Some(NOBODY)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(within);
        command.args(["sh", "-c", &format!("set -eu; umask 022; {script}")]);
        for (name, value) in [
            ("thawfs", &self.program),
            ("archive", &self.archive),
            ("mnt", &self.mountpoint),
            ("upper", &self.upper()),
            ("bucket", &bucket),
            ("THAWFS_STATE_DIR", &self.bench.state_dir()),
            ("THAWFS_CACHE_DIR", &self.bench.cache_dir()),
            ("HOME", &self.bench.path("")),
        ] {
            command.env(name, value);
        }
        command.output().unwrap()
    }

    /// As [`Self::as_nobody`], and insists on success. Gives what was printed and warned of.
    fn nobody_does(&self, within: &[&str], script: &str) -> (String, String) {
        let output = self.as_nobody(within, script);
        let said = String::from_utf8(output.stderr).unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}: {printed}\n{said}", output.status);
        (printed, said)
    }
}

fn owners(root: &Path) -> Vec<(String, (u32, u32))> {
    let entries = walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name();
    let entry = |entry: walkdir::DirEntry| {
        let about = entry.path().symlink_metadata().unwrap();
        let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        (name, (about.uid(), about.gid()))
    };
    entries.into_iter().map(|found| entry(found.unwrap())).collect()
}

fn owner(path: &Path) -> (u32, u32) {
    let about = path.symlink_metadata().unwrap();
    (about.uid(), about.gid())
}

/// Runs a shell command as another user, and gives its errno by name or nothing.
fn sh_as(uid: u32, gid: u32, script: &str, path: &Path) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(path).gid(gid).uid(uid);
    command.output().unwrap().status.success()
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap())
}

#[test]
fn all_files_are_shown_as_one_owner_s_and_stay_whose_they_are() {
    if !can_mount_with("all_files_are_shown_as_one_owner_s_and_stay_whose_they_are", &[Need::Root])
    {
        return;
    }
    let owners = Owners::new();
    // Without the option the user may not.
    owners.mount_ok("rw");
    assert!(!sh_as(4000, 4001, "echo more >>$1", &owners.at("file")));
    let before = owners.shown();
    assert_eq!(before[0], ("dir".to_owned(), (1000, 1001)));
    owners.unmount();

    for (options, expected) in [
        ("uid=4000,gid=4001", (4000, 4001)),
        ("squash_to_uid=4000,squash_to_gid=4001", (4000, 4001)),
        ("squash_to_root", (0, 0)),
        ("squash_to_uid=4000,squash_to_root", (4000, 0)),
        ("squash_to_root,squash_to_gid=4001", (0, 4001)),
    ] {
        owners.mount_ok(options);
        for (name, shown) in owners.shown() {
            assert_eq!(shown, expected, "{options}: {name}");
        }
        assert_eq!(owner(&owners.mountpoint), expected, "{options}: the root");
        owners.unmount();
    }

    owners.mount_ok("uid=4000,gid=4001");
    assert!(sh_as(4000, 4001, "echo more >>$1", &owners.at("file")), "what is shown is checked");
    assert!(!sh_as(1000, 1001, "echo more >>$1", &owners.at("other")), "and nothing else");
    assert!(sh_as(4000, 4001, "mv $1 $1-moved", &owners.at("dir")));
    assert!(sh_as(4000, 4001, "echo new >$1", &owners.at("by-user")));
    std::fs::write(owners.at("by-root"), "").unwrap();
    // Given whom it is shown to be of, a file stays whose it is; it cannot be given to others.
    assert_eq!(errno(chown(owners.at("other"), Some(4000), Some(4001))), None);
    for (uid, gid) in [(Some(0), None), (None, Some(1001)), (Some(1000), Some(4001))] {
        assert_eq!(errno(chown(owners.at("other"), uid, gid)), Some(libc::EPERM), "{uid:?}");
    }
    let expected_upper = [
        ("by-root", (0, 0)),
        ("by-user", (4000, 4001)),
        ("dir-moved", (1000, 1001)),
        ("file", (1000, 1001)),
        ("other", (2003, 2004)),
    ];
    for (name, expected) in expected_upper {
        assert_eq!(owner(&owners.at(name)), (4000, 4001), "{name} in the mount");
        assert_eq!(owner(&owners.upper().join(name)), expected, "{name} in the upper");
    }
    let backed_up = owners.backed_up();
    owners.unmount();

    // Without the option all is as it was stored, and a backup of either mount is the same.
    owners.mount_ok("rw");
    let plain = owners.shown();
    for (name, expected) in expected_upper {
        assert!(plain.contains(&(name.to_owned(), expected)), "{name}: {plain:?}");
    }
    assert!(plain.contains(&("dir-moved/deeper/last".to_owned(), (1000, 1001))));
    let stored: Vec<_> = backed_up.into_iter().filter(|(name, _)| !name.is_empty()).collect();
    assert_eq!(stored, plain);
    assert_eq!(owner(&owners.mountpoint), (1000, 1001));
    owners.unmount();
    owners.bench.assert_nothing_left();
}

#[test]
fn ranges_of_owners_are_mapped_and_mapped_back() {
    if !can_mount_with("ranges_of_owners_are_mapped_and_mapped_back", &[Need::Root]) {
        return;
    }
    let owners = Owners::new();
    let options = "uidmapping=1000:0:1:2000:5000:10,gidmapping=1001:0:1:2000:5000:10";
    owners.mount_ok(options);
    assert_eq!(owner(&owners.at("file")), (0, 0));
    assert_eq!(owner(&owners.at("other")), (5003, 5004));
    // The ends of a range, and what is just outside.
    for (uid, stored) in [(5000, Some(2000)), (5009, Some(2009)), (5010, None), (4999, None)] {
        let path = owners.at("file");
        let outcome = errno(chown(&path, Some(uid), None));
        match stored {
            Some(stored) => {
                assert_eq!((outcome, owner(&path).0), (None, uid));
                assert_eq!(owner(&owners.upper().join("file")).0, stored);
            }
            None => assert_eq!(outcome, Some(libc::EOVERFLOW), "{uid}"),
        }
    }
    assert_eq!(owner(&owners.at("dir/file-too")), (5009, 0), "the other name of file");

    // New files are stored as of whom their makers are, and by nobody that has no number.
    std::fs::set_permissions(&owners.mountpoint, PermissionsExt::from_mode(0o777)).unwrap();
    assert!(sh_as(5002, 5003, "echo >$1; mkdir $1-dir; ln -s x $1-link", &owners.at("new")));
    for name in ["new", "new-dir", "new-link"] {
        assert_eq!(owner(&owners.at(name)), (5002, 5003), "{name}");
        assert_eq!(owner(&owners.upper().join(name)), (2002, 2003), "{name}");
    }
    std::fs::write(owners.at("by-root"), "").unwrap();
    assert_eq!(owner(&owners.upper().join("by-root")), (1000, 1001));
    assert!(!sh_as(7, 5000, "echo >$1", &owners.at("by-7")));
    assert!(!owners.upper().join("by-7").exists());
    // A setgid directory gives its group.
    std::fs::set_permissions(owners.at("new-dir"), PermissionsExt::from_mode(0o2777)).unwrap();
    std::fs::write(owners.at("new-dir/inner"), "").unwrap();
    assert_eq!(owner(&owners.at("new-dir/inner")), (0, 5003));
    assert_eq!(owner(&owners.upper().join("new-dir/inner")), (1000, 2003));

    // So are those that ACLs name.
    let acl = |path: &Path| {
        let said = Command::new("getfacl").args(["-cnpE"]).arg(path).output().unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    let set = |entry: &str, path: &Path| {
        Command::new("setfacl").args(["-m", entry]).arg(path).output().unwrap().status.success()
    };
    let private = owners.at("private");
    assert!(!sh_as(5004, 5000, "cat $1", &private));
    assert!(set("u:5004:rw,g:5005:r", &private), "setfacl");
    assert!(sh_as(5004, 5000, "cat $1", &private), "the entry counts for whom it names");
    assert!(acl(&private).contains("user:5004:rw-") && acl(&private).contains("group:5005:r--"));
    let stored = acl(&owners.upper().join("private"));
    assert!(stored.contains("user:2004:rw-") && stored.contains("group:2005:r--"), "{stored}");
    assert!(!set("u:7:rw", &private), "nobody who has no number");
    assert!(set("d:u:5004:rwx", &owners.at("new-dir")));
    std::fs::write(owners.at("new-dir/heir"), "").unwrap();
    assert!(acl(&owners.at("new-dir/heir")).contains("user:5004:"));

    // What has no number shows as nobody's, and stays whose it is when it is given to nobody.
    chown(owners.at("other"), Some(5001), Some(5001)).unwrap();
    owners.unmount();
    owners.mount_ok("uidmapping=1000:0:1,gidmapping=1001:0:1");
    assert_eq!(owner(&owners.at("other")), (NOBODY, NOBODY));
    assert_eq!(errno(chown(owners.at("other"), Some(NOBODY), Some(NOBODY))), None);
    assert_eq!(errno(chown(owners.at("file"), Some(NOBODY - 1), None)), Some(libc::EOVERFLOW));
    assert_eq!(owner(&owners.upper().join("other")), (2001, 2001));
    owners.unmount();

    owners.mount_ok(options);
    assert_eq!(owner(&owners.at("other")), (5001, 5001));
    owners.unmount();
    owners.bench.assert_nothing_left();
}

/// By each way in which the one a file is shown to belong to may give it set-id bits or contents.
const LENDING: &[(&str, &str)] = &[
    ("chmod", "echo own >file; chmod 6755 file"),
    (
        "open with the bits",
        "python3 -c 'import os; os.open(\"new\", os.O_CREAT | os.O_WRONLY, 0o6755)'",
    ),
    ("mknod with the bits", "python3 -c 'import os; os.mknod(\"new2\", 0o106755)'"),
    ("a write", "echo own >>lending"),
    (
        "a mapping",
        "python3 -c 'import mmap; f = open(\"lending2\", \"r+b\"); mmap.mmap(f.fileno(), 0)[:3] = b\"own\"'",
    ),
    (
        "a mapping of what is in the upper",
        "chmod u+w lending3; python3 -c 'import mmap; f = open(\"lending3\", \"r+b\"); mmap.mmap(f.fileno(), 0)[:3] = b\"own\"'",
    ),
];

#[test]
fn who_is_shown_as_an_owner_cannot_lend_the_rights_of_the_one_who_is_stored() {
    let name = "who_is_shown_as_an_owner_cannot_lend_the_rights_of_the_one_who_is_stored";
    if !can_mount_with(name, &[Need::Root]) {
        return;
    }
    for options in [
        "uid=4000,gid=4001",
        "uid=4000,gid=4001,no_passthrough",
        "uidmapping=1000:4000:1,gidmapping=1001:4001:1",
        "uidmapping=1000:4000:1,gidmapping=1001:4001:1,suid",
    ] {
        let owners = Owners::new();
        let tree = owners.bench.path("tree");
        for name in ["lending", "lending2", "lending3"] {
            std::fs::write(tree.join(name), "archived\n").unwrap();
            chown(tree.join(name), Some(1000), Some(1001)).unwrap();
            std::fs::set_permissions(tree.join(name), PermissionsExt::from_mode(0o6755)).unwrap();
        }
        owners.bench.archive(&tree, "data.sqsh", &["-comp", "zstd"]);
        owners.mount_ok(options);
        chown(&owners.mountpoint, Some(4000), Some(4001)).unwrap();
        for (way, script) in LENDING {
            let script = format!("cd $1 && {script}");
            assert!(sh_as(4000, 4001, &script, &owners.mountpoint), "{way} with {options}");
        }
        let mode = |path: PathBuf| path.metadata().unwrap().mode() & 0o7777;
        for name in ["file", "new", "new2", "lending", "lending2", "lending3"] {
            let stored = owner(&owners.upper().join(name));
            // With one owner for all, what is new is stored as it is shown.
            let own = name.starts_with("new") && options.starts_with("uid=");
            assert_eq!(stored, if own { (4000, 4001) } else { (1000, 1001) }, "{name}");
            let expected = if own { 0o6755 } else { 0o755 };
            let (shown, kept) = (mode(owners.at(name)), mode(owners.upper().join(name)));
            assert_eq!((shown, kept), (expected, expected), "{name} with {options}");
        }
        // Root may: to whom the rights belong anyway. And what is not mapped stays as it is.
        std::fs::set_permissions(owners.at("file"), PermissionsExt::from_mode(0o6755)).unwrap();
        assert_eq!(mode(owners.upper().join("file")), 0o6755);
        std::fs::OpenOptions::new().append(true).open(owners.at("file")).unwrap();
        assert_eq!(mode(owners.upper().join("file")), 0o6755);
        // A directory's setgid bit lends nothing.
        assert!(sh_as(4000, 4001, "mkdir $1/d && chmod 2775 $1/d", &owners.mountpoint));
        assert_eq!(mode(owners.at("d")), 0o2775, "{options}");
        owners.unmount();
    }
}

#[test]
fn an_acl_s_entries_keep_whom_they_name_under_one_owner_for_all() {
    if !can_mount_with(
        "an_acl_s_entries_keep_whom_they_name_under_one_owner_for_all",
        &[Need::Root],
    ) {
        return;
    }
    let owners = Owners::new();
    owners.mount_ok("rw");
    let setfacl = |entry: &str| {
        let mut command = Command::new("setfacl");
        command.args(["-m", entry]).arg(owners.at("file")).output().unwrap().status.success()
    };
    assert!(setfacl("u:1500:rw,u:1501:r"));
    owners.unmount();
    owners.mount_ok("squash_to_uid=4000");
    // Written back with other rights for a group, the entries for users are the two there were.
    assert!(setfacl("g:77:r"));
    assert!(!setfacl("u:1502:r"), "no entry is for anybody else");
    owners.unmount();
    let said =
        Command::new("getfacl").arg("-cnpE").arg(owners.upper().join("file")).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    for entry in ["user:1500:rw-", "user:1501:r--", "group:77:r--"] {
        assert!(said.contains(entry), "{said}");
    }
}

#[test]
fn an_ordinary_user_is_warned_of_another_s_files_and_can_have_them() {
    if !can_mount_with(
        "an_ordinary_user_is_warned_of_another_s_files_and_can_have_them",
        &[Need::Root],
    ) {
        return;
    }
    let owners = Owners::new();
    let (_, said) = owners.nobody_does(
        &[],
        "$thawfs mount $archive $mnt --upper $upper
         ! sh -c 'echo more >$mnt/file' 2>/dev/null
         $thawfs unmount $mnt",
    );
    assert!(said.contains("warning") && said.contains("-o uid=65534,gid=65534"), "{said}");

    let (printed, said) = owners.nobody_does(
        &[],
        "$thawfs mount $archive $mnt --upper $upper -o uid=65534,gid=65534 >/dev/null
         stat -c '%n %u:%g' $mnt $mnt/file $mnt/link
         echo more >>$mnt/file; cat $mnt/private; echo own >$mnt/new
         mv $mnt/dir $mnt/moved; rm $mnt/moved/inner; chmod 640 $mnt/private
         chown 65534:65534 $mnt/moved; ! chown 1:1 $mnt/moved 2>/dev/null
         ln -sf elsewhere $mnt/link
         stat -c '%n %u:%g' $mnt/file $mnt/moved $mnt/moved/file-too $mnt/new $mnt/link
         $thawfs -q create $mnt --bucket $bucket >/dev/null
         $thawfs unmount $mnt",
    );
    assert!(!said.contains("warning"), "{said}");
    let lines: Vec<_> = printed.lines().filter(|line| *line != "archived").collect();
    assert_eq!(lines.len(), 8, "{printed}");
    assert!(lines.iter().all(|line| line.ends_with(" 65534:65534")), "{printed}");

    // The upper's files are the user's, who cannot give them away; whose they are is kept beside.
    assert_eq!(owner(&owners.upper().join("file")), (NOBODY, NOBODY));
    let expected = [
        ("file", (1000, 1001)),
        ("moved", (1000, 1001)),
        ("moved/deeper", (1000, 1001)),
        ("moved/deeper/last", (1000, 1001)),
        ("moved/file-too", (1000, 1001)),
        ("new", (NOBODY, NOBODY)),
        ("other", (2003, 2004)),
        ("private", (1000, 1001)),
    ];
    let backups = owners.bench.path("bucket-of-nobody/backups");
    let backup = std::fs::read_dir(backups).unwrap().next().unwrap().unwrap().path();
    let backed_up = owners.archived(&backup.join("data.sqsh"));
    let (printed, _) = owners.nobody_does(
        &[],
        "$thawfs -q mount $archive $mnt --upper $upper; cd $mnt
         stat -c '%n %u:%g' file moved moved/deeper moved/deeper/last moved/file-too new other private
         ! sh -c 'echo more >file' 2>/dev/null
         cd /; $thawfs unmount $mnt",
    );
    let mut lines = printed.lines();
    for (name, (uid, gid)) in expected {
        assert_eq!(lines.next(), Some(&*format!("{name} {uid}:{gid}")), "{printed}");
        assert!(backed_up.contains(&(name.to_owned(), (uid, gid))), "{name}: {backed_up:?}");
    }
    // And once more with the option.
    let (printed, _) = owners.nobody_does(
        &[],
        "$thawfs -q mount $archive $mnt --upper $upper -o uid=65534,gid=65534
         echo again >>$mnt/file; cat $mnt/file; $thawfs unmount $mnt",
    );
    assert_eq!(printed, "archived\nmore\nagain\n");
    owners.bench.assert_nothing_left();
}

#[test]
fn in_a_user_namespace_files_of_owners_it_has_not_can_be_changed() {
    if !can_mount_with(
        "in_a_user_namespace_files_of_owners_it_has_not_can_be_changed",
        &[Need::Root],
    ) {
        return;
    }
    let owners = Owners::new();
    let within = ["unshare", "--user", "--map-root-user", "--mount"];
    if !owners.as_nobody(&within, "true").status.success() {
        return skip(
            "in_a_user_namespace_files_of_owners_it_has_not_can_be_changed",
            "ordinary users may make no user namespace",
        );
    }
    let (printed, said) = owners.nobody_does(
        &within,
        "$thawfs mount $archive $mnt --upper $upper >/dev/null
         stat -c '%u:%g' $mnt $mnt/file $mnt/other $mnt/link
         echo more >>$mnt/file; mv $mnt/dir $mnt/moved; rm $mnt/moved/inner
         mv $mnt/private $mnt/moved/; rm $mnt/link; chmod 600 $mnt/other; chown 0:0 $mnt/other
         ln $mnt/file $mnt/third; echo new >$mnt/new; rm -r $mnt/moved/deeper
         cat $mnt/file; ls $mnt $mnt/moved | tr '\\n' ' '; echo
         $thawfs -q create $mnt --bucket $bucket >/dev/null
         $thawfs unmount $mnt",
    );
    assert_eq!(
        printed,
        "0:0\n0:0\n0:0\n0:0\narchived\nmore\n\
         /MNT: file moved new other third  /MNT/moved: file-too private \n"
            .replace("/MNT", owners.mountpoint.to_str().unwrap())
    );
    for told in ["1000, 1001, 2003, 2004", "no number", "as those of 0:0"] {
        assert!(said.contains(told), "{said}");
    }
    let backups = owners.bench.path("bucket-of-nobody/backups");
    let backup = std::fs::read_dir(backups).unwrap().next().unwrap().unwrap().path();
    let backed_up = owners.archived(&backup.join("data.sqsh"));
    for (name, expected) in [
        ("file", (1000, 1001)),
        ("moved", (1000, 1001)),
        ("moved/private", (1000, 1001)),
        ("other", (2003, 2004)),
        // As the namespace has it: that is where the backup was made.
        ("new", (0, 0)),
    ] {
        assert!(backed_up.contains(&(name.to_owned(), expected)), "{name}: {backed_up:?}");
    }
    // The same upper outside of the namespace.
    let (printed, _) = owners.nobody_does(
        &[],
        "$thawfs -q mount $archive $mnt --upper $upper; cd $mnt
         stat -c '%u:%g' file other moved/private new; cd /; $thawfs unmount $mnt",
    );
    assert_eq!(printed, "1000:1001\n2003:2004\n1000:1001\n65534:65534\n");

    // Nobody else than the namespace has can own all files.
    let output = owners.as_nobody(&within, "$thawfs mount $archive $mnt --upper $upper -o uid=5");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no uid 5 in this user namespace"), "{said}");
    owners.bench.assert_nothing_left();
}

#[test]
fn every_way_to_mount_takes_the_options_and_bad_ones_are_named() {
    if !can_mount_with("every_way_to_mount_takes_the_options_and_bad_ones_are_named", &[Need::Root])
    {
        return;
    }
    let owners = Owners::new();
    for bad in [
        "uid=me",
        "uid=-1",
        "uid=4294967295",
        "gid",
        "squash_to_uid=",
        "uidmapping=0:1",
        "gidmapping=0:1:0",
        "uidmapping=0:4294967295:2",
    ] {
        let output = owners.mount(bad);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{bad}: {said}");
        assert!(said.contains(bad.split('=').next().unwrap()), "{bad}: {said}");
    }
    let (archive, mountpoint) = (owners.archive.as_os_str(), owners.mountpoint.as_os_str());
    let mut helper = owners.bench.thawfs_as("mount.fuse.thawfs");
    helper.args([archive, mountpoint]);
    let output = helper.args(["-o", "uid=7,gidmapping=1001:8:1"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(owner(&owners.at("file")), (7, 8));
    owners.unmount();

    let bucket = owners.bench.directory("bucket");
    let tree = owners.bench.path("tree");
    let handle = owners.bench.ok(&[
        "create".as_ref(),
        tree.as_os_str(),
        "--bucket".as_ref(),
        bucket.as_os_str(),
    ]);
    let mut restore = owners.bench.thawfs();
    restore.args(["restore", handle.trim()]).arg(&owners.mountpoint);
    let output =
        restore.arg("--bucket").arg(&bucket).args(["-o", "squash_to_root"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(owner(&owners.at("file")), (0, 0));
    owners.unmount();
    owners.bench.assert_nothing_left();
}
