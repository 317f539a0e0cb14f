//! The manifest: the tree of layers and the points in it, as they are written down.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::forks::{Base, Fork};
use crate::backup::{BackupId, check_name_length};
use crate::failure::{Code, Failure};
use crate::names;
use crate::types::LayerSerial;

/// What this program writes, and all that it reads.
const VERSION: u32 = 1;

/// How many points without a name are kept, unless `--keep` says otherwise.
pub(crate) const DEFAULT_KEEP: u32 = 64;

/// Most bytes of a manifest: some 200,000 points.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// Most backups of it that are remembered: who makes another begins with one of the last.
pub(super) const MAX_SENT: usize = 256;

/// Most fuzzy files that are written down of a point: who made it was told of all.
pub(super) const MAX_FUZZY: usize = 1000;

/// By what an upper knows its manifest, and that its upper: 16 bytes by chance, in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(in super::super) struct StackId(String);

impl StackId {
    pub(super) const LEN: usize = 32;

    pub(super) fn random() -> Result<Self, Failure> {
        let mut bytes = [0; Self::LEN / 2];
        getrandom::fill(&mut bytes)
            .map_err(|error| Failure::new(Code::Failed, format!("no random numbers: {error}")))?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// From the bytes of a mark.
    pub(super) fn from_mark(mark: &[u8]) -> Self {
        Self(String::from_utf8_lossy(mark).into_owned())
    }

    pub(super) fn as_mark(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn is_one(&self) -> bool {
        self.0.len() == Self::LEN && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

impl fmt::Display for StackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checkpoint: what is at and below a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Point {
    /// What it is known by.
    pub(crate) id: BackupId,
    /// What it is called, if anything; others may be called the same.
    pub(crate) name: Option<String>,
    /// When it was made, in milliseconds since the epoch.
    pub(crate) created_ms: u64,
    /// The topmost layer of it.
    pub(crate) serial: LayerSerial,
    /// Whether the disk has all of it.
    pub(crate) durable: bool,
    /// Files of it that are of no one moment; not all, where there are very many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) fuzzy: Vec<FuzzyFile>,
    /// What becomes of it in the bucket; nothing where it is of this machine alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) publish: Option<Publish>,
}

impl Point {
    /// Whether it is yet to be published.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(&self.publish, Some(Publish { state: PublishState::Pending, .. }))
    }
}

/// A backup that a point is to be, or has become, under its own id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Publish {
    /// The directory that the backup records.
    pub(crate) dir: String,
    /// What the backup is called, if not as the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Lifetime in seconds.
    pub(crate) ttl: u64,
    /// Pack everything.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) whole: bool,
    /// Whether the point is there for that alone, and goes then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) passing: bool,
    pub(crate) state: PublishState,
}

/// How far that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(crate) enum PublishState {
    /// It is yet to be done.
    Pending,
    /// It is in the bucket.
    Published {
        /// Since when, in milliseconds since the epoch.
        at_ms: u64,
        /// Size of its archive.
        bytes: u64,
    },
    /// It cannot be done, for this reason, until something is changed.
    Failed {
        /// In one line.
        why: String,
    },
}

/// A backup in the bucket of what is at and below a layer. The point that it was made of may be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sent {
    pub(crate) id: BackupId,
    pub(crate) serial: LayerSerial,
    /// Size of its archive.
    pub(crate) bytes: u64,
}

/// What a stack lies on in the place of what its first upper was made over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Onto {
    /// The backup whose archive it is.
    pub(crate) id: BackupId,
    /// The first layer that was made over that.
    pub(super) since: LayerSerial,
    /// What those before may have been made over: [`crate::overlay::ArchiveIdentity`]s, the oldest first.
    pub(super) over: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A path from the root of the mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FuzzyFile {
    #[serde(flatten, with = "names::path")]
    pub(crate) path: PathBuf,
}

/// What is known of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerInfo {
    /// What it lies on; the archive, if on none.
    pub(super) parent: Option<LayerSerial>,
    /// The lowest of those that were merged into it, if any were.
    pub(super) from: Option<LayerSerial>,
    /// Room that it takes on disk, in bytes, once it is frozen and somebody has looked.
    pub(super) bytes: Option<u64>,
}

/// The directory of a layer: another one once others were merged into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct LayerDir {
    pub(in super::super) serial: LayerSerial,
    /// As of [`LayerInfo`].
    pub(super) from: Option<LayerSerial>,
}

impl From<LayerSerial> for LayerDir {
    fn from(serial: LayerSerial) -> Self {
        Self { serial, from: None }
    }
}

