//! What is asked of a server over its control socket, beside its report, and who answers: each question on
//! a thread of its own, and only so many at a time.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::changes::{self, ChangesRequest};
use super::checkpoints::{
    self, CheckpointRequest, Checkpoints, ForgetRequest, ForkRequest, HeldBackRequest, ListRequest,
    PointsRequest, PublishingRequest, RollbackRequest, Target,
};
use super::difference::{self, DifferenceRequest};
use super::layers;
use crate::backup::check_name_length;
use crate::failure::{Code, Failure};
use crate::overlay::Overlay;

/// A question, as a line of JSON: an object of the one member that is its name.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Question {
    /// What differs from the backup.
    Difference(DifferenceRequest),
    /// What differs between two checkpoints.
    Points(PointsRequest),
    /// What changes.
    Changes(ChangesRequest),
    /// Make a checkpoint.
    Checkpoint(CheckpointRequest),
    /// Which checkpoints there are.
    Checkpoints(ListRequest),
    /// Which files are open for writing, of which the kernel may hold something back.
    HeldBack(HeldBackRequest),
    /// Roll back to one.
    Rollback(RollbackRequest),
    /// Forget some.
    Forget(ForgetRequest),
    /// What has become of one in the bucket.
    Publishing(PublishingRequest),
    /// Mount the same once more.
    Fork(Box<ForkRequest>),
}

impl Question {
    /// Refuses what no checkpoint can be called, before it is sent.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] and `Usage` of a new name, [`Code::NotFound`] of another that is longer than any.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let named = match self {
            Self::Checkpoint(request) => return checkpoints::check_given(request.name.as_deref()),
            Self::Rollback(RollbackRequest { to: Target::Point(which), .. }) => [Some(which), None],
            Self::Forget(request) => [request.which.as_ref(), None],
            Self::Fork(request) => [request.at.as_ref(), None],
            Self::Points(request) => [Some(&request.from), request.to.as_ref()],
            _ => return Ok(()),
        };
        let too_long = named.into_iter().flatten().find(|text| check_name_length(text).is_err());
        too_long.map_or(Ok(()), |text| Err(layers::no_such(text)))
    }
}

/// Most that make checkpoints or ask for them at a time; one of them does, and the others wait.
const MAX_CHECKPOINTS: usize = 32;

/// Most that wait for a backup of a checkpoint at a time.
const MAX_WAITING: usize = 128;

/// Places for those who are answered at a time.
struct Places {
    /// Held by each of them, and by us.
    taken: Arc<()>,
    most: usize,
    /// What they are, in words.
    of: &'static str,
}

impl Places {
    fn new(most: usize, of: &'static str) -> Self {
        Self { taken: Arc::default(), most, of }
    }

    fn taken(&self) -> usize {
        Arc::strong_count(&self.taken) - 1
    }

    /// A place, as long as it is held. Asked for by one thread at a time.
    fn take(&self) -> Result<Arc<()>, Failure> {
        if self.taken() < self.most {
            return Ok(Arc::clone(&self.taken));
        }
        let Self { most, of, .. } = self;
        Err(Failure::new(Code::Busy, format!("the server has {most} {of} already")))
    }
}

/// Answers questions about one tree.
pub(super) struct Questions {
    tree: Weak<Overlay>,
    checkpoints: Arc<Checkpoints>,
    checkpointing: Places,
    waiting: Places,
    differences: Places,
    listeners: Places,
}

impl Questions {
    pub(super) fn new(tree: Weak<Overlay>, checkpoints: Arc<Checkpoints>) -> Self {
        Self {
            tree,
            checkpoints,
            checkpointing: Places::new(MAX_CHECKPOINTS, "checkpoints to make or tell of"),
            waiting: Places::new(MAX_WAITING, "backups to wait for"),
            differences: Places::new(difference::MAX_AT_A_TIME, "differences to tell"),
            listeners: Places::new(listeners(), "listeners"),
        }
    }

    /// Answers what was `asked`. Called by one thread.
    ///
    /// # Errors
    /// Where it is no question, or who asks is gone, or there are no more threads.
    pub(super) fn answer(&self, asked: &[u8], connection: UnixStream) -> io::Result<()> {
        // Who reads slowly is in nobody's way: not here, and not there.
        match serde_json::from_slice(asked)? {
            Question::Difference(request) => {
                let place = match self.differences.take() {
                    Ok(place) => place,
                    Err(busy) => return difference::refuse(connection, busy),
                };
                let Some(tree) = self.tree.upgrade() else {
                    let ending = Failure::new(Code::NotMounted, "the mount is ending");
                    return difference::refuse(connection, ending);
                };
                connection.set_write_timeout(None)?;
                on_a_thread("thawfs-difference", place, move || {
                    difference::tell(connection, |sink| {
                        Ok(tree.difference(request.since(), &request.below, sink)?)
                    })
                })
            }
            Question::Points(request) => {
                let place = match self.differences.take() {
                    Ok(place) => place,
                    Err(busy) => return difference::refuse(connection, busy),
                };
                connection.set_write_timeout(None)?;
                let checkpoints = Arc::clone(&self.checkpoints);
                on_a_thread("thawfs-difference", place, move || {
                    difference::tell(connection, |sink| checkpoints.compare(&request, sink))
                })
            }
            Question::Changes(request) => {
                let place = match self.listeners.take() {
                    Ok(place) => place,
                    Err(busy) => return changes::refuse(connection, busy),
                };
                connection.set_write_timeout(None)?;
                let tree = Weak::clone(&self.tree);
                on_a_thread("thawfs-changes", place, move || {
                    changes::tell(&tree, &request, connection)
                })
            }
            question @ (Question::Checkpoint(_)
            | Question::Checkpoints(_)
            | Question::HeldBack(_)
            | Question::Rollback(_)
            | Question::Forget(_)
            | Question::Fork(_)
            | Question::Publishing(_)) => {
                let places = match question {
                    Question::Publishing(_) => &self.waiting,
                    _ => &self.checkpointing,
                };
                let place = match places.take() {
                    Ok(place) => place,
                    Err(busy) => return checkpoints::refuse(connection, busy),
                };
                let checkpoints = Arc::clone(&self.checkpoints);
                on_a_thread("thawfs-checkpoint", place, move || {
                    checkpoints::tell(&checkpoints, &question, connection)
                })
            }
        }
    }
}

