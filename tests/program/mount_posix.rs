//! Programs work on a mount as on a plain directory: each case of `tests/posix` prints what it sees of
//! the same files in both, and must print the same; then both must hold the same files, at once, with
//! nothing remembered, and after a remount. So where the kernel does the upper's I/O by itself, and
//! where it goes through the page cache and the server.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::mount::{Bench, can_mount, can_mount_with, open_fuse_to_users};
use crate::support::surrounding::{Need, cannot_run, has};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/posix/cases.py");

/// What the cases print, a line each, by case.
fn run(command: &str, root: &Path) -> BTreeMap<String, Vec<String>> {
    cases(Command::new("python3").args(["-B", CASES, command]).arg(root))
}

fn cases(python: &mut Command) -> BTreeMap<String, Vec<String>> {
    let output = python.output().expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut cases = BTreeMap::<_, Vec<_>>::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (case, what) = line.split_once(": ").unwrap();
        cases.entry(case.to_owned()).or_default().push(what.to_owned());
    }
    cases
}

fn assert_same(
    when: &str,
    expected: &BTreeMap<String, Vec<String>>,
    seen: &BTreeMap<String, Vec<String>>,
) {
    let mut differences = String::new();
    for (case, lines) in expected {
        let others = seen.get(case).map_or(&[][..], Vec::as_slice);
        for at in 0..lines.len().max(others.len()) {
            let (line, other) = (lines.get(at), others.get(at));
            if line != other {
                differences.push_str(&format!("{case}:\n  {line:?}\n  {other:?}\n"));
            }
        }
    }
    assert!(differences.is_empty(), "{when}, expected and seen:\n{differences}");
    assert_eq!(expected.len(), seen.len());
}

/// Only where the kernel does the upper's I/O by itself is this as on a plain directory.
const PASSTHROUGH_ONLY: &str = "the_disk_below_answers";

/// Cases that see something else without this.
const NEEDS: [(&str, Need); 5] = [
    ("a_mapped_write_moves_the_times", Need::Disk),
    ("set_id_bits_go_as_ext4_lets_them", Need::Disk),
    // An ordinary user may make a 0/0 device on a local disk, and not in a mount of its own.
    ("a_whiteout_of_a_program_is_a_device", Need::Root),
    // Which groups and rights a process has is not to be seen from another namespace.
    ("set_id_bits_go_as_ext4_lets_them", Need::Processes),
    ("the_mode_and_the_acl_follow_each_other", Need::Processes),
];

/// What a mount takes from what its upper lies on.
const DISK_BELOW: [&str; 2] = [PASSTHROUGH_ONLY, "space_is_that_of_the_disk_below"];

/// What a plain directory shows.
struct Expected {
    ran: BTreeMap<String, Vec<String>>,
    left: BTreeMap<String, Vec<String>>,
    /// Cases that are not compared here.
    left_out: Vec<&'static str>,
}

/// Runs all cases on a mount with `options` and compares.
fn compare(bench: &Bench, mode: &str, options: &[&str], archive: &Path, expected: &Expected) {
    let (mountpoint, upper) = (bench.directory(mode), bench.path(&format!("{mode}-upper")));
    let mount = || {
        let place = [archive.as_os_str(), mountpoint.as_os_str()];
        let upper = ["--upper".as_ref(), upper.as_os_str()];
        let options: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        // One of the cases opens a device, where it can make one.
        let devices = if has(Need::Root) { &["-o", "dev"].map(OsStr::new)[..] } else { &[] };
        bench.ok(&[&["mount".as_ref()], &place[..], &upper[..], devices, &options[..]].concat());
    };
    mount();
    let mut ran = run("run", &mountpoint);
    if !options.is_empty() {
        ran.insert(PASSTHROUGH_ONLY.to_owned(), expected.ran[PASSTHROUGH_ONLY].clone());
    }
    for case in &expected.left_out {
        ran.insert((*case).to_owned(), expected.ran[*case].clone());
    }
    assert_same(&format!("{mode}, while files change"), &expected.ran, &ran);

    let numbers = run("numbers", &mountpoint);
    let kept = run("kept_numbers", &mountpoint);
    let check = |when: &str| {
        let when = format!("{mode}, {when}");
        let mut left = run("look", &mountpoint);
        for case in &expected.left_out {
            left.insert((*case).to_owned(), expected.left[*case].clone());
        }
        assert_same(&when, &expected.left, &left);
        // An ordinary user's upper keeps the numbers of symlinks and special files as long as the mount.
        match has(Need::Root) || !when.ends_with("remount") {
            true => assert_same(&when, &numbers, &run("numbers", &mountpoint)),
            false => assert_same(&when, &kept, &run("kept_numbers", &mountpoint)),
        }
    };
    check("afterwards");
    if has(Need::Root) {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        check("with nothing remembered");
    }
    bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
    mount();
    check("after a remount");
    bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
}

