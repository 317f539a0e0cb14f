//! `diff`, on real mounts.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::mount::{Mounts, can_mount, can_mount_with};
use crate::support::surrounding::Need;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A mount of the small tree.
fn mounted(more: &[&str]) -> Mounts {
    let mounts = Mounts::new();
    let mount = ["mount", text(&mounts.archive), text(&mounts.mountpoint)];
    mounts.bench.ok(&[&mount[..], more].concat());
    mounts
}

impl Mounts {
    fn diff(&self, more: &[&str]) -> String {
        self.bench.ok(&[&["diff", text(&self.mountpoint)][..], more].concat())
    }

    /// The exit status and what was said, of a diff that fails.
    fn diff_fails(&self, dir: &Path, more: &[&str]) -> (i32, String) {
        let Output { status, stdout, stderr } =
            self.bench.run(&[&["diff", text(dir)][..], more].concat());
        assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
        let said = String::from_utf8(stderr).unwrap();
        (status.code().unwrap(), said)
    }

    fn control(&self) -> PathBuf {
        let mut mounts = std::fs::read_dir(self.bench.state_dir().join("mounts")).unwrap();
        mounts.next().unwrap().unwrap().path().join("control")
    }

    fn server(&self) -> Pid {
        Pid::from_raw(self.bench.servers()[0] as i32).unwrap()
    }
}

/// Some of everything, by programs.
fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    std::fs::write(at("new"), "12345").unwrap();
    std::fs::write(at("hello"), "changed").unwrap();
    std::fs::remove_file(at("sub/data")).unwrap();
    std::fs::rename(at("sub"), at("moved")).unwrap();
    std::fs::set_permissions(at("script"), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::create_dir(at("sub")).unwrap();
    std::fs::write(at(std::str::from_utf8(b"sub/line\n").unwrap()), "").unwrap();
}

#[test]
fn a_difference_is_told_in_lines_in_json_with_nuls_and_in_numbers() {
    if !can_mount("a_difference_is_told_in_lines_in_json_with_nuls_and_in_numbers") {
        return;
    }
    let mounts = mounted(&[]);
    assert_eq!(mounts.diff(&[]), "");
    assert_eq!(mounts.diff(&["--stat"]), "no differences\n");
    change(&mounts.mountpoint);
    let odd = mounts.mountpoint.join(std::ffi::OsStr::from_bytes(b"sub/\xff"));
    std::fs::write(odd, "").unwrap();
    let output = mounts.bench.run(&["diff", text(&mounts.mountpoint)]);
    let lines =
        b"M hello\nR sub/ -> moved/\nD moved/data\nM moved/hello-too\nA new\nT script\nA sub/\n\
                  A sub/line\\n\nA sub/\\xff\n";
    assert_eq!(output.stdout.escape_ascii().to_string(), lines.escape_ascii().to_string());
    assert!(output.status.success());

    let output = mounts.bench.run(&["diff", "-0", text(&mounts.mountpoint)]);
    let records =
        b"M hello\0R moved/\0sub/\0D moved/data\0M moved/hello-too\0A new\0T script\0A sub/\0\
                    A sub/line\n\0A sub/\xff\0";
    assert_eq!(output.stdout.escape_ascii().to_string(), records.escape_ascii().to_string());

    let json: Vec<serde_json::Value> =
        mounts.diff(&["--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let words: Vec<_> = json
        .iter()
        .map(|entry| [&entry["status"], &entry["kind"], &entry["path"], &entry["from"]])
        .map(|words| words.map(|word| word.as_str().unwrap_or("-").to_owned()).join(" "))
        .collect();
    assert_eq!(
        words,
        [
            "modified file hello -",
            "renamed directory moved sub",
            "removed file moved/data sub/data",
            "modified file moved/hello-too sub/hello-too",
            "added file new -",
            "attributes file script -",
            "added directory sub -",
            "added file sub/line\n -",
            "added file sub/\u{fffd} -",
        ]
    );
    assert_eq!(json[0]["ino"], json[3]["ino"]);
    assert_eq!((&json[0]["nlink"], &json[0]["size"]), (&2.into(), &7.into()));
    assert_eq!(json[2]["size"], 1_120_000);
    assert_eq!(json[8]["pathBase64"], "c3ViL/8=");

    let said = mounts.diff(&["--stat"]);
    let counts = "4 added\n2 modified\n1 with other attributes\n1 removed\n1 renamed\n";
    assert_eq!(said, format!("{counts}12 B that the backup does not have\n"));
    let stat: serde_json::Value =
        serde_json::from_str(&mounts.diff(&["--stat", "--json"])).unwrap();
    let expected = serde_json::json!({
        "added": 4, "modified": 2, "attributes": 1, "removed": 1, "renamed": 1, "listing": 0,
        "subtree": 0, "bytes": 12
    });
    assert_eq!(stat, expected);
}

#[test]
fn a_directory_in_a_mount_is_told_of_alone() {
    if !can_mount("a_directory_in_a_mount_is_told_of_alone") {
        return;
    }
    let mounts = mounted(&[]);
    change(&mounts.mountpoint);
    let moved = "R sub/ -> moved/\nD moved/data\nM moved/hello-too\n";
    let link = mounts.bench.path("link");
    std::os::unix::fs::symlink(mounts.mountpoint.join("moved"), &link).unwrap();
    for (dir, expected) in [
        (mounts.mountpoint.join("moved"), moved),
        (mounts.mountpoint.join("moved/../moved/"), moved),
        (link, moved),
        (mounts.mountpoint.join("moved/deeper"), ""),
        (mounts.mountpoint.join("new"), "A new\n"),
    ] {
        assert_eq!(mounts.bench.ok(&["diff", text(&dir)]), expected, "{dir:?}");
    }
    let mut command = mounts.bench.thawfs();
    let output = command.args(["diff", "."]).current_dir(mounts.mountpoint.join("moved")).output();
    assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout), moved);
}

