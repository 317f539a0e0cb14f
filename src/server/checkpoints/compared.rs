//! What differs between two points of a mount, or a point and what it is now.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::layers::{Manifest, Reading};
use super::Checkpoints;
use crate::failure::Failure;
use crate::names;
use crate::overlay::{DifferenceEntry, Layer, Options, Overlay};
use crate::types::LayerSerial;

/// What the archive alone is called where a point may be named.
const ARCHIVE: &str = "archive";

/// What differs between two points is asked for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PointsRequest {
    /// A path from the root of the mount: what is there, and what is below it.
    #[serde(flatten, with = "names::path")]
    pub(crate) below: PathBuf,
    /// A checkpoint by its id, the first digits of that, or its name; or the archive.
    pub(crate) from: String,
    /// Another; else what is mounted.
    pub(crate) to: Option<String>,
}

impl Checkpoints {
    /// Gives `sink` what differs until it breaks.
    ///
    /// # Errors
    /// [`crate::failure::Code::NotFound`] and `Usage` for what is no checkpoint, and what reading the layers says.
    pub(in super::super) fn compare(
        &self,
        request: &PointsRequest,
        sink: &mut dyn FnMut(DifferenceEntry) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let (live, layers) = self.begin("compare checkpoints of")?;
        let manifest = layers.manifest();
        let open = |text: &str| layers.read_chain(top_of(manifest, text)?);
        let from = open(&request.from)?;
        let to = request.to.as_deref().map(open).transpose()?;
        drop(layers);
        let (from, _from_is_read) = point(&live, from)?;
        let told = match to {
            None => live.difference_from(&from, &request.below, sink),
            Some(to) => {
                let (to, _to_is_read) = point(&live, to)?;
                to.difference_from(&from, &request.below, sink)
            }
        };
        self.background()?.tidy_later();
        Ok(told?)
    }
}

/// The topmost layer of what is called `text`.
fn top_of(manifest: &Manifest, text: &str) -> Result<Option<LayerSerial>, Failure> {
    match text {
        ARCHIVE => Ok(None),
        text => manifest.find(text).map(|point| Some(point.serial)),
    }
}

/// What `layers` show over the archive of `live`.
fn point(
    live: &Overlay,
    (layers, reading): (Vec<Layer>, Reading),
) -> Result<(Overlay, Reading), Failure> {
    let archive = Arc::clone(live.archive());
    Ok((Overlay::stacked(archive, layers, None, Options::default())?, reading))
}
