//! `ls`, `cat`, `extract` and `inspect` on archives that are not mounted, and help that a script or
//! a packager asks for.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Bench, big_contents, write_tree};
use crate::support::surrounding::{Need, cannot_run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A bench with the small tree, and more of what only extraction cares for, packed.
fn prepared() -> (Bench, PathBuf) {
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 5 << 20).unwrap();
    drop(sparse);
    std::fs::set_permissions(tree.join("sub"), PermissionsExt::from_mode(0o2750)).unwrap();
    let made = Command::new("mkfifo").arg(tree.join("pipe")).status().unwrap();
    assert!(made.success());
    if is_root() {
        let set = Command::new("sh")
            .arg("-c")
            .arg("cd \"$0\" && mknod dev c 1 3 && setfattr -n user.note -v yes hello && chown 12:34 script && chmod 4755 script")
            .arg(&tree)
            .status()
            .unwrap();
        assert!(set.success());
    }
    let touched = Command::new("find")
        .args([text(&tree), "-exec", "touch", "-hd", "2001-02-03 04:05:06 UTC", "{}", "+"])
        .status()
        .unwrap();
    assert!(touched.success());
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "xz"]);
    (bench, archive)
}

#[test]
fn ls_lists_names_details_and_subtrees() {
    let (bench, archive) = prepared();
    let names = bench.ok(&["ls", text(&archive), "sub"]);
    assert_eq!(names, "data\ndeeper\nhello-too\nlink\n");
    let all = bench.ok(&["ls", "-R", text(&archive)]);
    assert!(all.lines().any(|line| line == "sub/deeper/empty"), "{all}");
    let long = bench.ok(&["ls", "-l", text(&archive)]);
    let line = long.lines().find(|line| line.ends_with("script")).unwrap();
    assert!(line.contains("2001-02-03 04:05"), "{line}");
    assert!(line.starts_with(if is_root() { "-rwsr-xr-x" } else { "-rwxr-xr-x" }), "{line}");
    let listed: serde_json::Value =
        serde_json::from_str(&bench.ok(&["ls", "--json", text(&archive), "sub/link"])).unwrap();
    assert_eq!(listed[0]["kind"], "symlink");
    assert_eq!(listed[0]["target"], "../hello");
    let missing = bench.run(&["ls", text(&archive), "sub/nothing"]);
    assert_eq!(missing.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("sub/nothing"));
}

