//! What servers and commands leave that are killed: told, never with advice that takes down what lives, and
//! removed by `gc` when nobody has it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::mount::{Bench, Mounts, can_mount_with, write_tree};
use crate::support::place::Place;
use crate::support::surrounding::{Need, Surrounding, cannot_run};
use crate::support::words::{eventually, text};
use serde_json::Value;

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn umount_lazily(mountpoint: &Path) {
    thawfs::fuse::detach(mountpoint).unwrap();
}

/// The entries of a directory; none where it is missing.
fn names(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

impl Mounts {
    fn mount(&self, more: &[&str]) {
        let mount = ["-q", "mount", text(&self.archive), text(&self.mountpoint)];
        self.bench.ok(&[&mount, more].concat());
    }

    fn kill_server(&self) {
        kill(self.bench.servers()[0]);
        eventually("the server has ended", || self.bench.servers().is_empty());
    }

    fn status(&self) -> Vec<Value> {
        serde_json::from_str(&self.bench.ok(&["status", "--json"])).unwrap()
    }

    /// What gc tells of leftovers, without its last line, and that.
    fn gc(&self, more: &[&str]) -> (Vec<Value>, Value) {
        let said = self.bench.ok(&[&["gc", "--json"], more].concat());
        let documents = serde_json::Deserializer::from_str(&said).into_iter();
        let mut lines: Vec<Value> = documents.map(Result::unwrap).collect();
        let summary = lines.pop().unwrap();
        // Control groups are the machine's: others may have left some.
        lines.retain(|line| line["kind"] != "group");
        (lines, summary)
    }
}

fn kinds(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["kind"].as_str().unwrap()).collect()
}

