//! What belongs together of what has come: the halves of a rename, and the renames of an exchange.
//!
//! The kernel tells from where, to where, and of the directory itself, one right after the other, and for an exchange
//! the same of the way back. What is done elsewhere at that moment may come in between. A wrong guess is set right by
//! looking at the names that it was about.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use rustix::fs::inotify::ReadFlags;

use super::nodes::Told;
use super::work::Work;
use crate::watch::inotify::Event;

/// How long the second half of a rename is waited for. It is made right after the first.
const PAIR_PATIENCE: Duration = Duration::from_millis(10);

/// Among how many events it is looked for.
const PAIR_DISTANCE: usize = 1024;

/// What has become of what was moved from somewhere.
enum Moved {
    /// That is not known yet.
    Later,
    /// It is outside, or where nobody watched yet.
    Out,
    To(Event),
    /// It is where the first of these is of, and what was there is what the second is of, in its place now.
    Exchanged(Event, Event),
}

impl Work<'_> {
    /// Looks at what has come. Says when to look again, if half a rename has to be waited for.
    pub(super) fn run(&mut self) -> Option<Instant> {
        loop {
            let mut inbox = self.inbox.lock();
            let event = inbox.pop_front()?;
            if !event.mask.contains(ReadFlags::MOVED_FROM) {
                drop(inbox);
                self.look_at(&event);
                continue;
            }
            match self.moved(inbox, &event) {
                Moved::Later => {
                    let until = event.read_at + PAIR_PATIENCE;
                    self.inbox.lock().push_front(event);
                    return Some(until);
                }
                Moved::Out => self.moved_out(&event),
                Moved::To(to) => self.renamed(&event, &to),
                Moved::Exchanged(to, back) => self.exchanged(&event, &to, &back),
            }
        }
    }

    fn moved(&self, mut inbox: MutexGuard<'_, VecDeque<Event>>, from: &Event) -> Moved {
        let is_recent = Instant::now() < from.read_at + PAIR_PATIENCE;
        let Some(at) = inbox.iter().take(PAIR_DISTANCE).position(|it| is_other_half(from, it))
        else {
            return match is_recent && inbox.len() < PAIR_DISTANCE {
                true => Moved::Later,
                false => Moved::Out,
            };
        };
        let Some(to) = inbox.remove(at) else { return Moved::Out };
        // With something there still, or again, this may be the first half of an exchange.
        if !self.is_there(from) {
            return Moved::To(to);
        }
        let names =
            ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
        let is_of_both = |it: &Event| {
            it.mask.intersects(names) && (it.watch == from.watch || it.watch == to.watch)
        };
        let near = || inbox.iter().enumerate().take(PAIR_DISTANCE);
        let back = near().find(|(_, it)| is_of_both(it)).map(|(back, it)| (back, it.clone()));
        let is_back = back
            .as_ref()
            .is_none_or(|(_, it)| it.mask.contains(ReadFlags::MOVED_FROM) && is_at(it, &to));
        if !is_back || !self.is_there(&to) {
            return Moved::To(to);
        }
        let second = back.as_ref().and_then(|(_, back)| {
            let half = near().find(|(_, it)| is_other_half(back, it))?;
            Some((half.0, is_at(half.1, from)))
        });
        match (back, second) {
            (Some((back, event)), Some((second, true))) => {
                inbox.remove(back.max(second));
                inbox.remove(back.min(second));
                Moved::Exchanged(to, event)
            }
            (None, _) | (_, None) if is_recent && inbox.len() < PAIR_DISTANCE => {
                let at = at.min(inbox.len());
                inbox.insert(at, to);
                Moved::Later
            }
            _ => Moved::To(to),
        }
    }

    /// Whether something is where an event is of.
    fn is_there(&self, event: &Event) -> bool {
        let node = self.nodes.of(event.watch).first().copied();
        node.is_some_and(|node| self.look(&self.nodes.path_of(node, &event.name)).is_some())
    }

    /// What was moved to where nobody knew of may have been found there.
    fn moved_out(&mut self, from: &Event) {
        let target = self.nodes.of(from.watch).first().and_then(|node| {
            let watch = self.nodes.watch_of(self.nodes.child(*node, &from.name)?)?;
            self.nodes.found.remove(&watch)
        });
        let is_yet_to_be_told =
            |(node, name): &(usize, Vec<u8>)| self.nodes.told(*node, name) == Some(Told::Nothing);
        let Some((to, name)) = target.filter(is_yet_to_be_told) else {
            return self.look_at(from);
        };
        for (at, old) in self.nodes.of(from.watch).into_iter().enumerate() {
            match at {
                0 => self.rename((old, &from.name), (to, &name), true),
                _ => self.go((old, &from.name), true, true),
            }
        }
    }

    fn renamed(&mut self, from: &Event, to: &Event) {
        let is_dir = from.mask.contains(ReadFlags::ISDIR);
        let (sources, targets) = (self.nodes.of(from.watch), self.nodes.of(to.watch));
        // Out of what is watched no longer, or into it.
        if sources.len() != targets.len() {
            return [from, to].into_iter().for_each(|event| self.look_at(event));
        }
        for (old, new) in sources.into_iter().zip(targets) {
            self.rename((old, &from.name), (new, &to.name), is_dir);
        }
    }

    fn exchanged(&mut self, from: &Event, to: &Event, back: &Event) {
        let [one_is_dir, other_is_dir] =
            [from, back].map(|event| event.mask.contains(ReadFlags::ISDIR));
        let (sources, targets) = (self.nodes.of(from.watch), self.nodes.of(to.watch));
        if sources.len() != targets.len() {
            let to_from = Event {
                mask: (back.mask - ReadFlags::MOVED_FROM) | ReadFlags::MOVED_TO,
                ..from.clone()
            };
            return [from, back, to, &to_from].into_iter().for_each(|event| self.look_at(event));
        }
        for (one, other) in sources.into_iter().zip(targets) {
            let (one, other) = ((one, &*from.name), (other, &*to.name));
            self.exchange((one, one_is_dir), (other, other_is_dir));
        }
    }
}

/// Whether an event is the second half of a rename, of which there is the first.
fn is_other_half(from: &Event, to: &Event) -> bool {
    to.mask.contains(ReadFlags::MOVED_TO) && to.cookie == from.cookie
}

/// Whether an event is of the same name in the same directory as another.
fn is_at(event: &Event, other: &Event) -> bool {
    (event.watch, &event.name) == (other.watch, &other.name)
}
