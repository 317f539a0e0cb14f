//! The backups of a bucket: one test, run against a real S3 server and against a local directory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::support::mount::write_tree;
use crate::support::place::Place;
use crate::support::s3::{Fault, Seen};
use serde_json::{Value, json};

/// A backup of 100 bytes, made so long ago.
fn backup(place: &Place, number: u32, dir: &str, age: Duration, ttl: u64) -> String {
    let id = id(number);
    place.put(&format!("{id}/data.sqsh"), [0; 100]);
    place.put(&format!("{id}/meta.json"), metadata(&id, dir, age, ttl));
    id
}

fn id(number: u32) -> String {
    format!("{number:08x}-1111-4222-8333-444444444444")
}

fn metadata(id: &str, dir: &str, age: Duration, ttl: u64) -> String {
    let created = chrono::DateTime::<chrono::Utc>::from(SystemTime::now() - age);
    json!({
        "id": id, "dir": dir, "name": "a\u{1b}[name", "sizeBytes": 100, "ttl": ttl,
        "createdAt": created.to_rfc3339_opts(chrono::SecondsFormat::Millis, true), "later": [],
    })
    .to_string()
}

const HOUR: Duration = Duration::from_secs(3600);
const WEEK: u64 = 604_800;

/// Exit code, as docs/CONFIGURATION.md lists it.
const NETWORK: i32 = 8;

/// Bytes that nothing makes fewer.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

#[test]
fn a_listing_tells_the_state_of_every_backup() {
    for place in Place::both() {
        backup(&place, 1, "/w", HOUR, WEEK);
        backup(&place, 2, "/w/", HOUR, 3600);
        place.put(&format!("{}/data.sqsh", id(3)), "orphan");
        place.put(&format!("{}/meta.json", id(4)), metadata(&id(4), "/x", HOUR, WEEK));
        backup(&place, 5, "/w", HOUR, WEEK);
        place.put(&format!("{}/meta.json", id(5)), "{\"id\":");
        backup(&place, 6, "/w", HOUR, WEEK);
        place.put(&format!("{}/data.sqsh", id(6)), "cut");
        place.put(&format!("{}.tar.zst", id(7)), "tar");
        backup(&place, 8, "/w", HOUR, WEEK);
        place.put(&format!("{}/meta.json", id(8)), metadata(&id(9), "/w", HOUR, WEEK));
        backup(&place, 9, "/w", HOUR, WEEK);
        place.put(&format!("{}/meta.json", id(9)), vec![b' '; 100_000]);
        place.put("readme/data.sqsh", "no backup");
        place.put(&format!("{}x/meta.json", id(1)), "no backup");

        let (code, listed) = place.json(&["list"]);
        assert_eq!(code, 0, "{}: {listed:?}", place.name);
        let states: Vec<_> = listed
            .iter()
            .map(|entry| (entry["id"].as_str().unwrap(), entry["state"].as_str().unwrap()))
            .collect();
        let expected = [
            (1, "ok"),
            (2, "expired"),
            (3, "orphan-archive"),
            (4, "orphan-metadata"),
            (5, "damaged-metadata"),
            (6, "damaged-archive"),
            (7, "unsupported"),
            (8, "damaged-metadata"),
            (9, "damaged-metadata"),
        ]
        .map(|(number, state)| (id(number), state));
        let expected: Vec<_> = expected.iter().map(|(id, state)| (id.as_str(), *state)).collect();
        assert_eq!(states, expected, "{}", place.name);
        assert_eq!(listed[0]["dir"], "/w");
        assert_eq!(listed[0]["archiveBytes"], 100);
        assert_eq!(listed[2]["dir"], Value::Null);
        assert_eq!(listed[5]["problem"], "the archive has 3 bytes, not 100");
        assert!(listed[7]["problem"].as_str().unwrap().contains(&id(9)));

        // A directory is the same with and without a slash at its end.
        let (_, listed) = place.json(&["list", "--dir", "/w"]);
        let found: Vec<_> = listed.iter().map(|entry| entry["id"].as_str().unwrap()).collect();
        assert_eq!(found, [id(1), id(2), id(6)], "{}", place.name);

        let table = String::from_utf8(place.run(&["list", "--dir", "/w"]).stdout).unwrap();
        let line = table.lines().find(|line| line.starts_with(&id(1))).unwrap();
        for word in ["100 B", "in 6 d", " ok ", "/w", "a\\u{1b}[name"] {
            assert!(line.contains(word), "{line}");
        }
        assert!(!table.contains('\x1b'), "{table}");
    }
}