/// How many may listen: each takes a descriptor, and most of them are for files that are open.
fn listeners() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let quarter = limit.and_then(|limit| usize::try_from(limit / 4).ok());
    changes::MAX_AT_A_TIME.min(quarter.unwrap_or(usize::MAX))
}

fn on_a_thread(
    name: &str,
    place: Arc<()>,
    tell: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || {
        // A client that went away is its own affair.
        if let Err(error) = tell() {
            tracing::debug!("not told to its end: {error}");
        }
        drop(place);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_written() {
        let odd = || PathBuf::from(OsString::from_vec(b"a/\xff\n".to_vec()));
        for (question, begins) in [
            (
                Question::Difference(DifferenceRequest { below: PathBuf::new(), since: None }),
                r#"{"difference":{"#,
            ),
            (
                Question::Difference(DifferenceRequest { below: odd(), since: Some((-1, 5)) }),
                r#"{"difference":{"#,
            ),
            (
                Question::Points(PointsRequest { below: odd(), from: "x".into(), to: None }),
                r#"{"points":{"#,
            ),
            (
                Question::Changes(ChangesRequest { below: odd(), recursive: true, since: None }),
                r#"{"changes":{"#,
            ),
            (
                Question::Changes(ChangesRequest {
                    below: PathBuf::from("a"),
                    recursive: false,
                    since: Some("x".into()),
                }),
                r#"{"changes":{"#,
            ),
            (
                Question::Checkpoint(CheckpointRequest {
                    name: Some("a\u{7}\"".into()),
                    sync: true,
                    keep: Some(3),
                    publish: None,
                }),
                r#"{"checkpoint":{"#,
            ),
            (Question::Checkpoints(ListRequest {}), r#"{"checkpoints":{"#),
            (
                Question::Rollback(RollbackRequest {
                    to: Target::Point("x".into()),
                    discard: true,
                    strict: false,
                }),
                r#"{"rollback":{"to":{"point":"x"}"#,
            ),
            (
                Question::Rollback(RollbackRequest {
                    to: Target::Archive,
                    discard: false,
                    strict: true,
                }),
                r#"{"rollback":{"to":"archive""#,
            ),
            (Question::Forget(ForgetRequest { which: None, keep: Some(1) }), r#"{"forget":{"#),
        ] {
            let text = serde_json::to_string(&question).unwrap();
            assert!(text.starts_with(begins) && !text.contains('\n'), "{text}");
            assert_eq!(serde_json::from_str::<Question>(&text).unwrap(), question);
        }
    }

    #[test]
    fn what_no_checkpoint_can_be_called_is_refused_before_it_is_sent() {
        let rollback = |which: &str| {
            let to = Target::Point(which.to_owned());
            Question::Rollback(RollbackRequest { to, discard: false, strict: false })
        };
        let forget = |which: &str| {
            Question::Forget(ForgetRequest { which: Some(which.to_owned()), keep: None })
        };
        let points = |from: &str, to: &str| {
            let (from, to) = (from.to_owned(), Some(to.to_owned()));
            Question::Points(PointsRequest { below: PathBuf::new(), from, to })
        };
        let checkpoint = |name: &str| {
            let name = Some(name.to_owned());
            Question::Checkpoint(CheckpointRequest { name, ..CheckpointRequest::default() })
        };
        let (longest, over, huge) = ("ö".repeat(256), "n".repeat(257), "n".repeat(100_000));
        for (question, code) in [
            (rollback(&longest), None),
            (rollback(&over), Some(Code::NotFound)),
            (rollback(&huge), Some(Code::NotFound)),
            (forget(&longest), None),
            (forget(&huge), Some(Code::NotFound)),
            (points("archive", &longest), None),
            (points(&huge, "archive"), Some(Code::NotFound)),
            (points("archive", &huge), Some(Code::NotFound)),
            (checkpoint(&longest), None),
            (checkpoint(&over), Some(Code::InvalidBackupConfig)),
            (checkpoint(&huge), Some(Code::InvalidBackupConfig)),
            (checkpoint("a\u{9b}2J"), Some(Code::InvalidBackupConfig)),
            (checkpoint(""), Some(Code::Usage)),
        ] {
            let refused = question.check().err();
            assert_eq!(refused.as_ref().map(|failure| failure.code), code, "{refused:?}");
            assert!(refused.is_none_or(|failure| failure.message.len() < 200));
        }
    }

    #[test]
    fn only_so_many_places_are_taken_at_a_time() {
        let places = Places::new(2, "listeners");
        let one = places.take().unwrap();
        let _two = places.take().unwrap();
        let busy = places.take().unwrap_err();
        assert_eq!((busy.code, &*busy.message), (Code::Busy, "the server has 2 listeners already"));
        drop(one);
        assert_eq!(places.taken(), 1);
        places.take().unwrap();
    }
}
