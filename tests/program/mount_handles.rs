//! File handles lead to their files whatever the kernel has forgotten: open_by_handle_at(2), as knfsd and
//! backup programs use it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::mount::{Bench, can_mount_with, open_fuse_to_users};
use crate::support::surrounding::{Need, skip, tell};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/posix/handles.py");

struct Tree {
    bench: Bench,
    archive: PathBuf,
    mountpoint: PathBuf,
}

impl Tree {
    fn new(flags: &[&str]) -> Self {
        let bench = Bench::new();
        let tree = bench.directory("tree");
        for directory in ["a/b/c/d", "empty", "gone/inner", "many"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        for name in [
            "low",
            "a/one",
            "a/b/two",
            "a/b/c/d/deep",
            "gone/inner/file",
            "kept",
            "changed",
            "lost",
        ] {
            fs::write(tree.join(name), format!("of {name}")).unwrap();
        }
        for n in 0..300 {
            fs::write(tree.join(format!("many/{n}")), format!("{n}")).unwrap();
        }
        fs::hard_link(tree.join("low"), tree.join("a/low-too")).unwrap();
        fs::hard_link(tree.join("changed"), tree.join("a/changed-too")).unwrap();
        symlink("low", tree.join("link")).unwrap();
        let archive = bench.archive(&tree, "data.sqsh", &[&["-comp", "zstd"], flags].concat());
        let mountpoint = bench.directory("mnt");
        Self { bench, archive, mountpoint }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    fn mount(&self, options: &str) {
        let upper = self.bench.path("upper");
        let (archive, mountpoint) = (self.archive.as_os_str(), self.mountpoint.as_os_str());
        let mut command = self.bench.thawfs();
        command.args(["mount", "-q", "-o", options]).args([archive, mountpoint]);
        if options != "ro" {
            command.arg("--upper").arg(&upper);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn unmount(&self) {
        self.bench.ok(&["unmount".as_ref(), self.mountpoint.as_os_str()]);
    }

    /// Has the kernel forget what it can, and checks that it did.
    fn forget(&self) {
        rustix::fs::sync();
        // What was used a moment ago has a second chance, each time.
        for _ in 0..10 {
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            if self.nodes() <= 1 {
                return;
            }
        }
        panic!("{} files are still known", self.nodes());
    }

    fn nodes(&self) -> u64 {
        let said =
            self.bench.ok(&["status".as_ref(), self.mountpoint.as_os_str(), "--json".as_ref()]);
        let status: serde_json::Value = serde_json::from_str(&said).unwrap();
        status[0]["nodes"].as_u64().unwrap()
    }

    fn take(&self, paths: &[&str]) -> String {
        self.take_as(&[], paths)
    }

    fn take_as(&self, flags: &[&str], paths: &[&str]) -> String {
        let mut command = Command::new("python3");
        command.args(["-B", SCRIPT, "take"]).args(flags).arg(&self.mountpoint).args(paths);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the handles lead to, by the path that they were taken of.
    fn open(&self, handles: &str) -> BTreeMap<String, String> {
        let mut command = Command::new("python3");
        command.args(["-B", SCRIPT, "open"]).arg(&self.mountpoint);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(handles.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let lines = String::from_utf8(output.stdout).unwrap();
        let split = |line: &str| {
            let (path, what) = line.split_once(' ').unwrap();
            (path.to_owned(), what.replace(self.mountpoint.to_str().unwrap(), "MNT"))
        };
        lines.lines().map(split).collect()
    }

    fn ino(&self, path: &str) -> u64 {
        self.at(path).symlink_metadata().unwrap().ino()
    }
}

/// Handles of files and directories of each sort, taken before they are moved, changed and removed; the
/// right answers afterwards.
fn changed(tree: &Tree) -> (String, BTreeMap<String, String>) {
    fs::write(tree.at("new"), "of new").unwrap();
    fs::create_dir(tree.at("made")).unwrap();
    fs::write(tree.at("made/inner"), "of made/inner").unwrap();
    fs::write(tree.at("linked"), "of linked").unwrap();
    fs::hard_link(tree.at("linked"), tree.at("made/linked-too")).unwrap();
    fs::write(tree.at("short"), "of short").unwrap();
    let paths = [
        "low",
        "a",
        "a/one",
        "a/b",
        "a/b/two",
        "a/b/c",
        "a/b/c/d",
        "a/b/c/d/deep",
        "a/low-too",
        "changed",
        "a/changed-too",
        "link",
        "new",
        "made",
        "made/inner",
        "linked",
        "short",
        "empty",
        "gone",
        "gone/inner",
        "gone/inner/file",
        "kept",
        "lost",
        "many/0",
        "many/299",
        ".",
    ];
    let handles = tree.take(&paths);
    let mut expected = BTreeMap::new();
    let mut expect = |taken: &str, now: &str, what: &str| {
        let known_by = match what.starts_with("dir") {
            true => format!(" MNT/{now}").trim_end_matches("/.").to_owned(),
            false => String::new(),
        };
        expected.insert(taken.to_owned(), format!("{} {what}{known_by}", tree.ino(now)));
    };

    fs::rename(tree.at("a/b"), tree.at("moved")).unwrap();
    fs::rename(tree.at("moved/two"), tree.at("made/two")).unwrap();
    fs::rename(tree.at("new"), tree.at("moved/c/new")).unwrap();
    fs::rename(tree.at("made"), tree.at("a/made")).unwrap();
    fs::write(tree.at("changed"), "other data").unwrap();
    // The name that was known last goes, another stays.
    fs::metadata(tree.at("linked")).unwrap();
    fs::remove_file(tree.at("linked")).unwrap();
    fs::remove_file(tree.at("short")).unwrap();
    fs::remove_file(tree.at("lost")).unwrap();
    fs::remove_dir_all(tree.at("gone")).unwrap();

    expect("low", "low", "file of_low");
    expect("a", "a", "dir changed-too,low-too,made,one");
    expect("a/one", "a/one", "file of_a/one");
    expect("a/b", "moved", "dir c");
    expect("a/b/two", "a/made/two", "file of_a/b/two");
    expect("a/b/c", "moved/c", "dir d,new");
    expect("a/b/c/d", "moved/c/d", "dir deep");
    expect("a/b/c/d/deep", "moved/c/d/deep", "file of_a/b/c/d/deep");
    expect("a/low-too", "a/low-too", "file of_low");
    expect("changed", "changed", "file other_data");
    expect("a/changed-too", "a/changed-too", "file other_data");
    expect("link", "link", "link low");
    expect("new", "moved/c/new", "file of_new");
    expect("made", "a/made", "dir inner,linked-too,two");
    expect("made/inner", "a/made/inner", "file of_made/inner");
    expect("linked", "a/made/linked-too", "file of_linked");
    expect("empty", "empty", "dir -");
    expect("kept", "kept", "file of_kept");
    expect("many/0", "many/0", "file 0");
    expect("many/299", "many/299", "file 299");
    expect(".", ".", "dir a,changed,empty,kept,link,low,many,moved");
    for gone in ["short", "gone", "gone/inner", "gone/inner/file", "lost"] {
        expected.insert(gone.to_owned(), "ESTALE".to_owned());
    }
    (handles, expected)
}

fn check(options: &str, flags: &[&str]) {
    let tree = Tree::new(flags);
    tree.mount(options);
    let (handles, expected) = changed(&tree);
    assert_eq!(tree.open(&handles), expected, "{options}: while the kernel knows them");
    tree.forget();
    assert_eq!(tree.open(&handles), expected, "{options}: with nothing remembered");
    // Each by itself, as others may have been found by the way.
    for handle in handles.lines() {
        let path = handle.split(' ').next().unwrap();
        tree.forget();
        assert_eq!(tree.open(handle)[path], expected[path], "{options}: {path} alone");
    }
    // What changes once the tables are there is noted.
    fs::rename(tree.at("a/made/two"), tree.at("many/two")).unwrap();
    fs::rename(tree.at("low"), tree.at("empty/low")).unwrap();
    fs::rename(tree.at("kept"), tree.at("moved/kept")).unwrap();
    fs::remove_file(tree.at("a/one")).unwrap();
    fs::rename(tree.at("empty"), tree.at("many/full")).unwrap();
    let mut later = expected.clone();
    later.insert("a/one".into(), "ESTALE".into());
    for (path, what) in [
        ("made", "inner,linked-too"),
        ("a", "changed-too,low-too,made"),
        (".", "a,changed,link,many,moved"),
    ] {
        let words: Vec<_> = later[path].split(' ').map(str::to_owned).collect();
        later.insert(path.into(), format!("{} dir {what} {}", words[0], words[3]));
    }
    later.insert("a/b".into(), expected["a/b"].replace("dir c", "dir c,kept"));
    later.insert(
        "empty".into(),
        expected["empty"].replace("dir -", "dir low").replace("MNT/empty", "MNT/many/full"),
    );
    assert_eq!(tree.open(&handles), later, "{options}: after more changes");
    tree.forget();
    assert_eq!(tree.open(&handles), later, "{options}: and nothing remembered");
    tree.unmount();

    tree.mount(options);
    assert_eq!(tree.open(&handles), later, "{options}: after a remount");
    tree.forget();
    assert_eq!(tree.open(&handles), later, "{options}: and nothing remembered");
    tree.unmount();
    tree.bench.assert_nothing_left();
}

#[test]
fn a_handle_leads_to_its_file_wherever_that_is_now() {
    if can_mount_with("a_handle_leads_to_its_file_wherever_that_is_now", &[Need::Root]) {
        check("rw", &[]);
    }
}

#[test]
fn so_it_does_where_the_kernel_leaves_all_data_to_us() {
    if can_mount_with("so_it_does_where_the_kernel_leaves_all_data_to_us", &[Need::Root]) {
        check("no_passthrough", &[]);
    }
}

#[test]
fn so_it_does_in_an_archive_without_a_table_of_its_inodes() {
    if can_mount_with("so_it_does_in_an_archive_without_a_table_of_its_inodes", &[Need::Root]) {
        check("rw", &["-no-exports"]);
    }
}

#[test]
fn handles_of_a_read_only_mount_stay() {
    if !can_mount_with("handles_of_a_read_only_mount_stay", &[Need::Root]) {
        return;
    }
    let tree = Tree::new(&[]);
    tree.mount("ro");
    let paths = ["low", "a/b", "a/b/two", "a/b/c/d/deep", "many", "many/150", "link"];
    let handles = tree.take(&paths);
    let before = tree.open(&handles);
    assert_eq!(before.len(), paths.len());
    assert!(before["a/b/two"].ends_with("file of_a/b/two"), "{before:?}");
    tree.forget();
    assert_eq!(tree.open(&handles), before);
    tree.unmount();
    tree.mount("ro");
    assert_eq!(tree.open(&handles), before);
    tree.unmount();
}

#[test]
fn a_handle_of_a_file_that_is_gone_leads_to_no_other_with_its_number() {
    if !can_mount_with(
        "a_handle_of_a_file_that_is_gone_leads_to_no_other_with_its_number",
        &[Need::Root],
    ) {
        return;
    }
    let tree = Tree::new(&[]);
    tree.mount("rw");
    fs::write(tree.at("first"), "first").unwrap();
    let (number, handles) = (tree.ino("first"), tree.take(&["first"]));
    // Open, it lives.
    let open = fs::File::open(tree.at("first")).unwrap();
    fs::remove_file(tree.at("first")).unwrap();
    assert_eq!(tree.open(&handles)["first"], format!("{number} file first"));
    drop(open);
    tree.forget();
    assert_eq!(tree.open(&handles)["first"], "ESTALE");
    let again = (0..1000).find(|n| {
        let name = format!("next-{n}");
        fs::write(tree.at(&name), "other").unwrap();
        tree.ino(&name) == number
    });
    let Some(again) = again else {
        // Which number a new file gets is the file system's to choose, and others make files there, too.
        return tell(
            "a_handle_of_a_file_that_is_gone_leads_to_no_other_with_its_number was cut short: its \
             number was not given again",
        );
    };
    assert_eq!(tree.open(&handles)["first"], "ESTALE", "while the kernel knows the other");
    tree.forget();
    assert_eq!(tree.open(&handles)["first"], "ESTALE");
    let name = format!("next-{again}");
    let other = tree.take(&[&name]);
    tree.forget();
    assert_eq!(tree.open(&other)[&name], format!("{number} file other"));
    tree.unmount();
}

#[test]
fn a_connectable_handle_knows_the_way() {
    if !can_mount_with("a_connectable_handle_knows_the_way", &[Need::Root]) {
        return;
    }
    let tree = Tree::new(&[]);
    tree.mount("rw");
    let output = Command::new("python3")
        .args(["-B", SCRIPT, "take", "-c"])
        .arg(&tree.mountpoint)
        .args(["low"])
        .output()
        .unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("Invalid argument") {
        return skip("a_connectable_handle_knows_the_way", "this kernel has no such handles");
    }
    let paths = ["low", "a/b/two", "a/b/c"];
    let handles = tree.take_as(&["-c"], &paths);
    let before = tree.open(&handles);
    assert!(before["a/b/two"].ends_with("file of_a/b/two"), "{before:?}");
    tree.forget();
    assert_eq!(tree.open(&handles), before);
    // Away from its directory it is not looked for: as on ext4.
    fs::rename(tree.at("a/b/two"), tree.at("many/two")).unwrap();
    tree.forget();
    let of_two = handles.lines().nth(1).unwrap();
    assert_eq!(tree.open(of_two)["a/b/two"], "ESTALE");
    tree.unmount();
}

#[test]
fn made_up_handles_lead_nowhere() {
    if !can_mount_with("made_up_handles_lead_nowhere", &[Need::Root]) {
        return;
    }
    let tree = Tree::new(&[]);
    tree.mount("rw");
    fs::write(tree.at("new"), "of new").unwrap();
    let taken = tree.take(&["low", "new"]);
    tree.forget();
    let mut handles = String::new();
    for line in taken.lines() {
        let [name, kind, hex] = *line.split(' ').collect::<Vec<_>>() else { panic!("{line}") };
        // Number (high and low half) and generation, 32 bits each.
        for at in (0..hex.len() / 2).filter(|at| hex.len() == 24 && at % 4 != 3) {
            for with in ["00", "01", "7f", "ff"] {
                let other = format!("{}{with}{}", &hex[..2 * at], &hex[2 * at + 2..]);
                if other != hex {
                    handles.push_str(&format!("{name}-{at}-{with} {kind} {other}\n"));
                }
            }
        }
    }
    let opened = tree.open(&handles);
    assert!(opened.len() > 40, "{}", opened.len());
    let files = ["file of_low", "file of_new"];
    for (name, what) in opened {
        assert!(!files.iter().any(|file| what.ends_with(file)), "{name}: {what}");
    }
    assert_eq!(fs::read(tree.at("low")).unwrap(), b"of low");
    let said = tree.bench.ok(&["status".as_ref(), tree.mountpoint.as_os_str(), "--json".as_ref()]);
    let status: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(status[0]["faults"]["count"], 0, "{status}");
    tree.unmount();
}

#[test]
fn handles_outlast_a_remount_in_a_user_namespace() {
    if !can_mount_with("handles_outlast_a_remount_in_a_user_namespace", &[Need::Root]) {
        return;
    }
    let tree = Tree::new(&[]);
    open_fuse_to_users();
    let program = tree.bench.path("thawfs");
    fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    let work = tree.bench.directory("work");
    for path in
        [&tree.mountpoint, &tree.bench.directory("state"), &tree.bench.directory("cache"), &work]
    {
        std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    let script = tree.bench.path("handles.py");
    fs::copy(SCRIPT, &script).unwrap();
    let run = "set -eu
        mount() { $thawfs mount -q $archive $mnt --upper $work/upper; }
        mount; echo of new >$mnt/new; echo more >>$mnt/kept
        python3 -B $script take $mnt low a/b a/b/two new kept >$work/handles
        mv $mnt/a/b $mnt/moved; $thawfs unmount $mnt; mount
        python3 -B $script open $mnt <$work/handles; $thawfs unmount $mnt";
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", run])
        .env("thawfs", &program)
        .env("archive", &tree.archive)
        .env("mnt", &tree.mountpoint)
        .env("work", &work)
        .env("script", &script)
        .env("THAWFS_STATE_DIR", tree.bench.state_dir())
        .env("THAWFS_CACHE_DIR", tree.bench.cache_dir())
        .env("HOME", tree.bench.path(""))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8(output.stdout).unwrap();
    if printed.contains("EPERM") {
        // It refuses before we are asked.
        return tell(
            "handles_outlast_a_remount_in_a_user_namespace does not apply: this kernel opens no \
             handles for the root of a user namespace",
        );
    }
    let kinds: Vec<_> = printed
        .lines()
        .map(|line| line.split(' ').skip(2).take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        kinds,
        ["file of_low", "dir c,two", "file of_a/b/two", "file of_new", "file of_keptmore"],
        "{printed}"
    );
}

#[test]
fn many_forgotten_files_are_found_one_by_one_with_few_walks() {
    if !can_mount_with("many_forgotten_files_are_found_one_by_one_with_few_walks", &[Need::Root]) {
        return;
    }
    let tree = Tree::new(&[]);
    tree.mount("rw");
    for n in 0..500 {
        fs::create_dir_all(tree.at(&format!("own/{}", n % 50))).unwrap();
        fs::write(tree.at(&format!("own/{}/{n}", n % 50)), format!("{n}")).unwrap();
    }
    let mut paths: Vec<_> = (0..500).map(|n| format!("own/{}/{n}", n % 50)).collect();
    paths.extend((0..300).map(|n| format!("many/{n}")));
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    let handles = tree.take(&paths);
    tree.forget();
    let found = tree.open(&handles);
    for path in paths {
        let number = path.rsplit('/').next().unwrap();
        assert!(found[path].ends_with(&format!(" file {number}")), "{path}: {}", found[path]);
    }
    tree.unmount();
}

/// A path that is never looked at, so that it is not known by chance.
#[test]
fn a_file_below_a_directory_that_was_moved_twice_is_found() {
    if !can_mount_with("a_file_below_a_directory_that_was_moved_twice_is_found", &[Need::Root]) {
        return;
    }
    let tree = Tree::new(&[]);
    tree.mount("rw");
    let handles = tree.take(&["a/b/c/d/deep", "a/b/c/d", "gone/inner/file"]);
    fs::rename(tree.at("a/b"), tree.at("once")).unwrap();
    fs::rename(tree.at("once/c"), tree.at("gone/twice")).unwrap();
    fs::rename(tree.at("gone"), tree.at("a/thrice")).unwrap();
    // One takes the place that the archive has for it.
    fs::create_dir_all(tree.at("a/b/c/d")).unwrap();
    fs::write(tree.at("a/b/c/d/deep"), "another").unwrap();
    tree.forget();
    let found = tree.open(&handles);
    assert!(found["a/b/c/d/deep"].ends_with("file of_a/b/c/d/deep"), "{found:?}");
    assert!(found["a/b/c/d"].ends_with("dir deep MNT/a/thrice/twice/d"), "{found:?}");
    assert!(found["gone/inner/file"].ends_with("file of_gone/inner/file"), "{found:?}");
    assert!(Path::new(&tree.at("a/thrice/twice/d/deep")).exists());
    tree.unmount();
}
