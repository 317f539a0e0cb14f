//! What each change makes of the tree of layers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::disk::Note;
use super::manifest::{LayerInfo, MAX_FUZZY, MAX_SENT, Manifest, Point, PublishState, Sent};
use super::{Facts, NewPoint, Serials};
use crate::backup::BackupId;
use crate::failure::{Code, Failure};
use crate::types::LayerSerial;

/// What a layer costs to copy at least, in bytes.
const SMALLEST: u64 = 64 << 10;

/// Most bytes that are merged at once: an unmount waits for who copies them.
const MOST: u64 = 1 << 30;

/// Which layers may be merged.
pub(super) struct Which<'a> {
    /// Whether one may be.
    pub(super) may_go: &'a dyn Fn(LayerSerial) -> bool,
    /// How many are at least, and at most.
    pub(super) fewest: usize,
    pub(super) most: usize,
    /// How much room there is, in bytes.
    pub(super) room: u64,
}

/// Fewest digits of an id that may stand for it.
const MIN_PREFIX: usize = 8;

/// What to say where no point is called `text`, which may be of any length.
pub(in super::super) fn no_such(text: &str) -> Failure {
    let shown: String = text.chars().take(100).collect();
    Failure::new(Code::NotFound, format!("there is no checkpoint {shown:?}"))
        .hint("thawfs checkpoints shows which there are")
}

impl Manifest {
    /// The layer below the live upper; `None` where that is the archive.
    pub(crate) fn parent_of_live(&self) -> Option<LayerSerial> {
        self.layers.get(&self.live)?.parent
    }

    /// `top` and all that it lies on, the bottom one first.
    pub(in super::super) fn chain(&self, top: Option<LayerSerial>) -> Vec<LayerSerial> {
        let parent = |serial: &LayerSerial| self.layers.get(serial).and_then(|layer| layer.parent);
        let mut chain: Vec<_> = std::iter::successors(top, parent).collect();
        chain.reverse();
        chain
    }

    /// The point of this id, what was rolled away included.
    pub(crate) fn point(&self, id: &BackupId) -> Option<&Point> {
        self.points.iter().chain(&self.rolled_away).find(|point| point.id == *id)
    }

    /// The point that `text` says: its id, the first digits of that if no other begins so, or its name.
    ///
    /// # Errors
    /// [`Code::NotFound`] where there is none, [`Code::Usage`] where there are several.
    pub(crate) fn find(&self, text: &str) -> Result<&Point, Failure> {
        let all = || self.points.iter().chain(&self.rolled_away);
        let lower = text.to_ascii_lowercase();
        let is_prefix = text.len() >= MIN_PREFIX
            && lower.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let mut found: Vec<_> = all().filter(|point| point.name.as_deref() == Some(text)).collect();
        if let Some(point) = all().find(|point| point.id.as_str() == lower) {
            found = vec![point];
        } else if found.is_empty() && is_prefix {
            found = all().filter(|point| point.id.as_str().starts_with(&lower)).collect();
        }
        match found[..] {
            [point] => Ok(point),
            [] => Err(no_such(text)),
            _ => Err(Failure {
                list: found.iter().map(|point| point.id.to_string()).collect(),
                ..Failure::new(Code::Usage, format!("several checkpoints are called {text:?}"))
                    .hint("say which by its id")
            }),
        }
    }

    /// Backups of what `top` lies on, or of itself, the newest first.
    pub(crate) fn sent_below(&self, top: LayerSerial) -> Vec<&Sent> {
        let chain = self.chain(Some(top));
        let mut sent: Vec<_> =
            self.sent.iter().rev().filter(|sent| chain.contains(&sent.serial)).collect();
        sent.sort_by_key(|sent| std::cmp::Reverse(sent.serial));
        sent
    }

    /// The last point that the live upper lies on, but for those that are there for a backup alone.
    ///
    /// # Errors
    /// [`Code::NotFound`] where it lies on none.
    pub(crate) fn last(&self) -> Result<&Point, Failure> {
        let chain = self.chain(self.parent_of_live());
        let is_meant = |point: &&Point| !point.publish.as_ref().is_some_and(|it| it.passing);
        let points = self.points.iter().rev().filter(is_meant);
        let of = |serial: &LayerSerial| points.clone().find(|it| it.serial == *serial);
        chain.iter().rev().find_map(of).ok_or_else(|| {
            Failure::new(Code::NotFound, "there is no checkpoint to roll back to")
                .hint("thawfs rollback --to-archive gives what was mounted")
        })
    }

    /// The live upper has become a layer, with a point on it, and the next one is live. `None` where there
    /// are no numbers left.
    pub(super) fn frozen(mut self, point: NewPoint) -> Option<Self> {
        let below = self.live;
        self.push_live(Some(below))?;
        let thins = !point.for_fork;
        self.points.push(Point::new(point, below));
        if thins {
            self.thin();
        }
        self.prune();
        Some(self)
    }

    /// The next upper is live on `top`. What was live is kept as `away`, or not.
    pub(super) fn rolled_back(
        &self,
        top: Option<LayerSerial>,
        away: Option<NewPoint>,
    ) -> Option<Self> {
        let mut after = self.clone();
        after.rolled_away = away.map(|away| Point::new(away, self.live));
        after.push_live(top)?;
        after.prune();
        Some(after)
    }

