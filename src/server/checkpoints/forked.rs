//! A second mount over the same layers.
//!
//! Its server is started by the one of the mount that is forked: that has what it takes to read the archive, where a
//! command may not have it any more, and knows which version of it that is.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::detach::Starting;
use super::super::program::ServerProgram;
use super::super::request::{MountRequest, Ready};
use super::{CheckpointRequest, Checkpoints};
use crate::backup::{BackupId, SourceRequest};
use crate::failure::{Code, Failure};
use crate::overlay;

/// Fork a mount.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForkRequest {
    /// At which checkpoint; else at what it is now.
    pub(crate) at: Option<String>,
    /// How and where the fork is to be mounted; its source is that of the mount.
    pub(crate) mount: MountRequest,
}

/// What was forked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forked {
    /// The checkpoint that it lies on.
    pub(crate) id: BackupId,
    pub(crate) name: Option<String>,
    pub(crate) ready: Ready,
}

impl Checkpoints {
    pub(super) fn fork(&self, request: &ForkRequest) -> Result<Forked, Failure> {
        // It is slow to make files on a file system that is just being synced.
        let _at_rest = self.background_for("fork")?.rest();
        let (at, is_new) = match &request.at {
            Some(at) => (at.clone(), false),
            None => {
                let asked = CheckpointRequest::default();
                let made = self.checkpoint_for(&asked, true).map_err(|failure| {
                    let message = failure.message.replacen("cannot checkpoint", "cannot fork", 1);
                    Failure { message, ..failure }
                })?;
                (made.id.to_string(), true)
            }
        };
        let (tree, mut layers) = self.begin("fork")?;
        let shown = self.mountpoint.display();
        let point = layers.manifest().find(&at)?.clone();
        let chain = layers.manifest().chain(Some(point.serial));
        tree.share(&chain).map_err(|error| {
            let because = match error {
                overlay::Error::Refused(Errno::TXTBSY) => {
                    "a program still writes to what was rolled away"
                }
                overlay::Error::Refused(Errno::BUSY) => {
                    "files that are open could not be copied; try again"
                }
                error => {
                    let failure = Failure::from(error);
                    let message = format!("cannot fork {shown}: {}", failure.message);
                    return Failure { message, ..failure };
                }
            };
            Failure::new(Code::Busy, format!("cannot fork {shown}: {because}"))
        })?;
        let mut mount = request.mount.clone();
        let (stack, json) = layers.forking(point.serial, &self.mountpoint, &mount.mountpoint)?;
        self.background()?.changed(&layers);
        drop((layers, tree));
        mount.fork = Some(json);
        mount.source = SourceRequest { source: String::new(), ..self.source.clone() };
        let ready = Starting::new(&ServerProgram::this()?, &self.source, &mount.mountpoint)
            .and_then(|starting| starting.mount(&mount));
        if let Some(mut layers) = self.background()?.layers() {
            layers.has_forked(&stack)?;
            if let (Err(_), true) = (&ready, is_new) {
                layers.forget(std::slice::from_ref(&point.id))?;
            }
            self.background()?.changed(&layers);
        }
        Ok(Forked { id: point.id, name: point.name, ready: ready? })
    }
}