#[test]
fn programs_see_on_a_mount_what_they_see_on_a_plain_directory() {
    if !can_mount("programs_see_on_a_mount_what_they_see_on_a_plain_directory") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.plain_directory("tree");
    run("make", &tree);
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "zstd"]);
    let mut ran = run("run", &tree);
    let beside = bench.directory("beside");
    if !beside.starts_with(tree.parent().unwrap()) {
        run("make", &beside);
        let of_disk = run("run", &beside);
        ran.extend(of_disk.into_iter().filter(|(case, _)| DISK_BELOW.contains(&&**case)));
    }
    // Without root some end early, on the mount as on the plain directory.
    let failed =
        |(_, lines): &(_, &Vec<String>)| lines.iter().any(|line| line.starts_with("'failed:'"));
    for (case, lines) in ran.iter().filter(failed) {
        let what = format!("the rest of {case}");
        assert!(cannot_run(&what, &[Need::Root]), "{case} does not even run: {lines:?}");
    }
    let left_out = NEEDS.iter().filter(|(case, need)| cannot_run(case, &[*need]));
    let left_out = left_out.map(|(case, _)| *case).collect();
    let expected = Expected { ran, left: run("look", &tree), left_out };
    let mut modes = vec![("page-cache", &["-o", "no_passthrough"][..])];
    if !cannot_run("where the kernel does the upper's I/O by itself", &[Need::Passthrough]) {
        modes.push(("passthrough", &[]));
    }
    std::thread::scope(|scope| {
        for (mode, options) in modes {
            let (bench, archive, expected) = (&bench, &archive, &expected);
            scope.spawn(move || compare(bench, mode, options, archive, expected));
        }
    });
    bench.assert_nothing_left();
}

#[test]
fn what_an_ordinary_users_programs_have_written_is_copied_whole() {
    if !can_mount_with(
        "what_an_ordinary_users_programs_have_written_is_copied_whole",
        &[Need::Root],
    ) {
        return;
    }
    open_fuse_to_users();
    let bench = Bench::new();
    let tree = bench.directory("tree");
    run("make", &tree);
    let owner = ["-force-uid", "65534", "-force-gid", "65534"];
    let archive = bench.archive(&tree, "data.sqsh", &owner);
    let expected =
        cases(Command::new("python3").args(["-B", CASES, "run"]).arg(&tree).arg("pages"));
    let mountpoint = bench.directory("mine");
    // Where the user can get at them.
    let (program, scripts) = (bench.path("thawfs"), bench.path("posix"));
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    let from = Path::new(CASES).parent().unwrap();
    assert!(Command::new("cp").arg("-r").args([from, &scripts]).status().unwrap().success());
    for path in [&mountpoint, &bench.directory("state")] {
        std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    let as_user = |program: &OsStr| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        // A python3 of root's own may come first.
        command.env("PATH", "/usr/bin:/bin");
        command.env("THAWFS_STATE_DIR", bench.state_dir()).env("HOME", bench.path(""));
        command
    };
    let mount = || {
        let mounted =
            as_user(program.as_os_str()).arg("mount").args([&archive, &mountpoint]).output();
        let mounted = mounted.unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    };
    mount();
    let python = |command: &str| {
        let script = scripts.join("cases.py");
        cases(
            as_user(OsStr::new("python3"))
                .arg("-B")
                .arg(script)
                .arg(command)
                .args([&mountpoint, Path::new("pages")]),
        )
    };
    assert_same("as an ordinary user", &expected, &python("run"));
    let numbers = python("numbers");
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_same("with nothing remembered", &numbers, &python("numbers"));
    assert!(
        as_user(program.as_os_str()).arg("unmount").arg(&mountpoint).status().unwrap().success()
    );
}

/// A program that writes to another hole of a file through a mapping for each line it is given, and says so.
const MAPPER: &str = "
import mmap, os, sys
m = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)
for number, line in enumerate(sys.stdin, 1):
    m[100_000 * number] = ord('m')
    print('.', end='', flush=True)
";

#[test]
fn what_another_program_maps_is_copied_and_backed_up_whole() {
    if !can_mount("what_another_program_maps_is_copied_and_backed_up_whole") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    std::fs::File::create(tree.join("void")).unwrap().set_len(1_000_000).unwrap();
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let mountpoint = bench.directory("mnt");
    bench.ok(&["mount".as_ref(), archive.as_os_str(), mountpoint.as_os_str()]);
    let void = mountpoint.join("void");
    let mut mapper = Command::new("python3")
        .args(["-c", MAPPER])
        .arg(&void)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut expected = vec![0; 1_000_000];
    let mut write = |number: usize| {
        mapper.stdin.as_mut().unwrap().write_all(b"again\n").unwrap();
        mapper.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        expected[100_000 * number] = b'm';
        expected.clone()
    };
    let assert_whole = |how: &str, expected: &[u8], seen: &[u8]| {
        assert_eq!(expected.len(), seen.len(), "{how}");
        let lost = (0..seen.len()).filter(|&at| expected[at] != seen[at]).collect::<Vec<_>>();
        assert!(lost.is_empty(), "{how}: not as written at {lost:?}");
    };

    // Each time anew: whoever closes the file has the kernel write what it holds.
    let copy = bench.path("copy");
    let written = write(1);
    assert!(Command::new("cp").args([&void, &copy]).status().unwrap().success());
    assert_whole("cp", &written, &std::fs::read(&copy).unwrap());
    let written = write(2);
    let tar = Command::new("tar").arg("-C").arg(&mountpoint).args(["-Scf", "-", "void"]).output();
    std::fs::write(bench.path("void.tar"), tar.unwrap().stdout).unwrap();
    let unpacked = Command::new("tar").arg("-xOf").arg(bench.path("void.tar")).output().unwrap();
    assert_whole("tar", &written, &unpacked.stdout);
    let written = write(3);
    let bucket = bench.directory("bucket");
    let url = format!("file://{}", bucket.display());
    bench.ok(&["create".as_ref(), mountpoint.as_os_str(), "--bucket".as_ref(), url.as_ref()]);
    let mut made = std::fs::read_dir(bucket.join("backups")).unwrap();
    let backup = made.next().unwrap().unwrap().path().join("data.sqsh");
    let contents = bench.ok(&[OsStr::new("cat"), backup.as_os_str(), OsStr::new("void")]);
    assert_whole("create", &written, contents.as_bytes());

    drop(mapper.stdin.take());
    assert!(mapper.wait().unwrap().success());
    bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
    bench.assert_nothing_left();
}
