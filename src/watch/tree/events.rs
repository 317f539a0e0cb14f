//! What events make of the tree, which is told.
//!
//! All events of one directory come in the order in which its names changed. What they mean for directories in it is
//! another matter: which one an event is of, it does not say. So what they say is told and believed for the moment,
//! and each such name is in doubt until it has been looked at (`settle`).

use rustix::fs::inotify::ReadFlags;

use super::nodes::{Doubt, Told, Watch};
use super::work::Work;
use crate::types::FileKind;
use crate::watch::change::What;
use crate::watch::inotify::Event;

/// A name in a directory.
type Place<'a> = (usize, &'a [u8]);

impl Work<'_> {
    /// Looks at an event by itself.
    pub(super) fn look_at(&mut self, event: &Event) {
        let Some(watch) = event.watch else {
            let dir = self.scope.dir.display();
            let why = "the kernel had no room for more events (fs.inotify.max_queued_events)";
            return self.end(format!("overflow: changes of {dir} are missing, as {why}"));
        };
        for node in self.nodes.of(Some(watch)) {
            if event.mask.contains(ReadFlags::IGNORED) {
                self.lost_watch(node);
            } else if self.nodes.slab.contains(node) {
                match event.name.is_empty() {
                    true => self.of_itself(node, event.mask),
                    false => self.of_entry(node, event),
                }
            }
        }
    }

    /// The kernel has given up a watch, as the directory is gone or its file system unmounted.
    fn lost_watch(&mut self, node: usize) {
        if self.nodes.root == Some(node) {
            return self.end(format!("{} is no longer watched", self.scope.dir.display()));
        }
        self.nodes.unbind(node, Watch::Lost);
        self.nodes.doubt_place(node);
    }

    /// What happened to a directory itself. But for the root, its parent is told, too.
    fn of_itself(&mut self, node: usize, mask: ReadFlags) {
        if self.nodes.root != Some(node) {
            return;
        }
        let tell = |what| {
            self.scope.log.write(what, FileKind::Directory, self.scope.id.1, Vec::new());
        };
        if mask.intersects(ReadFlags::ATTRIB | ReadFlags::MODIFY) {
            tell(What::Attributes);
        }
        if mask.contains(ReadFlags::DELETE_SELF) {
            tell(What::Remove);
            self.stop();
        } else if mask.contains(ReadFlags::MOVE_SELF) {
            // To where is not said, so new directories in it would not be found.
            tell(What::Rename { to: Vec::new() });
            self.stop();
        } else if mask.contains(ReadFlags::UNMOUNT) {
            self.end(format!("{} was unmounted", self.scope.dir.display()));
        }
    }

    fn of_entry(&mut self, node: usize, event: &Event) {
        let Event { mask, name, .. } = event;
        let is_dir = mask.contains(ReadFlags::ISDIR);
        if mask.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            return self.come((node, name), is_dir);
        }
        if mask.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            // An exchange that is not known as one says last that the name is gone, which it is not.
            let is_moved = mask.contains(ReadFlags::MOVED_FROM);
            return self.go((node, name), is_dir, is_dir || is_moved);
        }
        if self.nodes.told(node, name) == Some(Told::Nothing) {
            return;
        }
        // A directory is modified where its time is set and no other.
        let what = match mask.contains(ReadFlags::MODIFY) && !is_dir {
            true => What::Write,
            false => What::Attributes,
        };
        self.tell(what, kind(is_dir), 0, self.nodes.path_of(node, name));
        // It may be readable by now.
        let child = self.nodes.child(node, name).and_then(|child| self.nodes.slab.get(child));
        if child.is_some_and(|child| child.watch == Watch::Not) {
            self.nodes.doubt(node, name, Doubt::of(Told::Directory));
        }
    }

    /// An entry has come.
    fn come(&mut self, (node, name): Place<'_>, is_dir: bool) {
        let told = self.nodes.told(node, name);
        let is_watched = is_dir && self.scope.recursive;
        if self.nodes.is_found(node, name, is_dir) || is_watched && told == Some(Told::Directory) {
            return self.nodes.note(node, name, Told::something(is_dir), is_watched);
        }
        if told == Some(Told::Directory) || told == Some(Told::File) && is_dir {
            self.go((node, name), is_dir, false);
        }
        let path = self.nodes.path_of(node, name);
        let (kind, ino) = match is_dir {
            true => (FileKind::Directory, 0),
            // Something else may be there by now.
            false => self
                .look(&path)
                .filter(|(kind, _)| *kind != FileKind::Directory)
                .unwrap_or((FileKind::Regular, 0)),
        };
        if is_watched {
            self.nodes.insert(Some(node), name);
        }
        self.tell(What::Create, kind, ino, path);
        self.nodes.note(node, name, Told::something(is_dir), is_watched);
        // The sooner it is watched, the less has to be found in it.
        if is_watched && let Err(error) = self.settle_name(node, name) {
            self.fail(&error);
        }
    }

    /// An entry has gone.
    pub(super) fn go(&mut self, (node, name): Place<'_>, is_dir: bool, is_in_doubt: bool) {
        let told = self.nodes.told(node, name).unwrap_or(Told::something(is_dir));
        let child = self.nodes.child(node, name);
        if told != Told::Nothing {
            let kind = kind(told == Told::Directory);
            self.tell(What::Remove, kind, 0, self.nodes.path_of(node, name));
        }
        if let Some(child) = child {
            self.drop_node(child);
        }
        self.nodes.note(node, name, Told::Nothing, is_in_doubt || child.is_some());
    }

    /// An entry has got another name, in the same directory or another.
    pub(super) fn rename(&mut self, old: Place<'_>, new: Place<'_>, is_dir: bool) {
        let is_watched = is_dir && self.scope.recursive;
        let child = self.nodes.child(old.0, old.1);
        let replaced = self.nodes.child(new.0, new.1);
        let within = |node, above: Option<usize>| {
            above.is_some_and(|above| self.nodes.is_within(node, above))
        };
        let told = self.nodes.told(old.0, old.1);
        if told.is_some_and(|told| told != Told::something(is_dir))
            || is_watched && child.is_none()
            || old == new
            // Nothing is moved into itself, or over what it is in.
            || within(new.0, child)
            || within(old.0, replaced)
            || self.nodes.is_found(new.0, new.1, is_dir)
        {
            self.go(old, is_dir, true);
            if self.nodes.slab.contains(new.0) {
                self.come(new, is_dir);
            }
            return;
        }
        let [path, to] = [old, new].map(|(node, name)| self.nodes.path_of(node, name));
        if let Some(replaced) = replaced {
            self.drop_node(replaced);
        }
        if let Some(child) = child {
            self.nodes.rename(child, new.0, new.1);
        }
        self.tell(What::Rename { to }, kind(is_dir), 0, path);
        self.nodes.note(old.0, old.1, Told::Nothing, true);
        self.nodes.note(new.0, new.1, Told::something(is_dir), is_watched);
    }

    /// Two entries have changed places. For each it is said whether it was a directory.
    pub(super) fn exchange(
        &mut self,
        (one, one_is_dir): (Place<'_>, bool),
        (other, other_is_dir): (Place<'_>, bool),
    ) {
        let is_known = |(node, name): Place<'_>, is_dir: bool| {
            let told = self.nodes.told(node, name);
            let is_watched = is_dir && self.scope.recursive;
            told.is_none_or(|told| told == Told::something(is_dir))
                && is_watched == self.nodes.child(node, name).is_some()
        };
        let nests = |(node, name): Place<'_>, (into, _): Place<'_>| {
            let node = self.nodes.child(node, name);
            node.is_some_and(|node| self.nodes.is_within(into, node))
        };
        if !is_known(one, one_is_dir)
            || !is_known(other, other_is_dir)
            || nests(one, other)
            || nests(other, one)
        {
            self.rename(one, other, one_is_dir);
            if [one, other].iter().all(|(node, _)| self.nodes.slab.contains(*node)) {
                self.rename(other, one, other_is_dir);
            }
            return;
        }
        let [path, with] = [one, other].map(|(node, name)| self.nodes.path_of(node, name));
        self.nodes.exchange(one, other);
        self.tell(What::Exchange { with }, kind(one_is_dir), 0, path);
        self.nodes.note(one.0, one.1, Told::something(other_is_dir), true);
        self.nodes.note(other.0, other.1, Told::something(one_is_dir), true);
    }
}

fn kind(is_dir: bool) -> FileKind {
    if is_dir { FileKind::Directory } else { FileKind::Regular }
}