#[test]
fn a_bind_mount_of_a_directory_is_told_of_as_that() {
    if !can_mount_with("a_bind_mount_of_a_directory_is_told_of_as_that", &[Need::Root]) {
        return;
    }
    let mounts = mounted(&[]);
    change(&mounts.mountpoint);
    let bound = mounts.bench.directory("bound");
    rustix::mount::mount_bind(mounts.mountpoint.join("moved"), &bound).unwrap();
    let said = mounts.bench.run(&["diff", text(&bound)]);
    rustix::mount::unmount(&bound, rustix::mount::UnmountFlags::empty()).unwrap();
    let moved = "R sub/ -> moved/\nD moved/data\nM moved/hello-too\n";
    assert_eq!(String::from_utf8_lossy(&said.stdout), moved, "{said:?}");
}

#[test]
fn what_is_written_is_told_at_once_and_after_another_mount_of_the_upper() {
    if !can_mount("what_is_written_is_told_at_once_and_after_another_mount_of_the_upper") {
        return;
    }
    let mounts = Mounts::new();
    let upper = mounts.bench.path("upper");
    let mount = ["mount", text(&mounts.archive), text(&mounts.mountpoint), "--upper", text(&upper)];
    mounts.bench.ok(&mount);
    let file = std::fs::OpenOptions::new().append(true).open(mounts.mountpoint.join("sub/data"));
    let mut file = file.unwrap();
    assert_eq!(mounts.diff(&[]), "");
    file.write_all(b"more").unwrap();
    // The file is open still, and the kernel may hold what was written.
    assert_eq!(mounts.diff(&[]), "M sub/data\n");
    drop(file);
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    mounts.bench.ok(&mount);
    assert_eq!(mounts.diff(&[]), "M sub/data\n");
}

/// A cursor of this moment, once nothing before it can be taken for it.
fn cursor(ahead: Duration) -> String {
    std::thread::sleep(Duration::from_millis(45));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap() + ahead;
    format!("0000000000000001-0-{}.{:09}", now.as_secs(), now.subsec_nanos())
}

#[test]
fn what_has_changed_since_a_cursor_is_told() {
    if !can_mount("what_has_changed_since_a_cursor_is_told") {
        return;
    }
    let mounts = mounted(&[]);
    let at = |name: &str| mounts.mountpoint.join(name);
    std::fs::write(at("early"), "early").unwrap();
    std::fs::write(at("sub/early"), "early").unwrap();
    std::fs::remove_file(at("sub/link")).unwrap();
    std::fs::set_permissions(at("script"), PermissionsExt::from_mode(0o700)).unwrap();
    let since = cursor(Duration::ZERO);
    assert_eq!(mounts.diff(&["--since", &since]), "");
    std::fs::write(at("early"), "later").unwrap();
    std::fs::remove_file(at("sub/early")).unwrap();
    std::fs::write(at("late"), "late").unwrap();
    std::fs::remove_file(at("sub/data")).unwrap();
    let told = mounts.diff(&["--since", &since]);
    let mut lines: Vec<_> = told.lines().collect();
    // Whiteouts may be links to one, whose time is that of the last.
    lines.retain(|line| *line != "D sub/link");
    assert_eq!(lines, ["L ./", "M early", "A late", "L sub/", "D sub/data"]);
    assert_eq!(mounts.diff(&["--since", &cursor(Duration::ZERO)]), "");
}