    /// Makes `live` the live upper, on `parent`.
    pub(super) fn put_live(&mut self, live: LayerSerial, parent: Option<LayerSerial>) {
        self.live = live;
        self.layers.insert(live, LayerInfo { parent, from: None, bytes: None });
    }

    pub(super) fn push_live(&mut self, parent: Option<LayerSerial>) -> Option<()> {
        let next = LayerSerial(self.next.0.checked_add(1)?);
        let live = std::mem::replace(&mut self.next, next);
        self.put_live(live, parent);
        Some(())
    }

    /// With what a note says. Which point was made then is not known, but what was rolled away is kept as
    /// `away`. `None` where it makes no sense.
    pub(super) fn noted(&self, note: Note, away: NewPoint) -> Option<Self> {
        let mut after = self.clone();
        let is_next = note.serial == self.next && self.next.0 < u32::MAX;
        if !is_next || note.parent.is_some_and(|parent| !self.has(parent)) {
            return None;
        }
        if note.parent != Some(self.live) {
            after.rolled_away = note.kept.then(|| Point::new(away, self.live));
        }
        after.push_live(note.parent)?;
        after.prune();
        Some(after)
    }

    /// Which layers below the live upper are to be one, the bottom one first, if any are. Of `which` each says that it may
    /// be merged.
    pub(super) fn to_merge(&self, which: &Which<'_>) -> Option<Vec<LayerSerial>> {
        let mut children: BTreeMap<LayerSerial, usize> = BTreeMap::new();
        for parent in self.layers.values().filter_map(|layer| layer.parent) {
            *children.entry(parent).or_default() += 1;
        }
        let points = self.points.iter().chain(&self.rolled_away).map(|point| point.serial);
        // What is published next begins with the last of what was.
        let sent = self.parent_of_live().and_then(|top| self.sent_below(top).first().copied());
        let points: Serials = points.chain(sent.map(|sent| sent.serial)).collect();
        let mut runs = vec![Vec::new()];
        for serial in self.chain(self.parent_of_live()) {
            if !(which.may_go)(serial) {
                runs.push(Vec::new());
                continue;
            }
            if let Some(run) = runs.last_mut() {
                run.push(serial);
            }
            if points.contains(&serial) || children.get(&serial) != Some(&1) {
                runs.push(Vec::new());
            }
        }
        runs.into_iter().rev().find_map(|run| self.worth_it(run, which))
    }

    /// Those at the top of `run` that are worth it. What is merged is copied, and will be again. So a layer waits until those
    /// above it are about as large together: of n layers that come one by one, each is copied some log n times. But where there
    /// is less room than they take, none waits: what those above have removed is not copied, and that may be all of it.
    fn worth_it(&self, mut run: Vec<LayerSerial>, which: &Which<'_>) -> Option<Vec<LayerSerial>> {
        let size = |serial: &LayerSerial| self.bytes_of(*serial).unwrap_or(0).max(SMALLEST);
        if run.len() > 1 && run.iter().map(size).fold(0, u64::saturating_add) > which.room {
            let most = run.len().min(which.most.max(2));
            return Some(run.split_off(run.len() - most));
        }
        let (mut count, mut all) = (0, 0_u64);
        for serial in run.iter().rev().take(which.most) {
            if count > 0 && size(serial) > all.saturating_mul(2) {
                break;
            }
            all = all.saturating_add(size(serial));
            if all > MOST {
                break;
            }
            count += 1;
        }
        (count >= which.fewest.max(2)).then(|| run.split_off(run.len() - count))
    }

    /// With the layers `run`, the bottom one first, as one, whose number is that of the topmost. `None` where they are not
    /// such that all that is needed of them is what they are together.
    pub(super) fn merged(&self, run: &[LayerSerial]) -> Option<Self> {
        let (first, top) = (run.first()?, run.last()?);
        let is_between = |serial: LayerSerial| serial != *top && run.contains(&serial);
        let points = self.points.iter().chain(&self.rolled_away);
        let lies_between = |(serial, layer): (&LayerSerial, &LayerInfo)| {
            layer.parent.is_some_and(is_between) && !run.contains(serial)
        };
        let chain = self.chain(Some(*top));
        if run.len() < 2
            || !chain.ends_with(run)
            || run.contains(&self.live)
            || points.into_iter().any(|point| is_between(point.serial))
            || self.layers.iter().any(lies_between)
        {
            return None;
        }
        let bottom = *self.layers.get(first)?;
        let mut after = self.clone();
        after.layers.retain(|serial, _| !run.contains(serial));
        after.sent.retain(|sent| !is_between(sent.serial));
        let from = Some(bottom.from.unwrap_or(*first));
        after.layers.insert(*top, LayerInfo { parent: bottom.parent, from, bytes: None });
        Some(after)
    }

    /// Without these points, what was rolled away included.
    pub(super) fn without(&self, ids: &[BackupId]) -> Self {
        let mut after = self.clone();
        after.points.retain(|point| !ids.contains(&point.id));
        after.rolled_away = after.rolled_away.filter(|point| !ids.contains(&point.id));
        after.prune();
        after
    }

