//! Writing, listing and deleting: one test, run against a bucket and against a directory.

use crate::support::s3::{ACCESS_KEY, Config, Fault, S3Server, SECRET_KEY};
use tempfile::TempDir;
use thawfs::store::{
    Access, Copied, Depth, ETag, Error, Folder, GetRange, MIN_PART_SIZE, Page, Source, Unfinished,
};

struct Backend {
    name: &'static str,
    folder: Folder,
    _root: TempDir,
    server: Option<S3Server>,
}

async fn backends() -> Vec<Backend> {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("bucket")).unwrap();
    let server = S3Server::start(Config { page: 3, ..Config::new(root.path()) }).unwrap();
    let options = Access {
        endpoint: Some(server.url()),
        environment: [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]
            .into_iter()
            .collect(),
        ..Access::default()
    };
    let folder = "s3://bucket/pre fix+é".parse::<Source>().unwrap().folder(&options).await.unwrap();
    let s3 = Backend { name: "s3", folder, _root: root, server: Some(server) };
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("new");
    let source: Source = path.to_str().unwrap().parse().unwrap();
    let folder = source.folder(&Access::default()).await.unwrap();
    vec![s3, Backend { name: "local", folder, _root: root, server: None }]
}

impl Backend {
    fn key(&self, path: &str) -> String {
        self.folder.object(path).key
    }

    /// All pages of a listing, their keys without the folder's prefix.
    async fn list(&self, prefix: &str, depth: Depth) -> (Vec<(String, u64)>, Vec<String>) {
        let (mut objects, mut prefixes, mut next) = (Vec::new(), Vec::new(), None);
        let cut = |key: String| key.strip_prefix(&self.folder.prefix).unwrap().to_owned();
        loop {
            let page: Page =
                self.folder.bucket.list(&self.key(prefix), depth, next.as_deref()).await.unwrap();
            objects.extend(page.objects.into_iter().map(|found| (cut(found.key), found.size)));
            prefixes.extend(page.prefixes.into_iter().map(cut));
            next = page.next;
            if next.is_none() {
                return (objects, prefixes);
            }
        }
    }
}

impl Backend {
    /// All pages of unfinished uploads.
    async fn uploads(&self, prefix: &str) -> Vec<Unfinished> {
        let (mut uploads, mut next) = (Vec::new(), None);
        loop {
            let page = self.folder.bucket.list_uploads(&self.key(prefix), next.as_deref()).await;
            let page = page.unwrap();
            uploads.extend(page.uploads);
            next = page.next;
            if next.is_none() {
                return uploads;
            }
        }
    }
}

#[tokio::test]
async fn objects_come_back_as_they_were_put_and_go_when_deleted() {
    for backend in backends().await {
        let store = &backend.folder.bucket;
        let key = backend.key("backups/a b/meta#?%20+é.json");
        let missing = store.get_whole(&key, 100).await.unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{}: {missing}", backend.name);
        for body in ["first", "", "second"] {
            store.put(&key, body.into()).await.unwrap();
            assert_eq!(store.get_whole(&key, 6).await.unwrap(), body, "{}", backend.name);
        }
        let large = store.get_whole(&key, 5).await.unwrap_err();
        assert!(matches!(large, Error::TooLarge { limit: 5, .. }), "{}: {large}", backend.name);
        store.delete(&key).await.unwrap();
        store.delete(&key).await.unwrap();
        let gone = store.get_range(&key, GetRange::Last(1), None, 1).await.unwrap_err();
        assert!(matches!(gone, Error::NotFound { .. }), "{}: {gone}", backend.name);
        for bad in ["a/../b", "./a"] {
            let error = store.put(bad, "x".into()).await.unwrap_err();
            assert!(matches!(error, Error::UnsupportedSource { .. }), "{}: {error}", backend.name);
        }
    }
}

#[tokio::test]
async fn listings_are_sorted_paged_and_stop_at_the_depth() {
    for backend in backends().await {
        let paths = ["b/1/data", "b/1/meta", "b/2/data", "b/2/meta", "b/3", "b/4", "bc/x", "z"];
        for path in paths {
            let key = backend.key(path);
            backend.folder.bucket.put(&key, path.as_bytes().to_vec().into()).await.unwrap();
        }
        let name = backend.name;
        let sized = |paths: &[&str]| -> Vec<(String, u64)> {
            paths.iter().map(|path| ((*path).to_owned(), path.len() as u64)).collect()
        };
        let (objects, prefixes) = backend.list("", Depth::All).await;
        assert_eq!((objects, prefixes.len()), (sized(&paths), 0), "{name}");
        let (objects, prefixes) = backend.list("b/", Depth::Children).await;
        assert_eq!(objects, sized(&["b/3", "b/4"]), "{name}");
        assert_eq!(prefixes, ["b/1/", "b/2/"], "{name}");
        let (objects, prefixes) = backend.list("b", Depth::Children).await;
        assert_eq!((objects.len(), prefixes), (0, vec!["b/".into(), "bc/".into()]), "{name}");
        let (objects, _) = backend.list("b/1", Depth::All).await;
        assert_eq!(objects, sized(&["b/1/data", "b/1/meta"]), "{name}");
        assert_eq!(backend.list("nothing/", Depth::All).await, (vec![], vec![]), "{name}");
    }
}