impl LayerDir {
    /// What it is called among others.
    pub(super) fn name(self) -> String {
        match self.from {
            None => self.serial.0.to_string(),
            Some(from) => format!("{}-{}", from.0, self.serial.0),
        }
    }

    /// The layer of a directory that is called so, if it is of one.
    pub(super) fn layer_of(name: &str) -> Option<LayerSerial> {
        let serial = name.split('-').next_back()?.parse().ok()?;
        Some(LayerSerial(serial))
    }
}

/// The tree of layers and the points in it. There is one live layer, which nothing lies on; what lies on
/// another has a greater number; and every layer is needed by the live one or by a point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(super) stack: StackId,
    pub(super) boot: String,
    pub(super) live: LayerSerial,
    pub(super) next: LayerSerial,
    pub(super) keep: u32,
    pub(super) layers: BTreeMap<LayerSerial, LayerInfo>,
    /// The oldest first.
    pub(super) points: Vec<Point>,
    /// What the last rollback has rolled away.
    pub(super) rolled_away: Option<Point>,
    /// What was published of it, the oldest first.
    pub(super) sent: Vec<Sent>,
    /// What it was put onto.
    pub(super) onto: Option<Onto>,
    /// Whose layers some are, of a fork.
    pub(super) bases: Vec<Base>,
    /// What lies on some: it is not written down here, but noted beside.
    pub(super) forks: Vec<Fork>,
}

/// As it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    version: u32,
    stack: StackId,
    boot: String,
    live: LayerSerial,
    next: LayerSerial,
    keep: u32,
    layers: Vec<StoredLayer>,
    points: Vec<Point>,
    rolled_away: Option<Point>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sent: Vec<Sent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    onto: Option<Onto>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bases: Vec<Base>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLayer {
    serial: LayerSerial,
    parent: Option<LayerSerial>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<LayerSerial>,
    bytes: Option<u64>,
}