    /// With `count` points without a name at most.
    pub(super) fn keeping(&self, count: u32) -> Self {
        let mut after = Self { keep: count.max(1), ..self.clone() };
        after.thin();
        after.prune();
        after
    }

    /// Forgets the oldest points without a name that are too many. What is yet to be published stays until then.
    fn thin(&mut self) {
        let forked: Serials = self.forks.iter().map(|fork| fork.top).collect();
        // One that is there for a backup alone, or for a fork, takes no other's place.
        let counts = |point: &Point| {
            let is_passing = point.publish.as_ref().is_some_and(|publish| publish.passing);
            point.name.is_none() && !is_passing && !forked.contains(&point.serial)
        };
        let count = self.points.iter().filter(|point| counts(point)).count();
        let mut excess = count.saturating_sub(usize::try_from(self.keep).unwrap_or(usize::MAX));
        self.points.retain(|point| {
            let goes = counts(point) && !point.is_pending() && excess > 0;
            excess -= usize::from(goes);
            !goes
        });
    }

    /// Leaves out layers that neither the live upper nor a point or a fork needs.
    pub(super) fn prune(&mut self) {
        let mut needed = Serials::new();
        let points = self.points.iter().chain(&self.rolled_away).map(|point| point.serial);
        let forks = self.forks.iter().map(|fork| fork.top).filter(|top| self.has(*top));
        for top in points.chain(forks).chain([self.live]) {
            let mut at = Some(top);
            // What lies below one that is needed is already, with all below it.
            while let Some(serial) = at.filter(|serial| needed.insert(*serial)) {
                at = self.layers.get(&serial).and_then(|layer| layer.parent);
            }
        }
        self.layers.retain(|serial, _| needed.contains(serial));
        self.sent.retain(|sent| needed.contains(&sent.serial));
        self.bases.iter_mut().for_each(|base| base.layers.retain(|it| needed.contains(it)));
        self.bases.retain(|base| !base.layers.is_empty());
    }

    pub(super) fn with_fuzzy(&self, id: &BackupId, files: Vec<PathBuf>) -> Self {
        let mut after = self.clone();
        if let Some(point) = after.points.iter_mut().find(|point| point.id == *id) {
            point.fuzzy = Self::as_fuzzy(files);
            point.fuzzy.truncate(MAX_FUZZY);
        }
        after
    }

    /// With what has become of a point in the bucket, if it is still there. One that was there for that alone goes.
    pub(super) fn with_publish(&self, id: &BackupId, state: PublishState) -> Self {
        let mut after = self.clone();
        let Some(point) = after.points.iter_mut().find(|point| point.id == *id) else {
            return after;
        };
        let Some(publish) = point.publish.as_mut() else { return after };
        let goes = publish.passing && state != PublishState::Pending;
        if let PublishState::Published { bytes, .. } = state {
            after.sent.retain(|sent| sent.id != *id);
            after.sent.push(Sent { id: id.clone(), serial: point.serial, bytes });
            let excess = after.sent.len().saturating_sub(MAX_SENT);
            after.sent.drain(..excess);
        }
        publish.state = state;
        if goes {
            return after.without(std::slice::from_ref(id));
        }
        after.thin();
        after.prune();
        after
    }

    /// What has become of points in the bucket.
    pub(super) fn publishes(&self) -> Vec<&PublishState> {
        let publishes = self.points.iter().filter_map(|point| point.publish.as_ref());
        publishes.map(|publish| &publish.state).collect()
    }

    pub(super) fn with_facts(&self, facts: &Facts) -> Self {
        let mut after = self.clone();
        for point in after.points.iter_mut().chain(&mut after.rolled_away) {
            point.durable |= facts.synced.contains(&point.id);
        }
        for (serial, bytes) in &facts.bytes {
            if let Some(layer) = after.layers.get_mut(serial) {
                layer.bytes = Some(*bytes);
            }
        }
        after
    }

    /// Points that may not be on disk yet.
    pub(crate) fn undurable(&self) -> Vec<BackupId> {
        let points = self.points.iter().chain(&self.rolled_away).filter(|point| !point.durable);
        points.map(|point| point.id.clone()).collect()
    }

    pub(super) fn has_undurable(&self) -> bool {
        self.points.iter().any(|point| !point.durable)
    }

    /// Without points that were not on disk yet: what they held is in the stack below the live upper. What
    /// was rolled away stays, as it was an upper like the live one.
    pub(super) fn without_undurable(&self) -> Self {
        let mut after = self.clone();
        after.points.retain(|point| point.durable);
        after.prune();
        after
    }

    pub(super) fn on_boot(mut self, boot: &str) -> Self {
        self.boot = boot.to_owned();
        self
    }
}

impl Point {
    fn new(point: NewPoint, serial: LayerSerial) -> Self {
        let NewPoint { id, name, created_ms, publish, for_fork: _ } = point;
        Self { id, name, created_ms, serial, durable: false, fuzzy: Vec::new(), publish }
    }
}