#[tokio::test]
async fn an_upload_is_its_parts_in_order_once_it_is_complete() {
    let part_size = MIN_PART_SIZE as usize;
    for backend in backends().await {
        let (store, name) = (&backend.folder.bucket, backend.name);
        let key = backend.key("big/data.sqsh");
        let upload = store.start_upload(&key, MIN_PART_SIZE).await.unwrap();
        let body = |n: u8, len: usize| bytes::Bytes::from(vec![n; len]);
        let last = store.put_part(&upload, 2, body(2, 77)).await.unwrap();
        let first = store.put_part(&upload, 0, body(0, part_size)).await.unwrap();
        let hole = store.complete_upload(&upload, &[first.clone(), last.clone()]).await;
        assert!(matches!(hole, Err(Error::BadOption { .. })), "{name}: {hole:?}");
        let middle = store.put_part(&upload, 1, body(1, part_size)).await.unwrap();
        for (index, len) in [(0, part_size + 1), (0, 0), (10_000, 1)] {
            let error = store.put_part(&upload, index, body(9, len)).await;
            assert!(matches!(error, Err(Error::BadOption { .. })), "{name}: {error:?}");
        }
        assert!(backend.list("big/", Depth::All).await.0.is_empty(), "{name}: too early");
        store.complete_upload(&upload, &[last, middle, first]).await.unwrap();
        let size = (2 * part_size + 77) as u64;
        let listed = backend.list("big/", Depth::All).await.0;
        assert_eq!(listed, [("big/data.sqsh".to_owned(), size)], "{name}");
        let seam = 2 * part_size as u64 - 1;
        let range = GetRange::Between(seam..seam + 2);
        let ranged = store.get_range(&key, range, None, 2).await.unwrap();
        assert_eq!((ranged.pieces.concat(), ranged.size), (vec![1, 2], size), "{name}");
    }
}

#[tokio::test]
async fn an_aborted_upload_leaves_nothing() {
    for backend in backends().await {
        let (store, name) = (&backend.folder.bucket, backend.name);
        let upload = store.start_upload(&backend.key("up/x"), 10).await.unwrap();
        store.put_part(&upload, 0, "123".into()).await.unwrap();
        let unfinished = backend.uploads("up/").await;
        assert_eq!(unfinished.len(), 1, "{name}");
        assert!(unfinished[0].since.unwrap() > chrono::DateTime::UNIX_EPOCH, "{name}");
        assert_eq!(backend.uploads("other/").await.len(), 0, "{name}");
        // What another process left can be aborted by what the listing says.
        store.abort_upload(&unfinished[0].upload).await.unwrap();
        store.abort_upload(&upload).await.unwrap();
        assert_eq!(backend.uploads("").await.len(), 0, "{name}");
        store.abort_upload(&upload).await.unwrap();
        assert!(store.put_part(&upload, 0, "123".into()).await.is_err(), "{name}");
        assert_eq!(backend.list("", Depth::All).await, (vec![], vec![]), "{name}");
    }
}

#[tokio::test]
async fn unfinished_uploads_are_listed_over_pages() {
    for backend in backends().await {
        let (store, name) = (&backend.folder.bucket, backend.name);
        // Two pages and a half of the server's.
        for n in 0..8 {
            store.start_upload(&backend.key(&format!("up/{}", n / 2)), 10).await.unwrap();
        }
        let uploads = backend.uploads("up/").await;
        assert_eq!(uploads.len(), 8, "{name}");
        for unfinished in uploads {
            store.abort_upload(&unfinished.upload).await.unwrap();
        }
        assert_eq!(backend.uploads("").await.len(), 0, "{name}");
    }
}

#[tokio::test]
async fn writes_are_repeated_and_a_completion_whose_answer_was_lost_counts() {
    let backend = backends().await.remove(0);
    let (store, server) = (&backend.folder.bucket, backend.server.as_ref().unwrap());
    let key = backend.key("x.sqsh");
    server.inject(Fault::Refuse(503, "SlowDown"), 2);
    store.put(&key, "body".into()).await.unwrap();
    assert_eq!(store.counters().retries, 2);
    let upload = store.start_upload(&key, 100).await.unwrap();
    let part = store.put_part(&upload, 0, "whole".into()).await.unwrap();
    server.inject(Fault::Truncate(5), 1);
    store.complete_upload(&upload, &[part]).await.unwrap();
    assert_eq!(store.get_whole(&key, 100).await.unwrap(), "whole");
    assert_eq!(store.counters().retries, 3);
}