#[test]
fn what_makes_no_sense_is_refused_in_a_line() {
    if !can_mount("what_makes_no_sense_is_refused_in_a_line") {
        return;
    }
    let mounts = mounted(&[]);
    let (code, said) = mounts.diff_fails(&mounts.bench.path("tree"), &[]);
    assert!(code == 14 && said.contains("tree is in no mount of thawfs"), "{code} {said}");
    let (code, said) = mounts.diff_fails(&mounts.mountpoint.join("none"), &[]);
    assert!(code == 3 && said.contains("No such file"), "{code} {said}");
    let (code, said) = mounts.diff_fails(&mounts.mountpoint, &["--since", "yesterday"]);
    assert!(code == 2 && said.contains("not a cursor"), "{code} {said}");
    let ahead = cursor(Duration::from_secs(3600));
    let (code, said) = mounts.diff_fails(&mounts.mountpoint, &["--since", &ahead]);
    assert!(code == 2 && said.contains("yet to come"), "{code} {said}");
    let (code, said) = mounts.diff_fails(&mounts.mountpoint, &["--stat", "-0"]);
    assert!(code == 2 && said.contains("cannot be used with"), "{code} {said}");
    let mut elsewhere = mounts.bench.thawfs();
    elsewhere
        .env("THAWFS_STATE_DIR", mounts.bench.path("other"))
        .arg("diff")
        .arg(&mounts.mountpoint);
    let output = elsewhere.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(14) && said.contains("not on record"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_mount_without_an_upper_differs_in_nothing() {
    if !can_mount("a_mount_without_an_upper_differs_in_nothing") {
        return;
    }
    let mounts = mounted(&["--read-only"]);
    assert_eq!(mounts.diff(&[]), "");
    assert_eq!(mounts.diff(&["--json"]), "");
    assert_eq!(mounts.diff(&["--since", &cursor(Duration::ZERO)]), "");
}

#[test]
fn a_server_that_does_not_answer_or_was_killed_is_told_as_that() {
    let needs = [Need::Processes];
    if !can_mount_with("a_server_that_does_not_answer_or_was_killed_is_told_as_that", &needs) {
        return;
    }
    let mounts = mounted(&[]);
    kill_process(mounts.server(), Signal::STOP).unwrap();
    let begun = Instant::now();
    let (code, said) = mounts.diff_fails(&mounts.mountpoint.join("sub"), &[]);
    assert!(code == 1 && said.contains("does not answer"), "{code} {said}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    kill_process(mounts.server(), Signal::CONT).unwrap();
    assert_eq!(mounts.diff(&[]), "");
    kill_process(mounts.server(), Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !mounts.bench.servers().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    let (code, said) = mounts.diff_fails(&mounts.mountpoint, &[]);
    assert!(code == 1 && said.contains("was killed"), "{code} {said}");
    mounts.bench.ok(&["unmount", "--dead", text(&mounts.mountpoint)]);
}

fn ask(socket: &Path, question: &[u8]) -> UnixStream {
    // A path may be too long for a socket's address.
    let directory = std::fs::File::open(socket.parent().unwrap()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let mut connection = UnixStream::connect(format!("/proc/self/fd/{fd}/control")).unwrap();
    connection.write_all(question).unwrap();
    connection
}

fn answer(mut connection: UnixStream) -> String {
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn who_asks_nothing_gets_the_report_and_who_reads_nothing_holds_nobody_up() {
    let test = "who_asks_nothing_gets_the_report_and_who_reads_nothing_holds_nobody_up";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = mounted(&[]);
    let socket = mounts.control();
    let report = answer(ask(&socket, b""));
    assert!(report.contains(r#""mountpoint""#), "{report}");
    for nonsense in [&b"\n"[..], b"{}\n", b"{\"difference\":{}}\n"] {
        // What cannot be read is not answered.
        let mut connection = ask(&socket, nonsense);
        let mut answer = Vec::new();
        // Closed with something unread it may as well be reset.
        let _ = connection.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    let (mut long, mut told) = (ask(&socket, &[b'x'; 40_000]), Vec::new());
    let _ = long.read_to_end(&mut told);
    let told = String::from_utf8(told).unwrap();
    assert!(told.starts_with("{\"failed\":") && told.contains("longer than 32768"), "{told}");
    for number in 0..6000 {
        std::fs::write(mounts.mountpoint.join(format!("a-name-of-some-length-{number:04}")), "")
            .unwrap();
    }
    let question = b"{\"difference\":{\"path\":\".\",\"since\":null}}\n";
    let mut stuck: Vec<_> = (0..8).map(|_| ask(&socket, question)).collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !answer(ask(&socket, question)).contains("BUSY") {
        assert!(Instant::now() < deadline, "more are told at a time than eight");
    }
    assert_eq!(mounts.bench.ok(&["status"]).lines().filter(|line| line.contains("pid")).count(), 1);
    let told = answer(stuck.pop().unwrap());
    assert!(told.ends_with("\"end\"\n"), "{}", &told[told.len() - 100..]);
    assert_eq!(told.lines().count(), 6002);
    drop(stuck);
    let ended = |said: String| said.lines().count() == 6000;
    while !ended(
        String::from_utf8(mounts.bench.run(&["diff", text(&mounts.mountpoint)]).stdout).unwrap(),
    ) {
        assert!(Instant::now() < deadline, "those who went away are still being told");
    }
    // A reader who has enough ends it, too.
    let program = mounts.bench.thawfs().get_program().to_owned();
    let script = r#""$1" diff "$2" | head -n 1"#;
    let mut head = Command::new("sh");
    head.envs(mounts.bench.thawfs().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output =
        head.args(["-c", script, "sh"]).arg(program).arg(&mounts.mountpoint).output().unwrap();
    assert_eq!(output.stdout, b"A a-name-of-some-length-0000\n");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
