//! Programs that restore through the library: which of them serve, and which are never started as servers.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Mounts, can_mount_with, write_tree};
use crate::support::place::Place;
use crate::support::surrounding::Need;
use crate::support::words::said;
use thawfs::backup::{BackupId, Backups, BucketRequest, SourceRequest};
use thawfs::failure::{Code, Failure};
use thawfs::server::{
    MountRequest, RestoreRequest, ServerProgram, Starting, restore, restore_archive, start_detached,
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A bucket with a backup, and the backup's id.
fn prepared() -> (Place, String) {
    let place = Place::local();
    let tree = place.bench.directory("tree");
    write_tree(&tree);
    let output = place.run(&["-q", "create", text(&tree)]);
    let handle: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    (place, handle["id"].as_str().unwrap().to_owned())
}

/// Where an example is, built if it is not, or is older than the program.
fn example(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_thawfs"));
    let example = program.with_file_name("examples").join(name);
    let built = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if built(&example) < built(program) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--example", name]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        // What cargo tells a test makes it build dependencies anew.
        #[allow(clippy::disallowed_methods, reason = "a test's own environment, to be taken back")]
        for (name, _) in std::env::vars_os() {
            let told = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_"];
            if told.iter().any(|start| name.to_string_lossy().starts_with(start)) {
                build.env_remove(name);
            }
        }
        if program.parent().unwrap().ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
    }
    example
}