#[tokio::test]
async fn a_directory_lists_linked_files_and_no_linked_directories() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    std::fs::create_dir(path.join("d")).unwrap();
    std::fs::write(path.join("d/file"), "12345").unwrap();
    std::os::unix::fs::symlink("file", path.join("d/link")).unwrap();
    std::os::unix::fs::symlink("..", path.join("d/circle")).unwrap();
    std::os::unix::fs::symlink("nowhere", path.join("d/dangling")).unwrap();
    let source: Source = path.to_str().unwrap().parse().unwrap();
    let store = source.folder(&Access::default()).await.unwrap().bucket;
    let page = store.list("", Depth::All, None).await.unwrap();
    let keys: Vec<_> = page.objects.iter().map(|found| (found.key.as_str(), found.size)).collect();
    assert_eq!(keys, [("d/file", 5), ("d/link", 5)]);
}

#[tokio::test]
async fn a_part_may_be_copied_of_what_is_there_already() {
    let part = MIN_PART_SIZE;
    for backend in backends().await {
        let (store, name) = (&backend.folder.bucket, backend.name);
        let (from, key) = (backend.key("old (1) é+/data.sqsh"), backend.key("new/data.sqsh"));
        let old: Vec<u8> = (0..2 * part + 99).map(|n| (n / 7 + n) as u8).collect();
        store.put(&from, old.clone().into()).await.unwrap();
        let version = store.get_range(&from, GetRange::Last(1), None, 1).await.unwrap().etag;
        assert!(version.is_some(), "{name}");
        let upload = store.start_upload(&key, part).await.unwrap();
        let copied = |range, version: &Option<ETag>| Copied {
            key: from.clone(),
            range,
            version: version.clone(),
        };
        if let Some(server) = &backend.server {
            server.clear_log();
        }
        // Out of order, from any place, and the last one short.
        let middle = store.copy_part(&upload, 1, &copied(17..17 + part, &version)).await.unwrap();
        let last = store.copy_part(&upload, 2, &copied(2 * part + 98..2 * part + 99, &None)).await;
        let first = store.put_part(&upload, 0, vec![7; part as usize].into()).await.unwrap();
        if let Some(server) = &backend.server {
            let bodies = |seen: &crate::support::s3::Seen| {
                seen.headers
                    .get("content-length")
                    .map_or(0, |len| len.to_str().unwrap().parse().unwrap())
            };
            let sent: u64 = server.log().iter().map(bodies).sum();
            assert_eq!((server.get_bytes(), sent), (0, part), "only what was put passes here");
        }
        for (range, version, what) in [
            (0..part + 1, &version, "too much"),
            (5..5, &version, "nothing"),
            (part + 100..2 * part + 100, &version, "past the end"),
            (0..part, &Some(ETag("\"another\"".into())), "another version"),
        ] {
            let error = store.copy_part(&upload, 3, &copied(range, version)).await.unwrap_err();
            let as_due = match what {
                "another version" => matches!(error, Error::Changed { .. }),
                "past the end" => {
                    matches!(error, Error::OutOfRange { .. } | Error::Refused { .. })
                }
                _ => matches!(error, Error::BadOption { .. }),
            };
            assert!(as_due, "{name}, {what}: {error:?}");
        }
        let missing = Copied { key: backend.key("none"), ..copied(0..part, &None) };
        let error = store.copy_part(&upload, 3, &missing).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{name}: {error:?}");
        store.complete_upload(&upload, &[first, middle, last.unwrap()]).await.unwrap();
        let made = store.get_whole(&key, 3 * part).await.unwrap();
        let mut due = vec![7; part as usize];
        due.extend(&old[17..17 + part as usize]);
        due.push(old[2 * part as usize + 98]);
        assert!(made == due, "{name}: {} bytes", made.len());
        // What was copied from may go.
        store.delete(&from).await.unwrap();
        assert_eq!(store.get_whole(&key, 3 * part).await.unwrap().len(), due.len(), "{name}");
    }
}

#[tokio::test]
async fn a_copy_that_fails_behind_headers_of_success_is_tried_again_or_told() {
    let backend = backends().await.remove(0);
    let store = &backend.folder.bucket;
    let server = backend.server.as_ref().unwrap();
    let (from, key) = (backend.key("old"), backend.key("new"));
    store.put(&from, vec![1; 1000].into()).await.unwrap();
    let upload = store.start_upload(&key, MIN_PART_SIZE).await.unwrap();
    let copied = Copied { key: from, range: 0..1000, version: None };
    let answer = |code: &str| {
        Fault::Answer(format!("<Error><Code>{code}</Code><Message>so</Message></Error>"))
    };
    server.inject(answer("InternalError"), 2);
    store.copy_part(&upload, 0, &copied).await.unwrap();
    server.inject(answer("InvalidRequest"), 1);
    let refused = store.copy_part(&upload, 0, &copied).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
    // A store that knows no copies says so once, and is asked once.
    server.clear_log();
    server.inject(Fault::Refuse(501, "NotImplemented"), 1);
    let refused = store.copy_part(&upload, 0, &copied).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
    assert_eq!(server.log().len(), 1);
    server.inject(Fault::Answer("<html>no</html>".into()), 1);
    let odd = store.copy_part(&upload, 0, &copied).await.unwrap_err();
    assert!(matches!(odd, Error::BadAnswer { .. }), "{odd:?}");
    store.abort_upload(&upload).await.unwrap();
}
