//! What differs between the stack that is left and the one that comes.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::super::super::error::Result;
use super::super::super::lower::LowerEntry;
use super::super::super::name::Name;
use super::super::super::node::UpperState;
use super::super::super::upper::{Mark, unusable};
use super::super::Below;
use super::listed::{Means, Rest};
use super::{Pair, Place, Switch};
use crate::types::{FileKind, Ino, LayerSerial};

impl Switch<'_> {
    /// Checks that what is mounted inside stays where it is.
    pub(super) fn check_mounted(&self, mounted: &[PathBuf]) -> Result<()> {
        for path in mounted {
            let (mut a, mut b) = (self.from.clone(), self.to.clone());
            for name in path {
                let name = name.as_bytes();
                let [now, then] = [&a, &b].map(|dir| self.overlay.find_entry(dir, name));
                let (now, then) = (now?, then?);
                if !self.are_same(now.as_ref(), then.as_ref())? {
                    return Err(unusable(path, "something is mounted there, which would be gone"));
                }
                let whole =
                    |entry: Option<LowerEntry>| entry.map(|e| e.whole()).unwrap_or_default();
                (a, b) = (whole(now), whole(then));
            }
        }
        Ok(())
    }

    /// Whether both are the same directory, or one and the same inode, or nothing.
    fn are_same(&self, now: Option<&LowerEntry>, then: Option<&LowerEntry>) -> Result<bool> {
        let (Some(now), Some(then)) = (now, then) else {
            return Ok(now.is_none() && then.is_none());
        };
        if is_directory(now) && is_directory(then) {
            return Ok(now.ino(self.overlay)? == then.ino(self.overlay)?);
        }
        Ok(match (now, then) {
            (LowerEntry::Archive(now), LowerEntry::Archive(then)) => now == then,
            (LowerEntry::Layer(now, _), LowerEntry::Layer(then, _)) => {
                let inode = |upper: &Option<UpperState>| {
                    upper.as_ref().map(|upper| (upper.layer, upper.st_ino))
                };
                inode(&now.upper) == inode(&then.upper)
            }
            _ => false,
        })
    }

    pub(super) fn compare_all(&mut self) -> Result<()> {
        let mut pairs: Vec<Pair> = vec![(Ino::ROOT, self.from.clone(), Some(self.to.clone()))];
        loop {
            while let Some(pair) = pairs.pop() {
                self.compare(&pair, &mut pairs)?;
            }
            let both: Vec<Ino> =
                self.left.keys().filter(|ino| self.right.contains_key(ino)).copied().collect();
            for ino in both {
                if let (Some((.., now)), Some(then)) =
                    (self.left.remove(&ino), self.right.remove(&ino))
                {
                    self.has_moved(ino, &now.whole(), then, &mut pairs);
                }
            }
            if !pairs.is_empty() || self.look_further()? {
                continue;
            }
            for (ino, (_, _, now)) in std::mem::take(&mut self.left) {
                match self.find_by_redirect(ino, &now)? {
                    Some(then) => self.has_moved(ino, &now.whole(), then, &mut pairs),
                    None => {
                        pairs.push((ino, now.whole(), None));
                        self.vanished.push((ino, now));
                    }
                }
            }
            if pairs.is_empty() {
                self.find_known(&mut pairs)?;
            }
            if pairs.is_empty() {
                return Ok(());
            }
        }
    }

    /// Looks for directories in those that only the stack that comes has. Says whether there were any.
    fn look_further(&mut self) -> Result<bool> {
        let overlay = self.overlay;
        let new = self.right.iter().filter(|(ino, _)| !self.seen.contains(ino));
        let new: Vec<(Ino, Place)> = new.map(|(ino, place)| (*ino, place.clone())).collect();
        for (dir, place) in &new {
            let whole = place.2.whole();
            self.seen.insert(*dir);
            self.places.insert(*dir, place.clone());
            for (name, listed) in self.list(&whole, count_in(&whole, &self.come))? {
                if listed.kind() == Some(FileKind::Directory)
                    && let Some(then) = overlay.find_entry(&whole, &name)?
                    && is_directory(&then)
                {
                    let ino = then.ino(overlay)?;
                    if !self.matched.contains(&ino) {
                        self.right.insert(ino, (*dir, (&*name).into(), then));
                    }
                }
            }
        }
        Ok(!new.is_empty())
    }

    /// Looks among directories that no layer of the stack that is left has for those that somebody knows: where it has
    /// them is as the archive has it, or a layer that both have.
    fn find_known(&mut self, pairs: &mut Vec<Pair>) -> Result<()> {
        let (nodes, ids) = (&self.overlay.nodes, &self.overlay.ids);
        for (ino, then) in std::mem::take(&mut self.right) {
            if nodes.meant(ino).is_some() {
                let now = self.overlay.lower_half(ids.id_of(ino))?;
                self.has_moved(ino, &now, then, pairs);
            } else if nodes.is_known(ids.id_of(ino)) {
                // It is back. Nothing that was in it is known any more.
                self.moved.push((ino, then));
            }
        }
        Ok(())
    }

    fn has_moved(&mut self, ino: Ino, now: &Below, then: Place, pairs: &mut Vec<Pair>) {
        pairs.push((ino, now.clone(), Some(then.2.whole())));
        self.matched.insert(ino);
        self.places.insert(ino, then.clone());
        self.moved.push((ino, then));
    }

    /// Compares what is in one directory, as far as it is of a layer that only one stack has.
    fn compare(&mut self, (dir, a, b): &Pair, pairs: &mut Vec<Pair>) -> Result<()> {
        let overlay = self.overlay;
        // What both have lies below what only one of them has.
        let none = Below::default();
        let b = b.as_ref().unwrap_or(&none);
        let (above_a, above_b) = (count_in(a, &self.gone), count_in(b, &self.come));
        let (gone, come) = (self.list(a, above_a)?, self.list(b, above_b)?);
        let names: BTreeSet<&[u8]> = gone.keys().chain(come.keys()).map(AsRef::as_ref).collect();
        let rest_a = Rest::new(overlay, a.after(above_a), names.len() - gone.len())?;
        let rest_b = Rest::new(overlay, b.after(above_b), names.len() - come.len())?;
        for name in names {
            let now = match gone.get(name) {
                Some(listed) => self.means_now(a, name, listed)?,
                None => Means::Entry(rest_a.find(overlay, name)?),
            };
            let then = match come.get(name) {
                Some(listed) => self.means(b, name, listed)?,
                None => Means::Entry(rest_b.find(overlay, name)?),
            };
            // Where one is a file of a layer that the other stack has not, they differ.
            if let (Means::Entry(now), Means::Entry(then)) = (&now, &then)
                && self.are_same(now.as_ref(), then.as_ref())?
            {
                if let (Some(now), Some(then)) = (now, then)
                    && is_directory(now)
                {
                    let ino = now.ino(overlay)?;
                    pairs.push((ino, now.whole(), Some(then.whole())));
                    self.places.insert(ino, (*dir, name.into(), then.clone()));
                    self.kept.push((ino, then.clone()));
                }
                continue;
            }
            let is_file = then.is_file() && !now.is_directory();
            let name: Name = name.into();
            match now {
                Means::Entry(Some(now)) if is_directory(&now) => {
                    let ino = now.ino(overlay)?;
                    if !self.matched.contains(&ino) {
                        self.left.insert(ino, (*dir, name.clone(), now));
                    }
                }
                Means::Entry(Some(LowerEntry::Layer(found, place))) => {
                    self.files.insert(found.ino, Some(place));
                }
                Means::Entry(Some(now @ LowerEntry::Archive(_))) => {
                    self.files.entry(now.ino(overlay)?).or_insert(None);
                }
                Means::File(ino) => drop(self.files.entry(ino).or_insert(None)),
                Means::Entry(None) => {}
            }
            match then {
                Means::Entry(Some(then)) if is_directory(&then) => {
                    let ino = then.ino(overlay)?;
                    if !self.matched.contains(&ino) {
                        self.right.insert(ino, (*dir, name.clone(), then));
                    }
                }
                Means::Entry(Some(then)) => {
                    self.files.entry(then.ino(overlay)?).or_insert(None);
                }
                Means::File(ino) => drop(self.files.entry(ino).or_insert(None)),
                Means::Entry(None) => {}
            }
            self.names.push((*dir, name, is_file));
        }
        Ok(())
    }

    /// Where directory `ino` is in the stack that comes, if a redirect says so: what it was in may be gone from the one
    /// that is left.
    fn find_by_redirect(&mut self, ino: Ino, now: &LowerEntry) -> Result<Option<Place>> {
        let LowerEntry::Layer(_, place) = now else { return Ok(None) };
        let overlay = self.overlay;
        let redirect = overlay.marks.get(&overlay.in_layer(place)?, Mark::Redirect)?;
        let Some(path) = redirect.as_deref().and_then(|path| path.strip_prefix(b"/")) else {
            return Ok(None);
        };
        let (mut dir, mut whole) = (Ino::ROOT, self.to.clone());
        let mut found = None;
        for name in path.split(|byte| *byte == b'/') {
            if let Some(above) = found.take() {
                let (_, _, entry): &Place = &above;
                (dir, whole) = (entry.ino(overlay)?, entry.whole());
                self.places.entry(dir).or_insert(above);
            }
            let entry = overlay.find_entry(&whole, name)?.filter(is_directory);
            let Some(entry) = entry else { return Ok(None) };
            found = Some((dir, name.into(), entry));
        }
        match found {
            Some(place) if place.2.ino(overlay)? == ino => Ok(Some(place)),
            _ => Ok(None),
        }
    }
}

/// How many of the layers that `whole` is in are of `layers`, which are above the others.
fn count_in(whole: &Below, layers: &HashSet<LayerSerial>) -> usize {
    whole.parts().iter().take_while(|part| layers.contains(&part.layer)).count()
}

fn is_directory(entry: &LowerEntry) -> bool {
    entry.kind() == FileKind::Directory
}