#[test]
fn the_example_restores_and_serves_with_its_own_program() {
    if !can_mount_with(
        "the_example_restores_and_serves_with_its_own_program",
        &[Need::Root, Need::Processes],
    ) {
        return;
    }
    let (place, id) = prepared();
    let program = example("restore");
    let target = place.bench.path("target");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).env("THAWFS_STATE_DIR", place.bench.state_dir());
        command.env("THAWFS_CACHE_DIR", place.bench.cache_dir()).output().unwrap()
    };
    let output = run(&[&place.url, &id, text(&target)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let servers = place.bench.servers();
    assert_eq!(servers.len(), 1);
    assert_eq!(said, format!("{} is served by process {}\n", target.display(), servers[0]));
    let served_by = std::fs::read_link(format!("/proc/{}/exe", servers[0])).unwrap();
    assert_eq!(served_by, program.canonicalize().unwrap());
    std::fs::write(target.join("hello"), "changed").unwrap();
    // The command knows the mounts of other programs.
    place.bench.ok(&["unmount", text(&target)]);
    place.bench.assert_nothing_left();

    // Its own arguments are its own, whatever they are called.
    let output = run(&["serve", "x"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "usage: restore BUCKET ID DIR\n");
}

#[test]
fn the_example_takes_back_what_a_command_that_fails_has_done() {
    let name = "the_example_takes_back_what_a_command_that_fails_has_done";
    if !can_mount_with(name, &[Need::Root, Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mounts.bench.ok(&["-q", "mount", text(&mounts.archive), text(&mounts.mountpoint)]);
    let program = example("checkpoints");
    let run = |script: &str| {
        let mut command = Command::new(&program);
        command.args([text(&mounts.mountpoint), "sh", "-c", script]);
        command.env("THAWFS_STATE_DIR", mounts.bench.state_dir());
        command.env("THAWFS_CACHE_DIR", mounts.bench.cache_dir()).output().unwrap()
    };
    for (script, succeeds) in [("rm -r sub; echo 1 >new; false", false), ("echo 2 >new", true)] {
        let output = run(script);
        assert_eq!(output.status.success(), succeeds, "{}", said(&output));
        let there = ["sub", "new"].map(|name| mounts.mountpoint.join(name).exists());
        assert_eq!(there, [true, succeeds], "{script}");
    }
    let listed = mounts.bench.run(&["checkpoints", "--json", text(&mounts.mountpoint)]);
    assert_eq!(
        String::from_utf8(listed.stdout).unwrap().lines().count(),
        2,
        "one, and what was rolled away"
    );
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
}

/// This test program is a host that ignores its arguments: started as a server, it would run every test
/// here again, and so start itself over and over.
#[test]
fn a_host_that_is_no_server_is_never_started() {
    let (place, id) = prepared();
    let backups = BucketRequest::new(&place.url);
    let target = place.bench.path("target");
    let id: BackupId = id.parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let this = std::env::current_exe().unwrap();
    let linked = place.bench.path("linked");
    std::os::unix::fs::symlink(&this, &linked).unwrap();
    let source = SourceRequest::new(text(&place.object(&format!("{id}/data.sqsh"))));

    let refused = |what: &str, failure: Failure| {
        assert_eq!(failure.code, Code::Usage, "{what}: {failure}");
        assert!(failure.hint.unwrap().contains("serve_if_asked"), "{what}");
    };
    refused("itself", ServerProgram::this().unwrap_err());
    let programs = [None, Some(this), Some("/proc/self/exe".into()), Some(linked)]
        .map(|path| path.map(|path: PathBuf| ServerProgram::at(path)));
    for program in programs {
        let what = format!("{program:?}");
        let request = || RestoreRequest { program: program.clone(), ..RestoreRequest::default() };
        let restored = runtime.block_on(async {
            let backups = Backups::open(&backups).await.unwrap();
            let request = RestoreRequest { dir: Some(target.clone()), ..request() };
            restore(&backups, &id, request).await
        });
        refused(&what, restored.unwrap_err());
        refused(&what, restore_archive(&source, &target, request()).unwrap_err());
        if let Some(program) = &program {
            refused(&what, Starting::new(program, &source, &target).err().unwrap());
            let mount = MountRequest::new(source.clone(), target.clone());
            refused(&what, start_detached(program, &mount).unwrap_err());
        }
    }
    assert!(!target.exists());
}

#[test]
fn a_program_that_is_something_else_is_told_so() {
    let (place, id) = prepared();
    let source = SourceRequest::new(text(&place.object(&format!("{id}/data.sqsh"))));
    let talker = place.bench.path("talker");
    std::fs::write(&talker, "#!/bin/sh\necho hello\nexec sleep 600\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&talker, mode).unwrap();
    // One that says nothing, one that repeats what it hears, one that talks and goes on, and none.
    for program in ["/bin/true", "/bin/cat", text(&talker), "/nowhere/thawfs"] {
        let opened = Starting::new(&ServerProgram::at(program), &source, Path::new("x"))
            .and_then(|mut server| server.wait_opened());
        let failure = opened.unwrap_err();
        assert_eq!(failure.code, Code::Failed, "{program}: {failure}");
    }
}

#[test]
fn a_host_has_the_thawfs_program_serve_and_keeps_no_zombie() {
    if !can_mount_with(
        "a_host_has_the_thawfs_program_serve_and_keeps_no_zombie",
        &[Need::Root, Need::Processes],
    ) {
        return;
    }
    let (place, id) = prepared();
    let mountpoint = place.bench.directory("mnt");
    // A host cannot set variables while it has threads; its state is that of this machine's root.
    let program = place.bench.path("server");
    let state = place.bench.state_dir();
    let script = format!(
        "#!/bin/bash\nexport THAWFS_STATE_DIR={}\nexec -a thawfs {} \"$@\"\n",
        text(&state),
        env!("CARGO_BIN_EXE_thawfs")
    );
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let source = SourceRequest::new(text(&place.object(&format!("{id}/data.sqsh"))));
    let request = MountRequest::new(source, mountpoint.clone());
    let ready = start_detached(&ServerProgram::at(program), &request).unwrap();
    assert!(mountpoint.join("hello").exists());
    place.bench.ok(&["unmount", text(&mountpoint)]);
    let process = PathBuf::from(format!("/proc/{}", ready.pid));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while process.exists() {
        assert!(std::time::Instant::now() < deadline, "the server is a zombie");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    place.bench.assert_nothing_left();
}

#[test]
fn the_examples_read_an_archive_alone_and_through_a_store_of_their_own() {
    let place = Place::local();
    let tree = place.bench.directory("tree");
    write_tree(&tree);
    let archive = place.bench.path("archive.sqsh");
    let mut pack = Command::new("mksquashfs");
    pack.args([&tree, &archive]).args(["-quiet", "-no-progress"]);
    assert!(pack.status().expect("mksquashfs").success());

    let read = example("read_archive");
    let listed = Command::new(&read).arg(&archive).output().unwrap();
    assert!(listed.status.success());
    let listed = String::from_utf8(listed.stdout).unwrap();
    let files = walkdir::WalkDir::new(&tree).into_iter().count();
    assert_eq!(listed.lines().count(), files, "{listed}");
    let contents = Command::new(&read).arg(&archive).arg("hello").output().unwrap();
    assert_eq!(contents.stdout, std::fs::read(tree.join("hello")).unwrap());
    let refused = Command::new(&read).arg(&archive).arg("nothing").output().unwrap();
    assert!(!refused.status.success() && refused.stdout.is_empty());

    let custom = Command::new(example("custom_store")).arg(&archive).arg("1").output().unwrap();
    assert!(custom.status.success(), "{}", String::from_utf8_lossy(&custom.stderr));
    let said = String::from_utf8(custom.stdout).unwrap();
    // It is small: its two ends, in one round trip, are all of it.
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("opened: 2 requests, "), "{said}");
    assert!(lines[1].starts_with(&format!("listed {files} files: 2 requests, ")), "{said}");
    assert!(lines[2].contains(" bytes of them: 2 requests, "), "{said}");
}