#[test]
fn cat_writes_contents_and_refuses_what_has_none() {
    let (bench, archive) = prepared();
    let output = bench.run(&["cat", text(&archive), "hello", "/sub/data"]);
    assert!(output.status.success());
    assert_eq!(output.stdout, [&b"hello from the archive\n"[..], &big_contents()].concat());
    let refused = bench.run(&["cat", text(&archive), "sub"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("sub is a directory"));
}

#[test]
fn a_reader_that_has_enough_is_no_error_message() {
    let (bench, archive) = prepared();
    let script =
        format!("{} cat {} sub/data | head -c 10", env!("CARGO_BIN_EXE_thawfs"), text(&archive));
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.stdout, &big_contents()[..10]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    drop(bench);
}

#[test]
fn an_extracted_tree_is_the_packed_one() {
    let (bench, archive) = prepared();
    let (tree, into) = (bench.path("tree"), bench.path("into/here"));
    let extract = ["extract", "--json", "--preserve-privileged", text(&archive), text(&into)];
    let done: serde_json::Value = serde_json::from_str(&bench.ok(&extract)).unwrap();
    assert_eq!(done["withheld"], 0);
    let nothing = serde_json::json!({"setIds": 0, "capabilities": 0, "devices": 0});
    assert_eq!(done["leftOut"], nothing);

    let describe = |root: &Path| {
        let output = Command::new("find")
            .current_dir(root)
            .args([".", "-printf", "%P %y %m %U %G %n %T@ %l"])
            .args(["(", "-type", "f", "-printf", " %s", ")", "-o", "-true"])
            .args(["(", "-printf", "\n", ")"])
            .output()
            .unwrap();
        assert!(output.status.success());
        let mut lines: Vec<String> =
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(describe(&into), describe(&tree));
    for name in ["hello", "sub/data", "sparse"] {
        assert_eq!(
            std::fs::read(into.join(name)).unwrap(),
            std::fs::read(tree.join(name)).unwrap()
        );
    }
    let ino = |name: &str| std::fs::metadata(into.join(name)).unwrap().ino();
    assert_eq!(ino("hello"), ino("sub/hello-too"));
    assert!(std::fs::metadata(into.join("sparse")).unwrap().blocks() < 1024);
    assert!(std::fs::metadata(into.join("pipe")).unwrap().file_type().is_fifo());
    if is_root() {
        let shown = Command::new("getfattr")
            .args(["--only-values", "-n", "user.note"])
            .arg(into.join("hello"))
            .output()
            .unwrap();
        assert_eq!(shown.stdout, b"yes");
        assert_eq!(std::fs::metadata(into.join("dev")).unwrap().rdev(), 0x103);
    }
}

#[test]
fn rights_and_devices_are_left_out_and_counted_unless_asked_for() {
    let test = "rights_and_devices_are_left_out_and_counted_unless_asked_for";
    if cannot_run(test, &[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    let made = Command::new("sh")
        .arg("-ec")
        .arg(
            "cd $0; for mode in 4755 2711 6644 2644 1755; do echo x > file-$mode; done
             mkdir dir-2775 dir-4755; mkfifo pipe; mknod c c 1 3; mknod b b 7 0; mknod null c 0 0
             for name in file-* dir-*; do chmod ${name#*-} $name; done; chmod 6755 pipe
             ln file-4755 again; ln c c-again
             echo x > capable; setcap cap_net_raw+ep capable; setcap cap_net_raw+ep file-1755",
        )
        .arg(&tree)
        .status();
    assert!(made.unwrap().success());
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let shown = |root: &Path| {
        let found = Command::new("find").arg(root).args(["-printf", "%P %m %y\n"]).output();
        let capable = Command::new("getcap").current_dir(root).args(["-r", "."]).output();
        let mut lines: Vec<_> = [found.unwrap().stdout, capable.unwrap().stdout]
            .iter()
            .flat_map(|text| {
                String::from_utf8_lossy(text).lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        lines.sort();
        lines
    };

    let into = bench.path("plain");
    let output = bench.run(&["extract", "--json", text(&archive), text(&into)]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let counts = serde_json::json!({"setIds": 4, "capabilities": 2, "devices": 4});
    assert_eq!((&done["leftOut"], &done["withheld"]), (&counts, &0.into()));
    for count in ["bits of 4 files", "capabilities of 2", "4 devices", "--preserve-privileged"] {
        assert!(said.contains(count), "{said}");
    }
    let expected: Vec<_> = shown(&tree)
        .into_iter()
        .filter(|line| !line.ends_with(" c") && !line.ends_with(" b") && !line.contains("cap_"))
        .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [name, mode, "f"] if mode.len() == 4 && !mode.starts_with('1') => {
                format!("{name} {} f", &mode[1..])
            }
            _ => line,
        })
        .collect();
    assert_eq!(shown(&into), expected);
    assert!(expected.contains(&"dir-2775 2775 d".to_owned()), "{expected:?}");

    let into = bench.path("all");
    let output = bench.run(&["extract", text(&archive), text(&into), "--preserve-privileged"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(shown(&into), shown(&tree));
}

#[test]
fn a_part_of_an_archive_is_extracted() {
    let (bench, archive) = prepared();
    let into = bench.directory("empty");
    bench.ok(&["extract", text(&archive), text(&into), "--path", "sub"]);
    assert_eq!(std::fs::read(into.join("data")).unwrap(), big_contents());
    // The other name of this hard link is outside of the part.
    assert_eq!(std::fs::read(into.join("hello-too")).unwrap(), b"hello from the archive\n");
    let one = bench.path("one");
    bench.ok(&["extract", text(&archive), text(&one), "--path", "/sub/data"]);
    assert_eq!(std::fs::read(one.join("data")).unwrap(), big_contents());
}

#[test]
fn a_failed_extraction_leaves_the_target_as_it_was() {
    let (bench, archive) = prepared();
    let full = bench.directory("full");
    std::fs::write(full.join("mine"), "mine").unwrap();
    let refused = bench.run(&["extract", text(&archive), text(&full)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not empty"));
    assert_eq!(std::fs::read_to_string(full.join("mine")).unwrap(), "mine");

    // Damage in the data of one file only shows while it is unpacked.
    let mut bytes = std::fs::read(&archive).unwrap();
    for byte in &mut bytes[200..2000] {
        *byte ^= 0x5a;
    }
    let broken = bench.path("broken.sqsh");
    std::fs::write(&broken, bytes).unwrap();
    let before: Vec<_> = std::fs::read_dir(bench.path("")).unwrap().count().to_le_bytes().to_vec();
    let failed = bench.run(&["extract", text(&broken), text(&bench.path("target"))]);
    assert_eq!(failed.status.code(), Some(6), "{}", String::from_utf8_lossy(&failed.stderr));
    let after: Vec<_> = std::fs::read_dir(bench.path("")).unwrap().count().to_le_bytes().to_vec();
    assert_eq!(before, after, "something was left behind");
}

#[test]
fn an_ordinary_user_extracts_what_it_may() {
    if cannot_run("an_ordinary_user_extracts_what_it_may", &[Need::Root]) {
        return;
    }
    let (bench, archive) = prepared();
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    let home = bench.directory("home");
    std::os::unix::fs::chown(&home, Some(65_534), Some(65_534)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([text(&program), "extract", text(&archive), text(&home.join("out"))])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("left out"));
    assert_eq!(std::fs::read(home.join("out/sub/data")).unwrap(), big_contents());
    assert_eq!(std::fs::metadata(home.join("out/hello")).unwrap().uid(), 65_534);
    // Root's setuid program is not one of this user's, whatever is asked.
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([text(&program), "extract", "--json", "--preserve-privileged"])
        .args([text(&archive), text(&home.join("all"))])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mode = |name: &str| std::fs::metadata(home.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("out/script"), mode("all/script")), (0o755, 0o755));
    assert_eq!(mode("all/sub"), 0o2750);
}

#[test]
fn who_may_not_set_owners_extracts_attributes_of_what_may_not_be_written() {
    let test = "who_may_not_set_owners_extracts_attributes_of_what_may_not_be_written";
    if cannot_run(test, &[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    let made = Command::new("sh")
        .arg("-ec")
        .arg(
            "cd $0; mkdir dir; echo x > dir/file; ln -s file dir/link; mkfifo dir/pipe
             for name in dir dir/file; do setfattr -n user.note -v yes $name; done
             chmod 444 dir/file; chmod 555 dir; chown -hR 12:34 .",
        )
        .arg(&tree)
        .status();
    assert!(made.unwrap().success());
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    let home = bench.directory("home");
    std::os::unix::fs::chown(&home, Some(65_534), Some(65_534)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    // Its root, who has no number for the owners in the archive.
    let in_namespace = ["unshare", "--user", "--map-root-user"];
    for (name, within) in [("nobody", &nobody[..]), ("namespace", &in_namespace)] {
        let run = |args: &[&str]| Command::new(within[0]).args(&within[1..]).args(args).output();
        if !run(&["true"]).unwrap().status.success() {
            eprintln!("SKIPPED {test}: {within:?} cannot be run");
            continue;
        }
        let into = if name == "nobody" { home.join("out") } else { bench.path("out") };
        let args = [text(&program), "extract", "--json", text(&archive), text(&into)];
        let output = run(&args).unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(done["withheld"], 5, "{name}: five owners");
        for (file, mode) in [("dir", 0o555), ("dir/file", 0o444)] {
            let file = into.join(file);
            assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, mode, "{name}");
            let noted = Command::new("getfattr")
                .args(["--only-values", "-n", "user.note"])
                .arg(&file)
                .output();
            assert_eq!(noted.unwrap().stdout, b"yes", "{name}: {}", file.display());
        }
    }
}

#[test]
fn inspect_describes_the_superblock() {
    let (bench, archive) = prepared();
    let said = bench.ok(&["inspect", "--json", text(&archive)]);
    let described: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(described["compressor"], "xz");
    assert_eq!(described["blockSize"], 131_072);
    assert!(described["flagNames"].as_array().unwrap().contains(&"exports".into()));
    // mksquashfs counts a hard-linked file once.
    let inodes = if is_root() { 11 } else { 10 };
    assert_eq!(described["inodes"], inodes, "{said}");
    // unsquashfs reads the same tables from the same superblock.
    let theirs = Command::new("unsquashfs").arg("-s").arg(&archive).output().unwrap();
    let theirs = String::from_utf8_lossy(&theirs.stdout).into_owned();
    assert!(theirs.contains(&format!("Number of inodes {inodes}")), "{theirs}");
    assert!(bench.ok(&["inspect", text(&archive)]).contains("xz"));
}

#[test]
fn help_completions_and_manual_exist_for_every_command() {
    let bench = Bench::new();
    for command in [
        "mount", "unmount", "status", "ls", "cat", "extract", "inspect", "list", "show", "delete",
        "prune", "verify",
    ] {
        assert!(bench.ok(&[command, "--help"]).contains("Usage:"), "{command}");
        for shell in ["bash", "zsh", "fish"] {
            assert!(bench.ok(&["completions", shell]).contains(command), "{command} {shell}");
        }
        assert!(bench.ok(&["man"]).contains(command), "{command}");
    }
    assert!(!bench.ok(&["--help"]).contains("  serve "), "the hidden command shows");
}