#[test]
fn thousands_of_backups_are_listed_page_by_page() {
    let latency = Duration::from_millis(20);
    let place = Place::s3_as(|config| config.latency = latency);
    for number in 0..1250 {
        backup(&place, number, "/w", HOUR, WEEK);
    }
    // An object more, so that the end of a page lies within a backup.
    place.put(&format!("{}/access.trace", id(3)), "ours");
    let (code, listed) = place.json(&["list"]);
    assert_eq!(code, 0);
    let ids: Vec<_> = listed.iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(ids, (0..1250).map(id).collect::<Vec<_>>());
    assert!(listed.iter().all(|entry| entry["state"] == "ok"));
    let log = place.server.as_ref().unwrap().log();
    let pages = log.iter().filter(|seen| seen.query.contains("list-type")).count();
    assert_eq!((pages, log.len()), (3, 3 + 1250));
    // Not one after the other, and not all at once.
    let most = place.server.as_ref().unwrap().most_at_once();
    assert!((8..=64).contains(&most), "{most} at once");
}

/// Runs a command that must come to an end by itself, and fail. Gives what it says.
fn refused(place: &Place, arguments: &[&str]) -> String {
    use std::process::Stdio;
    let mut command = place.thawfs();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    let started = Instant::now();
    while running.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(30) {
            running.kill().unwrap();
            panic!("{arguments:?} goes on for ever");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = running.wait_with_output().unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_listing_that_comes_back_to_a_page_is_an_error() {
    let place = Place::s3_as(|config| {
        config.page = 4;
        config.forgets_pages = true;
    });
    for number in 0..5 {
        backup(&place, number, "/w", 40 * 24 * HOUR, WEEK);
    }
    for upload in 0..6 {
        let dir = place.bench.directory(&format!("buckets/.uploads/{upload}"));
        fs::write(dir.join("target"), format!("box\npre/backups/{}/data.sqsh", id(7))).unwrap();
        Place::age(&dir.join("target"), 48 * HOUR);
    }
    let before = place.keys();
    for arguments in [
        &["list"][..],
        &["prune", "--keep-last", "3"],
        &["prune", "--orphans"],
        // Aborting would change what the first page is, and so come to an end.
        &["prune", "--uploads", "--dry-run"],
    ] {
        let said = refused(&place, arguments);
        assert!(said.contains("comes back to where it was"), "{arguments:?}: {said}");
        assert_eq!(place.keys(), before, "{arguments:?}");
    }
    // One of the middle again, whose first page was all right.
    let pages = place.server.as_ref().unwrap().log();
    let pages = pages.iter().filter(|seen| seen.query.contains("list-type")).count();
    assert_eq!(pages, 3 * 2);
}

/// A page of a listing, which goes on at `next`.
fn page(keys: &[String], next: &str) -> String {
    let keys: String = keys
        .iter()
        .map(|key| format!("<Contents><Key>pre/backups/{key}</Key><Size>1</Size></Contents>"))
        .collect();
    format!(
        "<ListBucketResult><IsTruncated>true</IsTruncated>{keys}\
         <NextContinuationToken>{next}</NextContinuationToken></ListBucketResult>"
    )
}

#[test]
fn a_listing_that_does_not_advance_is_an_error() {
    let place = Place::s3();
    let server = place.server.as_ref().unwrap();
    backup(&place, 1, "/w", 40 * 24 * HOUR, WEEK);
    let before = place.keys();
    let key = |number| format!("{}/data.sqsh", id(number));
    type Pages = fn(u32) -> Vec<u32>;
    for (name, pages, said) in [
        ("the same again", (|_| vec![5]) as Pages, "does not advance"),
        ("back and on", |page| vec![[5, 4, 6][page as usize % 3]], "does not advance"),
        ("backwards", |page| vec![5000 - page], "does not advance"),
        ("nothing", |_| vec![], "nothing on page after page"),
    ] {
        for arguments in [&["list"][..], &["prune", "--keep-last", "1"], &["prune", "--orphans"]] {
            for number in 0..1200 {
                let keys: Vec<_> = pages(number).into_iter().map(key).collect();
                server.inject(Fault::Answer(page(&keys, &format!("t{number}"))), 1);
            }
            let told = refused(&place, arguments);
            assert!(told.contains(said), "{name}, {arguments:?}: {told}");
            server.heal();
            assert_eq!(place.keys(), before, "{name}, {arguments:?}");
        }
    }
    // Empty pages that lead somewhere are as good as none.
    for number in 0..50 {
        server.inject(Fault::Answer(page(&[], &format!("a{number}"))), 1);
    }
    let (code, listed) = place.json(&["list"]);
    assert_eq!((code, listed.len()), (0, 1), "{listed:?}");
    let upload = "<Upload><Key>pre/backups/x</Key><UploadId>u</UploadId></Upload>";
    for number in 0..1200 {
        server.inject(
            Fault::Answer(format!(
                "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>{upload}\
                 <NextKeyMarker>pre/backups/x{number}</NextKeyMarker></ListMultipartUploadsResult>"
            )),
            1,
        );
    }
    let told = refused(&place, &["prune", "--uploads"]);
    server.heal();
    assert!(told.contains("does not advance"), "{told}");
}

#[test]
fn an_answer_that_is_no_listing_is_not_an_empty_bucket() {
    let place = Place::s3();
    let server = place.server.as_ref().unwrap();
    let id = backup(&place, 1, "/w", 40 * 24 * HOUR, WEEK);
    let before = place.keys();
    let long = "x".repeat(500);
    for (answer, came) in [
        ("<html><body>Log in</body></html>", "and is \"<html><body>Log in"),
        ("<!DOCTYPE html>\n<html><br></html>", "and is \"<!DOCTYPE html> <html>"),
        ("", "and is nothing"),
        (" \n", "and is nothing"),
        ("{\"Contents\":[]}", "and is \"{"),
        ("<Error><Code>Odd</Code></Error>", "and is \"<Error><Code>Odd"),
        ("<Result/>", "and is \"<Result/>\""),
        ("<ListBucketResult", "and is \"<ListBucketResult\""),
        ("<ListBucketResult><IsTruncated>false</IsTruncated>", ""),
        ("<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>", ""),
        (&long, "xxx\"…"),
    ] {
        for arguments in [
            &["list"][..],
            &["prune", "--keep-last", "1"],
            &["prune", "--orphans"],
            &["prune", "--uploads"],
            &["delete", &id],
        ] {
            server.inject(Fault::Answer(answer.into()), usize::MAX);
            let (code, told) = place.json(arguments);
            server.heal();
            assert_eq!(code, NETWORK, "{answer:?}, {arguments:?}: {told:?}");
            let message = told.last().unwrap()["message"].as_str().unwrap();
            assert_eq!(told.last().unwrap()["code"], "NETWORK", "{told:?}");
            assert!(message.contains("makes no sense"), "{answer:?}, {arguments:?}: {message}");
            // An unfinished answer is that of another sort to a listing of uploads.
            if arguments != ["prune", "--uploads"] {
                assert!(message.contains(came), "{answer:?}, {arguments:?}: {message}");
            }
            assert!(message.len() < 400, "{message}");
            assert_eq!(place.keys(), before, "{answer:?}, {arguments:?}");
        }
    }
}

#[test]
fn an_upload_is_neither_begun_nor_ended_by_an_answer_of_another_sort() {
    let place = Place::s3();
    let server = place.server.as_ref().unwrap();
    let tree = place.bench.directory("tree");
    fs::write(tree.join("noise"), noise(12 << 20)).unwrap();
    let create = || place.json(&["create", tree.to_str().unwrap()]);
    for query in ["uploads", "uploadId="] {
        server.clear_log();
        assert_eq!(create().0, 0);
        let is_it = |seen: &Seen| seen.method == "POST" && seen.query.contains(query);
        let before = server.log().iter().position(is_it).expect("an upload in parts");
        for key in place.keys() {
            fs::remove_file(place.object(&key)).unwrap();
        }
        if before > 0 {
            server.inject(Fault::Delay(Duration::ZERO), before);
        }
        server.inject(Fault::Answer("<html>Log in</html>".into()), 1);
        let (code, told) = create();
        server.heal();
        assert_ne!(code, 0, "{query}: {told:?}");
        let message = told.last().unwrap()["message"].as_str().unwrap();
        assert!(message.contains("<html>"), "{query}: {message}");
        assert_eq!(place.keys(), Vec::<String>::new(), "{query}");
    }
}

#[test]
fn what_the_sdk_restores_is_read_whatever_else_its_metadata_says() {
    let rest = |more: &str| {
        let created = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        format!(r#"{{"id":"{}","dir":"/w","createdAt":"{created}"{more}}}"#, id(1))
    };
    let size = r#","sizeBytes":100"#;
    let table = [
        (format!(r#"{size},"ttl":3600"#), "ok"),
        (format!(r#"{size},"ttl":3600.5"#), "ok"),
        (format!(r#"{size},"ttl":0.5"#), "expired"),
        (format!(r#"{size},"ttl":60"#), "expired"),
        (format!(r#"{size},"ttl":1e300"#), "ok"),
        (format!(r#"{size},"ttl":9007199254740993"#), "ok"),
        (format!(r#"{size},"ttl":18446744073709551616"#), "ok"),
        (format!(r#"{size},"ttl":0"#), "expired"),
        (r#","ttl":3600"#.into(), "ok"),
        (r#","ttl":3600,"sizeBytes":0"#.into(), "ok"),
        (r#","ttl":3600,"sizeBytes":null"#.into(), "ok"),
        (r#","ttl":3600,"sizeBytes":"100""#.into(), "ok"),
        (r#","ttl":3600,"sizeBytes":100.0"#.into(), "ok"),
        (r#","ttl":3600,"sizeBytes":99"#.into(), "damaged-archive"),
        (r#","ttl":3600,"name":null,"localBucket":true,"later":{"a":[1]}"#.into(), "ok"),
        (format!(r#"{size},"ttl":-1"#), "damaged-metadata"),
        (format!(r#"{size},"ttl":"long""#), "damaged-metadata"),
        (size.into(), "damaged-metadata"),
    ];
    for place in Place::both() {
        let tree = place.bench.directory("tree");
        write_tree(&tree);
        let archive = fs::read(place.bench.archive(&tree, "some.sqsh", &[])).unwrap();
        for (more, state) in &table {
            let text = rest(more);
            place.put(&format!("{}/data.sqsh", id(1)), [0; 100]);
            place.put(&format!("{}/meta.json", id(1)), &text);
            let (code, listed) = place.json(&["list"]);
            assert_eq!(code, 0, "{text}");
            assert_eq!(listed[0]["state"], *state, "{}, {text}: {listed:?}", place.name);
            // What restore looks at: a real archive, whose size the metadata may not know.
            place.put(&format!("{}/data.sqsh", id(1)), &archive);
            let target = place.bench.path("restored");
            let handle = format!(r#"{{"id":"{}","dir":"/w","localBucket":true}}"#, id(1));
            let file = place.bench.path("handle.json");
            fs::write(&file, handle).unwrap();
            let (code, told) = place.json(&[
                "restore",
                file.to_str().unwrap(),
                target.to_str().unwrap(),
                "--extract",
            ]);
            let restores = ["ok", "damaged-archive"].contains(state);
            assert_eq!(code == 0, restores, "{}, {text}: {told:?}", place.name);
            assert_eq!(target.join("hello").exists(), restores, "{}, {text}", place.name);
            let _ = fs::remove_dir_all(&target);
        }
    }
}

#[test]
fn deleting_takes_the_metadata_first_and_nothing_else() {
    for place in Place::both() {
        let (one, other) =
            (backup(&place, 1, "/w", HOUR, WEEK), backup(&place, 2, "/w", HOUR, WEEK));
        place.put(&format!("{one}/access.trace"), "ours");
        place.put(&format!("{one}/zz/deep"), "ours");
        let before = place.keys();
        let (code, told) = place.json(&["delete", "--dry-run", &one]);
        assert_eq!(
            (code, told[0]["objects"].as_u64(), told[0]["dryRun"].as_bool()),
            (0, Some(4), Some(true))
        );
        assert_eq!(place.keys(), before, "{}: a dry run", place.name);

        let (nobody, upper) = (id(77), other.to_uppercase());
        let (code, told) = place.json(&["delete", &one, &nobody, &upper]);
        assert_eq!(code, 16, "{told:?}");
        assert_eq!(told[0]["id"], one.as_str());
        assert_eq!(told[1]["id"], other.as_str());
        assert_eq!(told[2]["code"], "BACKUP_NOT_FOUND");
        assert!(told[2]["message"].as_str().unwrap().contains(&nobody));
        assert_eq!(place.keys(), Vec::<String>::new(), "{}", place.name);
        if let Some(server) = &place.server {
            let log = server.log();
            let deleted: Vec<_> = log.iter().filter(|seen| seen.method == "DELETE").collect();
            assert!(deleted[0].path.ends_with(&format!("{one}/meta.json")), "{}", deleted[0].path);
        } else {
            assert!(!place.object(&other).exists(), "an empty directory is left");
        }

        // Nothing happens where one of the ids is none.
        backup(&place, 1, "/w", HOUR, WEEK);
        let (code, told) = place.json(&["delete", &one, &one[..8]]);
        assert_eq!((code, told[0]["code"].as_str()), (15, Some("INVALID_BACKUP_CONFIG")));
        assert_eq!(place.keys().len(), 2);
    }
}

#[test]
fn pruning_deletes_what_the_rules_say_and_counts_it() {
    let day = 24 * HOUR;
    for place in Place::both() {
        for (number, dir, age, ttl) in
            [(1, "/a", 9, 1), (2, "/a", 5, 30), (3, "/a", 1, 30), (4, "/b", 8, 30), (5, "/b", 3, 1)]
        {
            backup(&place, number, dir, day * age, ttl * 86_400);
        }
        for (number, age) in [(6, 23), (7, 25)] {
            let path = format!("{}/data.sqsh", id(number));
            place.put(&path, "orphan");
            Place::age(&place.object(&path), HOUR * age);
        }
        let (code, told) = place.json(&["prune", "--expired", "--keep-last", "1", "--dry-run"]);
        assert_eq!((code, told[0]["id"].as_str()), (0, Some(id(1).as_str())), "{told:?}");
        let bytes = told[0]["totalBytes"].as_u64().unwrap();
        let summary = json!({"backups": 1, "bytes": bytes, "uploads": 0, "dryRun": true});
        assert_eq!(told[1], summary);
        assert!(bytes > 100);
        assert_eq!(place.keys().len(), 12, "{}: a dry run", place.name);

        for (rules, gone, left) in [
            (&["--orphans"][..], &[7][..], 11),
            (&["--expired"], &[1, 5], 7),
            (&["--older-than", "6d", "--keep-last", "1"], &[], 7),
            (&["--older-than", "6d"], &[4], 5),
            (&["--keep-last", "1"], &[2], 3),
        ] {
            let (code, mut told) = place.json(&[&["prune"], rules].concat());
            let summary = told.pop().unwrap();
            let mut found: Vec<_> =
                told.iter().map(|told| told["id"].as_str().unwrap().to_owned()).collect();
            found.sort();
            let gone: Vec<_> = gone.iter().map(|number| id(*number)).collect();
            assert_eq!((code, found), (0, gone), "{}: {rules:?}", place.name);
            assert_eq!(summary["backups"], told.len());
            assert_eq!(place.keys().len(), left, "{}: {rules:?}", place.name);
        }
        assert_eq!(place.json(&["prune"]).0, 2, "no rule");
    }
}

#[test]
fn only_uploads_of_another_day_are_aborted() {
    for place in Place::both() {
        // As an interrupted program leaves them.
        let (old, young) = match &place.server {
            Some(_) => {
                let upload = |number: u32| {
                    let directory = place.bench.directory(&format!("buckets/.uploads/{number}"));
                    let key = format!("box\npre/backups/{}/data.sqsh", id(number));
                    fs::write(directory.join("target"), key).unwrap();
                    directory.join("target")
                };
                (upload(1), upload(2))
            }
            None => {
                let upload = |number: u32| {
                    let name = format!("{}/.thawfs-unfinished-{number}-0", id(number));
                    place.put(&name, "part");
                    place.object(&name)
                };
                (upload(1), upload(2))
            }
        };
        Place::age(&old, 25 * HOUR);
        Place::age(&young, 23 * HOUR);
        let (code, told) = place.json(&["prune", "--uploads", "-n"]);
        assert_eq!((code, told[1]["uploads"].as_u64()), (0, Some(1)), "{told:?}");
        assert!(told[0]["upload"].as_str().unwrap().contains(&id(1)), "{told:?}");
        assert!(old.exists(), "{}: a dry run", place.name);
        let said = String::from_utf8(place.run(&["prune", "--uploads"]).stdout).unwrap();
        assert!(said.contains("1 unfinished uploads aborted"), "{said}");
        assert!(!old.exists() && young.exists(), "{}", place.name);
        // Unfinished uploads are no backups.
        assert_eq!(place.json(&["list"]).1, Vec::<Value>::new(), "{}", place.name);
    }
}

#[test]
fn showing_a_backup_says_what_it_is_or_what_is_missing() {
    for place in Place::both() {
        let tree = place.bench.directory("tree");
        write_tree(&tree);
        let packed =
            fs::read(place.bench.archive(&tree, "packed.sqsh", &["-comp", "lz4"])).unwrap();
        let id_1 = backup(&place, 1, "/w", HOUR, WEEK);
        place.put(&format!("{id_1}/data.sqsh"), &packed);
        let text = metadata(&id_1, "/w", HOUR, WEEK).replace("100", &packed.len().to_string());
        place.put(&format!("{id_1}/meta.json"), text);
        let output = place.run(&["show", "--json", &id_1]);
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&shown["state"], &shown["dir"]), (&json!("ok"), &json!("/w")), "{shown}");
        assert_eq!(shown["archive"]["compressor"], "lz4");
        let text = String::from_utf8(place.run(&["show", &id_1]).stdout).unwrap();
        for word in ["/w", "lz4", "ok", "in 6 d"] {
            assert!(text.contains(word), "{text}");
        }

        // An archive that is none is a finding, not a failure.
        let id_2 = backup(&place, 2, "/w", HOUR, WEEK);
        let shown: Value =
            serde_json::from_slice(&place.run(&["show", "--json", &id_2]).stdout).unwrap();
        assert!(shown["problem"].as_str().unwrap().contains("not a squashfs archive"), "{shown}");

        let (code, told) = place.json(&["show", &id(3)]);
        assert_eq!((code, told[0]["code"].as_str()), (16, Some("BACKUP_NOT_FOUND")));
        assert_eq!(place.json(&["show", "3"]).0, 15);
    }
}

#[test]
fn the_bucket_is_named_once() {
    let place = Place::local();
    backup(&place, 1, "/w", HOUR, WEEK);
    let listed = |settings: &[(&str, &Path)], arguments: &[&str]| {
        let mut command = place.bench.thawfs();
        for (name, value) in settings {
            command.env(name, value);
        }
        let output = command.arg("list").arg("--quiet").args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let config = place.bench.path(".config/thawfs/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    assert_eq!(listed(&[], &[]), (0, String::new()), "the default directory is not there yet");
    fs::write(&config, format!("bucket = \"{}\"\n", place.url)).unwrap();
    let (code, text) = listed(&[], &[]);
    assert!(code == 0 && text.starts_with(&id(1)), "from the file: {text}");
    // The variable goes before the file, the option before the variable.
    let empty = place.bench.directory("empty");
    assert_eq!(listed(&[("THAWFS_BUCKET", &empty)], &[]), (0, String::new()));
    let (_, text) = listed(&[("THAWFS_BUCKET", &empty)], &["--bucket", &place.url]);
    assert!(text.starts_with(&id(1)), "{text}");
    assert_eq!(listed(&[("XDG_CONFIG_HOME", &empty)], &[]), (0, String::new()));
    // Without a name, backups are in the home directory.
    let data = place.bench.path(".local/share");
    fs::create_dir_all(&data).unwrap();
    std::os::unix::fs::symlink(&place.root, data.join("thawfs")).unwrap();
    fs::remove_file(&config).unwrap();
    assert!(listed(&[], &[]).1.starts_with(&id(1)));
    assert_eq!(listed(&[("XDG_DATA_HOME", &empty)], &[]), (0, String::new()));

    fs::write(&config, "\nbuckets = \"s3://b\"\n").unwrap();
    let (code, text) = listed(&[], &[]);
    let place = format!("{}:2: unknown field `buckets`", config.display());
    assert!(code == 15 && text.contains(&place), "{code} {text}");
}

#[tokio::test]
async fn the_library_says_what_is_missing() {
    use thawfs::backup::{Backups, BucketRequest};
    use thawfs::failure::Code;
    let place = Place::local();
    let backups = Backups::open(&BucketRequest::new(place.url.as_str())).await.unwrap();
    backup(&place, 1, "/w", HOUR, WEEK);
    place.put(&format!("{}/data.sqsh", id(2)), "orphan");
    place.put(&format!("{}/data.tar.zst", id(3)), "tar");
    place.put(&format!("{}/data.sqsh", id(4)), "x");
    place.put(&format!("{}/meta.json", id(4)), "{}");
    let metadata = backups.metadata(&id(1).parse().unwrap()).await.unwrap();
    assert_eq!((metadata.dir.as_str(), metadata.size_bytes), ("/w", 100));
    for (number, code, words) in [
        (2, Code::BackupNotFound, "metadata of backup"),
        (3, Code::Unsupported, "is a tar archive"),
        (4, Code::Corrupt, "missing field"),
        (5, Code::BackupNotFound, "there is no backup"),
    ] {
        let failure = backups.metadata(&id(number).parse().unwrap()).await.unwrap_err();
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
    }
}