/// What is read before all else.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Manifest {
    /// One of a new stack: layer 0, and nothing else.
    ///
    /// # Errors
    /// Where the machine has no random numbers.
    pub(super) fn new() -> Result<Self, Failure> {
        let live = LayerSerial::default();
        Ok(Self {
            stack: StackId::random()?,
            boot: String::new(),
            live,
            next: LayerSerial(1),
            keep: DEFAULT_KEEP,
            layers: BTreeMap::from([(live, LayerInfo { parent: None, from: None, bytes: None })]),
            points: Vec::new(),
            rolled_away: None,
            sent: Vec::new(),
            onto: None,
            bases: Vec::new(),
            forks: Vec::new(),
        })
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// What is wrong with it, in words that go on after the file's name.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("is damaged: it has over {MAX_BYTES} bytes"));
        }
        let damaged = |error: serde_json::Error| format!("is damaged: {error}");
        let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(format!("is of another version of this program: version {version}"));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(damaged)?;
        let mut layers = BTreeMap::new();
        for StoredLayer { serial, parent, from, bytes } in stored.layers {
            if layers.insert(serial, LayerInfo { parent, from, bytes }).is_some() {
                return Err(format!("is damaged: layer {} is in it twice", serial.0));
            }
        }
        let Stored {
            stack, boot, live, next, keep, points, rolled_away, sent, onto, bases, ..
        } = stored;
        let manifest = Self {
            stack,
            boot,
            live,
            next,
            keep,
            layers,
            points,
            rolled_away,
            sent,
            onto,
            bases,
            forks: Vec::new(),
        };
        manifest.check().map_err(|problem| format!("is damaged: {problem}"))?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if !self.stack.is_one() {
            return Err(format!("{:?} is not the id of a stack", self.stack.0));
        }
        if self.keep == 0 {
            return Err("it keeps no points".into());
        }
        if !self.has(self.live) {
            return Err(format!("the live layer, {}, is none of it", self.live.0));
        }
        for (&LayerSerial(serial), layer) in &self.layers {
            if serial >= self.next.0 {
                return Err(format!("layer {serial} is not below the next, {}", self.next.0));
            }
            if layer.from.is_some_and(|from| from.0 >= serial) {
                return Err(format!("layer {serial} cannot be of those from itself"));
            }
            let Some(parent) = layer.parent else { continue };
            if parent.0 >= serial || !self.has(parent) || parent == self.live {
                return Err(format!("layer {serial} cannot lie on {}", parent.0));
            }
        }
        for LayerSerial(serial) in self.shared() {
            if !self.has(LayerSerial(serial)) || serial == self.live.0 {
                return Err(format!("layer {serial} is another mount's, and none that is frozen"));
            }
        }
        let mut ids = HashSet::new();
        for point in self.points.iter().chain(&self.rolled_away) {
            let Point { id, name, serial, .. } = point;
            if !ids.insert(id) {
                return Err(format!("{id} is in it twice"));
            }
            if !self.has(*serial) || *serial == self.live {
                return Err(format!("{id} is of layer {}, which is none that is frozen", serial.0));
            }
            if let Some(name) = name {
                let named = match name {
                    _ if name.is_empty() => Err("is empty"),
                    // Those of the second set could be given once.
                    _ if name.chars().any(|c| c.is_ascii_control()) => {
                        Err("must hold no control characters")
                    }
                    _ => check_name_length(name),
                };
                named.map_err(|reason| format!("the name of {id} {reason}"))?;
            }
        }
        match self.sent.iter().find(|sent| !self.has(sent.serial) || sent.serial == self.live) {
            Some(Sent { id, .. }) => Err(format!("{id} was made of no layer that is frozen")),
            None => Ok(()),
        }
    }

    /// As it is written down.
    ///
    /// # Errors
    /// Where that would be more than may be.
    pub(super) fn to_json(&self) -> io::Result<Vec<u8>> {
        let layers = self.layers.iter().map(|(&serial, layer)| StoredLayer {
            serial,
            parent: layer.parent,
            from: layer.from,
            bytes: layer.bytes,
        });
        let stored = Stored {
            version: VERSION,
            stack: self.stack.clone(),
            boot: self.boot.clone(),
            live: self.live,
            next: self.next,
            keep: self.keep,
            layers: layers.collect(),
            points: self.points.clone(),
            rolled_away: self.rolled_away.clone(),
            sent: self.sent.clone(),
            onto: self.onto.clone(),
            bases: self.bases.clone(),
        };
        let mut json = serde_json::to_vec(&stored)?;
        json.push(b'\n');
        match json.len() as u64 > MAX_BYTES {
            false => Ok(json),
            true => Err(io::Error::other("there are too many checkpoints; forget some")),
        }
    }

    pub(super) fn stack(&self) -> &StackId {
        &self.stack
    }

    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    pub(super) fn next(&self) -> LayerSerial {
        self.next
    }

    /// The number of the live upper.
    pub(crate) fn live(&self) -> LayerSerial {
        self.live
    }

    pub(super) fn has(&self, serial: LayerSerial) -> bool {
        self.layers.contains_key(&serial)
    }

    #[cfg(test)]
    pub(super) fn layers(&self) -> impl Iterator<Item = (LayerSerial, &LayerInfo)> {
        self.layers.iter().map(|(serial, layer)| (*serial, layer))
    }

    /// The directory of a layer.
    pub(in super::super) fn dir_of(&self, serial: LayerSerial) -> LayerDir {
        LayerDir { serial, from: self.layers.get(&serial).and_then(|layer| layer.from) }
    }

    /// The directories of all layers.
    pub(super) fn dirs(&self) -> impl Iterator<Item = LayerDir> {
        self.layers.keys().map(|serial| self.dir_of(*serial))
    }

    pub(super) fn has_dir(&self, dir: LayerDir) -> bool {
        self.has(dir.serial) && self.dir_of(dir.serial) == dir
    }

    /// All points, the oldest first; without what was rolled away.
    pub(crate) fn points(&self) -> &[Point] {
        &self.points
    }

    /// What the last rollback has rolled away, and can be taken back.
    pub(crate) fn rolled_away(&self) -> Option<&Point> {
        self.rolled_away.as_ref()
    }

    /// The backup that it was put onto, if it was.
    pub(crate) fn onto(&self) -> Option<&BackupId> {
        Some(&self.onto.as_ref()?.id)
    }

    /// How many points without a name are kept.
    pub(crate) fn keep(&self) -> u32 {
        self.keep
    }

    /// How many points have a name.
    pub(crate) fn named(&self) -> usize {
        self.points.iter().filter(|point| point.name.is_some()).count()
    }

    /// Room that a layer takes on disk, in bytes, if that is known.
    pub(crate) fn bytes_of(&self, serial: LayerSerial) -> Option<u64> {
        self.layers.get(&serial)?.bytes
    }

    /// Numbers of frozen layers.
    pub(crate) fn frozen_layers(&self) -> impl Iterator<Item = LayerSerial> {
        let live = self.live;
        self.layers.keys().copied().filter(move |serial| *serial != live)
    }

    /// Whether it says no more than that there is an upper.
    pub(crate) fn is_trivial(&self) -> bool {
        self.live == LayerSerial::default() && self.layers.len() == 1
    }

    /// As they are told of.
    pub(crate) fn as_fuzzy(files: Vec<PathBuf>) -> Vec<FuzzyFile> {
        files.into_iter().map(|path| FuzzyFile { path }).collect()
    }
}
