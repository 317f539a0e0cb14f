//! What the file service tells of each thing that may be done to files: to who asks again and again and to who reads a
//! stream, of a mount of ours, of which its server tells, and of a plain directory, of which inotify does.

mod cases;

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::files::{Service, read_some, watch_request};
use crate::support::mount::{Bench, can_mount_with, write_tree};
use crate::support::surrounding::{Need, cannot_run};
use crate::support::words::text;
use cases::{Case, cases};

fn prepare(at: &Path) {
    for half in ["w", "out"].map(|half| at.join(half)) {
        fs::create_dir_all(half.join("d")).unwrap();
        fs::create_dir(half.join("e")).unwrap();
        fs::write(half.join("f"), "data").unwrap();
        fs::write(half.join("d/g"), "data").unwrap();
    }
}

/// The last event of each watcher.
const END: &str = "CREATE the-end";

/// What one watcher has been told, each thing as `TYPE NAME`, and no two times in a row: how often data is told depends on how
/// it was written.
#[derive(Default)]
struct Told(Vec<String>);

impl Told {
    fn take(&mut self, event: &Value) {
        let what = event["type"].as_str().unwrap().trim_start_matches("EVENT_TYPE_");
        let line = format!("{what} {}", event["name"].as_str().unwrap());
        if self.0.last() != Some(&line) {
            self.0.push(line);
        }
    }

    fn is_over(&self) -> bool {
        self.0.last().is_some_and(|line| line == END)
    }

    fn lines(mut self) -> String {
        self.0.retain(|line| line != END);
        self.0.join(", ")
    }
}

/// A watcher of either kind.
enum Watcher {
    Asked(Value),
    Stream(TcpStream, Vec<u8>),
}

impl Watcher {
    fn asked(service: &Service, dir: &Path, recursive: bool) -> Self {
        let message = json!({ "path": dir, "recursive": recursive });
        let (status, answer) = service.call("CreateWatcher", &message, &[]);
        assert_eq!(status, 200, "{answer}");
        Self::Asked(answer)
    }

    fn stream(service: &Service, dir: &Path, recursive: bool) -> Self {
        let mut stream = service.connect();
        let message = json!({ "path": dir, "recursive": recursive });
        stream.write_all(&watch_request(&message, &[])).unwrap();
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(r#"{"start":{}}"#) {
            assert!(read_some(&mut stream, &mut text), "{}", String::from_utf8_lossy(&text));
        }
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self::Stream(stream, text)
    }

    /// What has come by now.
    fn read(&mut self, service: &Service, told: &mut Told) {
        match self {
            Self::Asked(watcher) => {
                let (status, answer) = service.call("GetWatcherEvents", watcher, &[]);
                assert_eq!(status, 200, "{answer}");
                answer["events"].as_array().into_iter().flatten().for_each(|it| told.take(it));
            }
            Self::Stream(stream, text) => {
                while read_some(stream, text) {}
                *told = Told::default();
                // Each message is whole in one of the pieces that HTTP makes.
                for part in String::from_utf8_lossy(text).split("{\"filesystem\":").skip(1) {
                    let mut values = serde_json::Deserializer::from_str(part).into_iter::<Value>();
                    if let Some(Ok(event)) = values.next() {
                        told.take(&event);
                    }
                }
            }
        }
    }
}

/// How long nothing has to come for it to be all, where no end can be told.
const QUIET: Duration = Duration::from_millis(400);

/// What all watchers are told of one case: `[recursive, direct]` of who asks, then of streams.
fn told(service: &Service, at: &Path, case: &Case) -> Option<[String; 4]> {
    let dir = at.join("w");
    let mut watchers = [
        Watcher::asked(service, &dir, true),
        Watcher::asked(service, &dir, false),
        Watcher::stream(service, &dir, true),
        Watcher::stream(service, &dir, false),
    ];
    // What is told of it all comes after what was done before.
    match (case.act)(at) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return None,
        done => done.unwrap_or_else(|error| panic!("{}: {error}", case.name)),
    }
    let mut told: [Told; 4] = Default::default();
    let ends = [at.to_owned(), at.with_extension("moved")].map(|at| [at.join("w"), at.join("v")]);
    for end in ends.as_flattened().iter().filter(|end| end.is_dir()) {
        File::create(end.join("the-end")).unwrap();
    }
    let begun = Instant::now();
    let mut changed = Instant::now();
    loop {
        let before: usize = told.iter().map(|told| told.0.len()).sum();
        for (watcher, told) in watchers.iter_mut().zip(&mut told) {
            watcher.read(service, told);
        }
        if told.iter().map(|told| told.0.len()).sum::<usize>() != before {
            changed = Instant::now();
        }
        if told.iter().all(Told::is_over) || changed.elapsed() > QUIET {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", case.name);
    }
    for watcher in &watchers {
        if let Watcher::Asked(watcher) = watcher {
            assert_eq!(service.call("RemoveWatcher", watcher, &[]).0, 200);
        }
    }
    Some(told.map(Told::lines))
}

#[test]
fn each_operation_is_told_as_the_table_has_it() {
    let test = "each_operation_is_told_as_the_table_has_it";
    if cannot_run(test, &[Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    let mut places = vec![("plain", bench.directory("plain"))];
    if can_mount_with(test, &[]) {
        write_tree(&bench.directory("tree"));
        let archive = bench.archive(&bench.path("tree"), "data.sqsh", &["-comp", "zstd"]);
        bench.ok(&["-q", "mount", text(&archive), text(&bench.directory("mnt"))]);
        places.push(("mount", bench.path("mnt")));
    }
    for (_, root) in &places {
        (0..cases().len()).for_each(|number| prepare(&root.join(number.to_string())));
    }
    // What was done before anybody watched is not told once it is on disk.
    std::thread::sleep(Duration::from_secs(1));
    let service = Service::start(&bench, &[]);
    let mut wrong = Vec::new();
    for (place, root) in &places {
        for (number, case) in cases().iter().enumerate() {
            let Some(told) = told(&service, &root.join(number.to_string()), case) else { continue };
            let expected = match case.plain {
                Some(plain) if *place == "plain" => plain,
                _ => (case.recursive, case.direct),
            };
            let expected = [expected.0, expected.1, expected.0, expected.1];
            let is_right = |(told, expected): (&String, &str)| {
                // What need not be told.
                let without = expected.split(", ").filter(|it| !it.ends_with('?'));
                *told == expected.replace('?', "")
                    || *told == without.collect::<Vec<_>>().join(", ")
            };
            if !told.iter().zip(expected).all(is_right) {
                wrong.push(format!("{}, {place}:\n  {expected:?}\n  {told:?}", case.name));
            }
        }
    }
    drop(service);
    if places.len() > 1 {
        bench.ok(&["unmount", text(&bench.path("mnt"))]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