#[test]
fn mounting_again_after_a_reboot_clears_the_dead_record() {
    if !can_mount_with("mounting_again_after_a_reboot_clears_the_dead_record", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let bucket = format!("file://{}", mounts.bench.directory("box").display());
    let tree = mounts.bench.path("tree");
    let create = ["-q", "create", text(&tree), "--bucket", &bucket];
    let handle: Value = serde_json::from_str(&mounts.bench.ok(&create)).unwrap();
    let dir = text(&mounts.mountpoint);
    let restore = ["-q", "restore", handle["id"].as_str().unwrap(), dir, "--bucket", &bucket];
    let mount = ["-q", "mount", text(&mounts.archive), dir];
    for again in [&mount[..], &restore] {
        mounts.mount(&[]);
        std::fs::write(mounts.mountpoint.join("lost"), "lost").unwrap();
        mounts.kill_server();
        umount_lazily(&mounts.mountpoint);
        mounts.bench.ok(again);
        std::fs::write(mounts.mountpoint.join("alive"), "alive").unwrap();
        let shown = mounts.status();
        let states: Vec<_> = shown.iter().map(|mount| mount["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["live", "upper"], "{again:?}");
        assert!(!mounts.bench.ok(&["status"]).contains("thawfs unmount"), "{again:?}");
        // Changes are not thrown away by guess.
        let lost = Path::new(shown[1]["path"].as_str().unwrap()).join("upper/lost");
        assert_eq!(std::fs::read_to_string(lost).unwrap(), "lost");
        mounts.bench.ok(&["unmount", dir]);
        assert_eq!(names(&mounts.bench.state_dir().join("mounts")), Vec::<PathBuf>::new());
        mounts.gc(&["--yes"]);
        mounts.bench.assert_nothing_left();
    }
}

/// Every command of thawfs in `said`, up to the end of its clause.
fn advice(said: &str) -> Vec<Vec<String>> {
    let clauses = said.split(['\n', ';', ',', ':']);
    clauses
        .filter_map(|clause| clause.find("thawfs ").map(|at| &clause[at + "thawfs ".len()..]))
        .filter(|words| !words.is_empty())
        .map(|words| {
            let ends = ["shows", "clears", "takes"];
            let words = words.split_whitespace().take_while(|word| !ends.contains(word));
            words.map(str::to_owned).collect()
        })
        .collect()
}

#[test]
fn no_advice_takes_a_live_mount_down() {
    if !can_mount_with("no_advice_takes_a_live_mount_down", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let dir = text(&mounts.mountpoint).to_owned();
    mounts.mount(&[]);
    mounts.kill_server();
    // While the dead mount is there, the advice clears it.
    let said = mounts.bench.ok(&["status"]);
    assert!(said.contains(&format!("thawfs unmount --dead {dir}")), "{said}");
    let record = names(&mounts.bench.state_dir().join("mounts")).remove(0);
    let kept = mounts.bench.path("record");
    assert!(Command::new("cp").arg("-a").args([&record, &kept]).status().unwrap().success());
    mounts.bench.ok(&["unmount", "--dead", &dir]);
    assert_eq!(mounts.bench.mounted(), Vec::<PathBuf>::new());
    assert!(!record.exists());

    mounts.mount(&[]);
    std::fs::write(mounts.mountpoint.join("alive"), "alive").unwrap();
    let live: Value = {
        let dir = names(&mounts.bench.state_dir().join("mounts")).remove(0);
        serde_json::from_slice(&std::fs::read(dir.join("mount.json")).unwrap()).unwrap()
    };
    // The dead record as it may be found: as it was; of a process number, a device number, or a time that
    // the live one has, too; of the run of the machine before; of another mount namespace; of an older
    // version that wrote less.
    type Change = fn(&mut Value, &Value);
    let changes: [(&str, Change); 7] = [
        ("as it was", |_, _| ()),
        ("the same process", |dead, live| dead["pid"] = live["pid"].clone()),
        ("the same device", |dead, live| dead["device"] = live["device"].clone()),
        ("the same device, younger", |dead, live| {
            dead["device"] = live["device"].clone();
            dead["since"] = (live["since"].as_u64().unwrap() + 10).into();
        }),
        ("before a reboot", |dead, live| {
            dead["device"] = live["device"].clone();
            dead["place"]["boot"] = "00000000-0000-4000-8000-000000000000".into();
        }),
        ("in another namespace", |dead, _| dead["place"]["mounts"] = "mnt:[1]".into()),
        ("of an older version", |dead, _| {
            let dead = dead.as_object_mut().unwrap();
            for key in ["device", "place", "groups"] {
                dead.remove(key);
            }
        }),
    ];
    for (what, change) in changes {
        assert!(Command::new("cp").arg("-a").args([&kept, &record]).status().unwrap().success());
        let path = record.join("mount.json");
        let mut dead: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut dead, &live);
        std::fs::write(&path, dead.to_string()).unwrap();

        let states: Vec<_> = mounts.status().iter().map(|it| it["state"].clone()).collect();
        assert!(states.iter().any(|state| state == "dead"), "{what}: {states:?}");
        // What is said of it, and of another mount on top of the live one.
        let again = mounts.bench.run(&["mount", text(&mounts.archive), &dir]);
        assert_eq!(again.status.code(), Some(10), "{what}");
        let dead_only = mounts.bench.run(&["unmount", "--dead", &dir]);
        assert_eq!(dead_only.status.code(), Some(13), "{what}");
        let mut said = mounts.bench.ok(&["status"]);
        for output in [again, dead_only] {
            said.push_str(&String::from_utf8(output.stderr).unwrap());
        }
        let advised = advice(&said);
        assert!(advised.len() >= 3, "{what}: {said}");
        for words in &advised {
            mounts.bench.run(words);
            // As it is meant to be followed.
            mounts.bench.run(&[words.clone(), vec!["--yes".to_owned()]].concat());
        }
        let alive = std::fs::read_to_string(mounts.mountpoint.join("alive")).unwrap();
        assert_eq!(alive, "alive", "{what}: {advised:?}");
        assert_eq!(mounts.bench.servers().len(), 1, "{what}: {advised:?}");
        mounts.bench.ok(&["gc", "--yes"]);
        assert!(!record.exists(), "{what}: gc leaves it");
    }
    // With a dead record for the same device, the live mount is unmounted whole.
    assert!(Command::new("cp").arg("-a").args([&kept, &record]).status().unwrap().success());
    mounts.bench.ok(&["unmount", &dir]);
    mounts.bench.assert_nothing_left();
}

#[test]
fn a_server_in_another_mount_namespace_is_left_alone() {
    if !can_mount_with(
        "a_server_in_another_mount_namespace_is_left_alone",
        &[Need::Root, Need::Processes],
    ) {
        return;
    }
    let mounts = Mounts::new();
    let dir = text(&mounts.mountpoint).to_owned();
    // It mounts there, and keeps the namespace until its input ends.
    let script =
        "\"$0\" -q mount \"$1\" \"$2\" && echo ready && cat >/dev/null && cat \"$2/hello\"";
    let mut elsewhere = Command::new("unshare");
    elsewhere.args(["--mount", "--pid", "--fork", "sh", "-c", script]);
    elsewhere.args([env!("CARGO_BIN_EXE_thawfs"), text(&mounts.archive), &dir]);
    elsewhere.env("THAWFS_STATE_DIR", mounts.bench.state_dir());
    let mut elsewhere = elsewhere.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufReader::new(elsewhere.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line, "ready\n");

    // Here nothing is mounted there, and another mount of the same directory goes its own ways.
    assert_eq!(mounts.bench.run(&["unmount", &dir]).status.code(), Some(14));
    mounts.mount(&[]);
    assert_eq!(mounts.status().len(), 2);
    mounts.bench.ok(&["unmount", &dir]);
    mounts.bench.ok(&["gc", "--yes"]);
    assert_eq!(mounts.status()[0]["state"], "live");

    drop(elsewhere.stdin.take());
    line.clear();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line, "hello from the archive\n", "it was taken down");
    elsewhere.wait().unwrap();
    eventually("the server has ended", || mounts.bench.servers().is_empty());
    // The namespace of processes took the server with it by SIGKILL.
    mounts.bench.ok(&["gc", "--yes"]);
    mounts.bench.assert_nothing_left();
}

#[test]
fn killing_a_server_and_unmounting_at_once_leaves_no_record() {
    if !can_mount_with(
        "killing_a_server_and_unmounting_at_once_leaves_no_record",
        &[Need::Processes],
    ) {
        return;
    }
    let mounts = Mounts::new();
    for round in 0..40 {
        mounts.mount(&["--read-only"]);
        kill(mounts.bench.servers()[0]);
        let output = mounts.bench.run(&["unmount", text(&mounts.mountpoint)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{round}: {said}");
        let left = names(&mounts.bench.state_dir().join("mounts"));
        assert_eq!(left, Vec::<PathBuf>::new(), "{round}");
        eventually("the server has ended", || mounts.bench.servers().is_empty());
    }
    mounts.bench.assert_nothing_left();
}

#[test]
fn uppers_that_are_left_are_named_and_removed_by_gc_alone() {
    if !can_mount_with("uppers_that_are_left_are_named_and_removed_by_gc_alone", &[Need::Processes])
    {
        return;
    }
    let mounts = Mounts::new();
    let dir = text(&mounts.mountpoint).to_owned();
    // One of a server that was killed, one that was kept, and one in use.
    mounts.mount(&[]);
    std::fs::write(mounts.mountpoint.join("large"), vec![1; 1 << 20]).unwrap();
    mounts.kill_server();
    mounts.bench.ok(&["unmount", &dir]);
    mounts.mount(&["--keep-upper"]);
    std::fs::write(mounts.mountpoint.join("kept"), "kept").unwrap();
    mounts.bench.ok(&["unmount", &dir]);
    mounts.mount(&[]);
    std::fs::write(mounts.mountpoint.join("alive"), "alive").unwrap();

    let shown = mounts.status();
    let states: Vec<_> = shown.iter().map(|it| it["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["live", "upper", "upper"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    for (upper, kept, least) in [(&shown[1], false, 1 << 20), (&shown[2], true, 1)] {
        assert_eq!(
            (&upper["kept"], &upper["mountpoint"]),
            (&Value::from(kept), &Value::from(&*dir))
        );
        let bytes = upper["bytes"].as_u64().unwrap();
        assert!((least..4 << 20).contains(&bytes), "{bytes}");
        let age = now.as_secs() - upper["since"].as_u64().unwrap();
        assert!(age < 600, "{age}");
    }
    let said = mounts.bench.ok(&["status", &dir]);
    let large = shown[1]["path"].as_str().unwrap();
    assert!(said.contains(&format!("{large}: 1.")) && said.contains(" s old"), "{said}");

    let (found, summary) = mounts.gc(&[]);
    assert_eq!(kinds(&found), ["upper", "upper"]);
    assert_eq!((&summary["dryRun"], &summary["bytes"]), (&true.into(), &found[0]["bytes"]));
    assert!(Path::new(large).exists(), "listing removes nothing");
    let (found, _) = mounts.gc(&["--yes"]);
    assert_eq!(found[0]["removed"], true);
    assert_eq!(found[1]["removed"], false, "it was to be kept");
    assert!(!Path::new(large).exists());

    // A kept one that is mounted again is in use, and stays what it was to its user.
    mounts.bench.ok(&["unmount", &dir]);
    let kept = Path::new(shown[2]["path"].as_str().unwrap()).join("upper");
    mounts.mount(&["--upper", text(&kept)]);
    assert_eq!(std::fs::read_to_string(mounts.mountpoint.join("kept")).unwrap(), "kept");
    assert_eq!(kinds(&mounts.gc(&["--yes", "--kept"]).0), Vec::<&str>::new());
    mounts.bench.ok(&["unmount", &dir]);
    assert_eq!(mounts.gc(&["--yes"]).0[0]["removed"], false);
    assert_eq!(mounts.gc(&["--yes", "--kept"]).0[0]["removed"], true);
    mounts.bench.assert_nothing_left();
    assert_eq!(mounts.bench.ok(&["status"]), "nothing is mounted\n");
}

#[test]
fn an_upper_that_is_named_after_its_server_was_killed_is_kept() {
    if !can_mount_with(
        "an_upper_that_is_named_after_its_server_was_killed_is_kept",
        &[Need::Processes],
    ) {
        return;
    }
    let mounts = Mounts::new();
    mounts.mount(&[]);
    std::fs::write(mounts.mountpoint.join("wanted"), "wanted").unwrap();
    mounts.kill_server();
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    let upper = Path::new(mounts.status()[0]["path"].as_str().unwrap()).join("upper");
    mounts.mount(&["--upper", text(&upper)]);
    assert_eq!(std::fs::read_to_string(mounts.mountpoint.join("wanted")).unwrap(), "wanted");
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    mounts.bench.ok(&["gc", "--yes"]);
    assert_eq!(std::fs::read_to_string(upper.join("wanted")).unwrap(), "wanted");
}

#[test]
fn gc_tells_of_all_that_it_removes_what_goes_with_another_too() {
    let test = "gc_tells_of_all_that_it_removes_what_goes_with_another_too";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mounts.mount(&[]);
    let pid = mounts.bench.servers()[0];
    mounts.kill_server();
    // The groups of other servers are not looked at.
    let of_it = |more: &[&str]| {
        let said = mounts.bench.ok(&[&["gc", "--json"], more].concat());
        let documents = serde_json::Deserializer::from_str(&said).into_iter();
        let mut lines: Vec<Value> = documents.map(Result::unwrap).collect();
        let summary = lines.pop().unwrap();
        let removed = lines.iter().filter(|line| line["removed"] == true);
        let (count, bytes) = removed.fold((0, 0), |(count, bytes), line| {
            (count + 1, bytes + line["bytes"].as_u64().unwrap())
        });
        if !more.is_empty() {
            assert_eq!((&summary["count"], &summary["bytes"]), (&count.into(), &bytes.into()));
        }
        let group = format!("/thawfs-{pid}");
        lines.retain(|line| {
            line["kind"] != "group" || line["path"].as_str().unwrap().ends_with(&group)
        });
        lines
    };
    let found = of_it(&[]);
    let expected = ["record", "upper"];
    assert_eq!(kinds(&found)[..2], expected);
    let removed = of_it(&["--yes"]);
    assert_eq!(kinds(&removed), kinds(&found));
    for line in &removed {
        assert_eq!(line["removed"], true, "{line}");
        assert!(!Path::new(line["path"].as_str().unwrap()).exists(), "{line}");
    }
    mounts.bench.assert_nothing_left();

    mounts.mount(&[]);
    mounts.kill_server();
    let said = mounts.bench.ok(&["gc", "--yes"]);
    assert!(said.contains("removed the record") && said.contains("removed the upper"), "{said}");
    assert!(!said.contains("left the record"), "{said}");
}

#[test]
fn an_upper_that_somebody_has_mounted_is_left() {
    let test = "an_upper_that_somebody_has_mounted_is_left";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mounts.mount(&[]);
    std::fs::create_dir(mounts.mountpoint.join("made")).unwrap();
    std::fs::write(mounts.mountpoint.join("made/wanted"), "wanted").unwrap();
    mounts.kill_server();
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    let base = PathBuf::from(mounts.status()[0]["path"].as_str().unwrap());
    let (upper, work) = (base.join("upper"), base.join("work"));
    let link = mounts.bench.path("link");
    std::os::unix::fs::symlink(&base, &link).unwrap();
    let at = mounts.bench.directory("at");
    let [lower, spare, spare_work] =
        ["lower", "spare", "spare.work"].map(|name| mounts.bench.directory(name));
    let overlay = |options: String| {
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "overlay", "none", text(&at), "-o", &options]);
        mount
    };
    let over = |lower: &Path, upper: &Path, work: &Path| {
        let [lower, upper, work] = [lower, upper, work].map(Path::display);
        overlay(format!("lowerdir={lower},upperdir={upper},workdir={work}"))
    };
    let bind = |what: &Path| {
        let mut mount = Command::new("mount");
        mount.arg("--bind").args([what, &at]);
        mount
    };
    let mut relative = overlay("lowerdir=../../../lower,upperdir=upper,workdir=work".into());
    relative.current_dir(&base);
    let several = format!("lowerdir={}:{}", lower.display(), upper.join("made").display());
    let ways: [(&str, Command); 7] = [
        ("as an upper", over(&lower, &upper, &work)),
        ("through a link", over(&lower, &link.join("upper"), &link.join("work"))),
        ("as a lower one", over(&upper, &spare, &spare_work)),
        ("of several", overlay(several)),
        ("by relative names", relative),
        ("by another name", bind(&upper)),
        ("a part of it by another name", bind(&upper.join("made"))),
    ];
    for (what, mut mount) in ways {
        let output = mount.output().unwrap();
        if !output.status.success() {
            // Overlayfs takes no upper on overlayfs, nor on every other file system.
            assert_ne!(Surrounding::current(), Surrounding::Root, "{what}: {output:?}");
            continue;
        }
        for more in [&[][..], &["--yes"]] {
            let (found, _) = mounts.gc(more);
            let found = found.iter().find(|line| line["kind"] == "upper").unwrap();
            let because = found["because"].as_str().unwrap_or_default();
            assert!(because.contains(text(&at)), "{what}: {found}");
            assert_eq!(found["removed"], false, "{what}");
            let said = mounts.bench.ok(&[&["gc"], more].concat());
            assert!(said.contains("left the upper") && said.contains(text(&at)), "{what}: {said}");
        }
        assert_eq!(std::fs::read(upper.join("made/wanted")).unwrap(), b"wanted", "{what}");
        assert!(Command::new("umount").arg(&at).status().unwrap().success());
    }

    // In another mount namespace, as that of a container.
    let script = "mount --bind \"$0\" \"$1\" && echo && exec sleep 600";
    let mut container = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .args([&upper, &at])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(container.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let (found, _) = mounts.gc(&["--yes"]);
    container.kill().unwrap();
    container.wait().unwrap();
    assert_eq!((kinds(&found), &found[0]["removed"]), (vec!["upper"], &false.into()));

    // Nobody has it any more.
    eventually("the namespace is gone", || mounts.gc(&[]).0[0]["because"].is_null());
    assert_eq!(mounts.gc(&["--yes"]).0[0]["removed"], true);
    mounts.bench.assert_nothing_left();
}

#[test]
fn gc_takes_dead_mounts_down_with_their_uppers() {
    if !can_mount_with("gc_takes_dead_mounts_down_with_their_uppers", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mounts.mount(&[]);
    std::fs::write(mounts.mountpoint.join("lost"), "lost").unwrap();
    mounts.kill_server();
    // A server that was killed before it had written anything down.
    let early = mounts.bench.state_dir().join("mounts/1-1");
    std::fs::create_dir(&early).unwrap();
    std::fs::write(early.join("lock"), "").unwrap();
    assert_eq!(kinds(&mounts.gc(&[]).0), ["record", "record", "upper"]);
    assert_eq!(mounts.bench.mounted().len(), 1, "listing takes nothing down");
    mounts.bench.ok(&["gc", "--yes"]);
    mounts.bench.assert_nothing_left();
}

#[test]
fn no_file_of_a_lock_outlives_its_command() {
    if !can_mount_with("no_file_of_a_lock_outlives_its_command", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let locks = mounts.bench.state_dir().join("locks");
    mounts.mount(&[]);
    assert_eq!(names(&locks), Vec::<PathBuf>::new());
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    assert_eq!(names(&locks), Vec::<PathBuf>::new());
    // That of a command that was killed, and that of one at work.
    std::fs::write(locks.join("0000000000000001"), "").unwrap();
    let held = std::fs::File::create(locks.join("0000000000000002")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(kinds(&mounts.gc(&["--yes"]).0), ["lock"]);
    assert_eq!(names(&locks), [locks.join("0000000000000002")]);
}

#[test]
fn a_work_directory_goes_with_its_upper() {
    if !can_mount_with("a_work_directory_goes_with_its_upper", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let (upper, work) = (mounts.bench.path("up"), mounts.bench.path(".up.work"));
    mounts.mount(&["--upper", text(&upper)]);
    std::fs::remove_file(mounts.mountpoint.join("script")).unwrap();
    assert!(work.exists());
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    assert!(!work.exists(), "nothing is in it that the next mount needs");
    mounts.mount(&["--upper", text(&upper)]);
    assert!(!mounts.mountpoint.join("script").exists());

    // Which file a hard link of the archive is, the next mount needs to know.
    std::fs::write(mounts.mountpoint.join("hello"), "changed").unwrap();
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    assert!(work.exists());
    assert_eq!(kinds(&mounts.gc(&["--yes"]).0), Vec::<&str>::new(), "its upper is there");
    mounts.mount(&["--upper", text(&upper)]);
    assert_eq!(
        std::fs::read_to_string(mounts.mountpoint.join("sub/hello-too")).unwrap(),
        "changed"
    );
    std::fs::rename(&upper, mounts.bench.path("moved")).unwrap();
    assert_eq!(kinds(&mounts.gc(&["--yes"]).0), Vec::<&str>::new(), "it is in use");
    mounts.kill_server();
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    assert_eq!(kinds(&mounts.gc(&["--yes"]).0), ["work"]);
    assert!(!work.exists());
    assert_eq!(names(&mounts.bench.state_dir().join("notes")), Vec::<PathBuf>::new());
}

#[test]
fn what_a_killed_extract_leaves_goes_with_the_next_one_or_gc() {
    let test = "what_a_killed_extract_leaves_goes_with_the_next_one_or_gc";
    if cannot_run(test, &[Need::Processes]) {
        return;
    }
    let place = Place::s3();
    let tree = place.bench.directory("tree");
    std::fs::write(tree.join("large"), vec![7; 1 << 20]).unwrap();
    let archive = place.bench.archive(&tree, "data.sqsh", &["-noD"]);
    let bucket = place.root.parent().unwrap();
    std::fs::copy(&archive, bucket.join("a.sqsh")).unwrap();
    let target = place.bench.path("out/target");
    let parent = place.bench.path("out");
    // Stops before the end: the store has nothing more to say from some time on.
    let start_and_kill = || {
        let mut extract = place.thawfs();
        extract.args(["-q", "extract", "s3://box/a.sqsh", text(&target), "--disk-cache", "off"]);
        let mut extract = extract.stderr(Stdio::null()).spawn().unwrap();
        // As soon as its directory is there; it has all of the file to fetch then.
        eventually("it is unpacking", || {
            !names(&parent).is_empty() || extract.try_wait().unwrap().is_some()
        });
        let _ = extract.kill();
        extract.wait().unwrap();
        names(&parent)
    };
    let killed = || {
        (0..200)
            .find_map(|_| {
                let left = start_and_kill();
                let _ = std::fs::remove_dir_all(&target);
                left.into_iter().find(|path| text(path).ends_with(".thawfs") && path.exists())
            })
            .expect("one of them was killed in time")
    };
    let left = killed();
    let gc = |arguments: &[&str]| place.run(arguments).stdout;
    assert!(String::from_utf8(gc(&["gc"])).unwrap().contains(text(&left)));
    gc(&["gc", "--yes"]);
    assert_eq!(names(&parent), Vec::<PathBuf>::new());

    let left = killed();
    // One at work is left alone, by the next one and by gc.
    let name = left.file_name().unwrap().to_str().unwrap().to_owned();
    let busy = parent.join(name.replace(name.rsplit('.').nth(1).unwrap(), "1"));
    std::fs::create_dir(&busy).unwrap();
    let held = std::fs::File::open(&busy).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    // And so is what only looks like one, and what came to be by the name of one.
    let mine = ["7", "x"].map(|pid| parent.join(format!(".target.{pid}.thawfs/mine")));
    let taken = killed();
    let moved = parent.join("moved");
    std::fs::rename(&taken, &moved).unwrap();
    let taken = taken.join("mine");
    for mine in mine.iter().chain([&taken]) {
        std::fs::create_dir_all(mine.parent().unwrap()).unwrap();
        std::fs::write(mine, "mine").unwrap();
    }
    gc(&["gc", "--yes"]);
    let done = place.run(&["-q", "extract", "s3://box/a.sqsh", text(&target)]);
    assert!(done.status.success());
    let there: BTreeSet<_> = names(&parent).into_iter().collect();
    let looking = mine.iter().chain([&taken]).map(|mine| mine.parent().unwrap().to_owned());
    assert_eq!(there, looking.chain([busy, moved, target.clone()]).collect());
    for mine in mine.iter().chain([&taken]) {
        assert_eq!(std::fs::read(mine).unwrap(), b"mine");
    }
    assert_eq!(std::fs::read(target.join("large")).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn what_is_mounted_elsewhere_too_or_beneath_another_is_said() {
    let test = "what_is_mounted_elsewhere_too_or_beneath_another_is_said";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let (mountpoint, other) = (bench.directory("mnt"), bench.directory("other"));
    let unmount = |expected: &str| {
        let output = bench.run(&["-q", "unmount", text(&mountpoint)]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(13), "{told}");
        assert!(told.contains(expected), "{told}");
    };
    let run = |words: &[&str]| {
        assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success())
    };

    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    run(&["mount", "-t", "tmpfs", "none", text(&mountpoint)]);
    unmount("another file system (tmpfs) is mounted over");
    run(&["umount", text(&mountpoint)]);
    run(&["mount", "--bind", text(&mountpoint), text(&other)]);
    unmount(&format!("is mounted on {}, too", other.display()));
    run(&["umount", text(&other)]);
    eventually("the server has ended", || bench.servers().is_empty());

    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    let mut container = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(container.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    unmount("is mounted where process ");
    container.kill().unwrap();
    container.wait().unwrap();
    eventually("the server has ended", || bench.servers().is_empty());
    bench.assert_nothing_left();
}
