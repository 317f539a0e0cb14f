//! What the kernel has no room for, and trees near that.

use super::storm::{Replica, walk};
use super::*;

fn limit(name: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).unwrap();
    text.trim().parse().unwrap()
}

/// Makes `count` directories in `dir`, a hundred in each of others, and gives one of the last.
fn plant(dir: &Path, count: usize) -> PathBuf {
    let mut last = dir.to_owned();
    for at in 0..count {
        if at % 101 == 0 {
            last = dir.join(format!("d{at}"));
            fs::create_dir(&last).unwrap();
        } else {
            fs::create_dir(last.join(format!("d{at}"))).unwrap();
        }
    }
    last
}

/// As many directories as are wanted, or as the kernel lets this user watch.
fn at_most(wanted: usize) -> usize {
    wanted.min(limit("max_user_watches") / 2)
}

/// Kilobytes of memory that this process has.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Reads until nothing more will come, and says why that is.
fn closed(watched: &mut Watched) -> Arc<str> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        watched.reader.read(1000);
        if let Some(why) = watched.reader.closed() {
            return why;
        }
        assert!(Instant::now() < end, "nothing says that something is missing");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn events_that_the_kernel_has_no_room_for_end_every_watch() {
    let mut watched = Watched::after(true, |dir| fs::create_dir(dir.join("d")).unwrap());
    let mut other = Watched::after(false, |_| {});
    assert_eq!((watched.told(), other.told()), (vec![], vec![]));
    let hub = Hub::get().unwrap();
    let stopped = hub.stop_reading();
    for _ in 0..limit("max_queued_events") / 2 + 1 {
        // Two events alike, one right after the other, would be one.
        fs::create_dir(watched.path("d/x")).unwrap();
        fs::remove_dir(watched.path("d/x")).unwrap();
    }
    fs::write(watched.path("d/missing"), "").unwrap();
    drop(stopped);
    for watched in [&mut watched, &mut other] {
        let why = closed(watched);
        assert!(why.contains("max_queued_events"), "{why}");
    }
    // Whoever watches from then on has a watch of its own.
    let (tree, reader) = watch(watched.dir.path(), true).unwrap();
    (watched._tree, watched.reader) = (tree, reader);
    fs::write(watched.path("d/y"), "").unwrap();
    assert_eq!(watched.told(), ["create d/y"]);
}

#[test]
fn fifty_thousand_directories_are_watched_to_the_last() {
    let count = at_most(50_000);
    let dir = tempfile::tempdir().unwrap();
    let last = plant(dir.path(), count);
    let before = resident();
    let begun = Instant::now();
    let (tree, reader) = watch(dir.path(), true).unwrap();
    println!("{count} directories: {:?}, {} KiB", begun.elapsed(), resident() - before);
    let mut watched = Watched { dir, _tree: tree, reader };
    fs::write(last.join("f"), "").unwrap();
    let name = last.strip_prefix(watched.dir.path()).unwrap().to_str().unwrap().to_owned();
    assert_eq!(watched.told(), [format!("create {name}/f")]);
    // All that goes is told, or that some of it could not be.
    let mut replica = Replica(walk(watched.dir.path()));
    for entry in fs::read_dir(watched.dir.path()).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    let root = watched.dir.path().to_owned();
    let closed = replica.meet(&root, &mut watched.reader, &mut Vec::new());
    println!("removed: {closed:?}");
}

#[test]
fn a_large_tree_that_goes_or_comes_leaves_others_watched() {
    // Each watch that ends leaves an event behind.
    let count = at_most(limit("max_queued_events") * 5 / 4);
    let outside = tempfile::tempdir().unwrap();
    let mut watched = Watched::after(true, |dir| {
        fs::create_dir(dir.join("big")).unwrap();
        plant(&dir.join("big"), count);
    });
    let mut other = Watched::after(true, |_| {});
    let mut replica = Replica(walk(watched.dir.path()));
    let mut changes = Vec::new();
    let (here, there) = (watched.path("big"), outside.path().join("big"));
    for (from, to) in [(&here, &there), (&there, &here)] {
        fs::rename(from, to).unwrap();
        let root = watched.dir.path().to_owned();
        let closed = replica.meet(&root, &mut watched.reader, &mut changes);
        assert_eq!(closed, None);
    }
    // And one whose own directory is moved is given up whole.
    let moved = watched.path("big");
    let (tree, reader) = watch(&moved, true).unwrap();
    fs::rename(&moved, watched.path("moved")).unwrap();
    other.told();
    drop((tree, reader));
    fs::write(other.path("x"), "").unwrap();
    assert_eq!(other.told(), ["create x"]);
}

#[test]
fn a_tree_whose_path_leads_nowhere_is_told_so_when_that_matters() {
    let mut watched = Watched::after(true, |dir| fs::create_dir_all(dir.join("a/root")).unwrap());
    let root = watched.path("a/root");
    (watched._tree, watched.reader) = watch(&root, true).unwrap();
    fs::rename(watched.path("a"), watched.path("b")).unwrap();
    // Nothing tells of that, and nothing has to.
    fs::write(watched.path("b/root/x"), "").unwrap();
    assert_eq!(watched.told(), ["create x"]);
    fs::create_dir(watched.path("b/root/new")).unwrap();
    let why = closed(&mut watched);
    assert!(why.contains("no longer watched whole"), "{why}");
}
