//! Whether a merged layer shows what its run shows. It is opened as at a mount, so that what is looked at is what a mount
//! will find, and nothing that is remembered of the building.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::super::super::Overlay;
use super::super::super::attr::Attr;
use super::super::super::error::{Error, Result};
use super::super::super::lower::LowerEntry;
use super::super::super::node::{Data, InLayer, UpperState};
use super::super::super::xattr::stored_xattrs;
use super::super::{Layer, Part};
use super::{DataAt, MergedLayer, are_same, unmerged};
use crate::inode_ops::list_with;
use crate::types::{FileKind, Ino, Owner};

/// What is known of a file, to compare it: its attributes, but for when it was read; its extended ones; and, of a symbolic
/// link, where it leads.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    attr: Attr,
    xattrs: BTreeSet<(Vec<u8>, Vec<u8>)>,
    target: Option<Vec<u8>>,
}

/// # Errors
/// [`Error::Unusable`] where it does not.
pub(super) fn check(
    overlay: &Overlay,
    merged: &MergedLayer,
    goes_on: &dyn Fn() -> bool,
) -> Result<()> {
    let below = merged.run.below.parts().iter().rev();
    let borrowed = |part: &Arc<Part>| {
        let others = overlay.stack.others.get(part.layer).into_iter().collect();
        Ok(Layer::borrowed(part.layer, overlay.part_fds.get(part)?).made_over(others))
    };
    let mut layers = below.map(borrowed).collect::<Result<Vec<_>>>()?;
    layers.push(Layer::borrowed(merged.layer.serial, Arc::clone(&merged.layer.root)));
    let archive = Arc::clone(overlay.lower.shared());
    let then = Overlay::stacked(archive, layers, None, overlay.options)?;
    let root = then.stack.root_from(merged.layer.serial, then.lower.archive().root());
    let (now_root, then_root) = (overlay.root_of(&merged.run.whole)?, then.root_of(&root)?);
    let mut pending = vec![(merged.run.whole.clone(), root)];
    if now_root.below().archive != then_root.below().archive {
        return Err(differs(b"/"));
    }
    while let Some((a, b)) = pending.pop() {
        if !goes_on() {
            return Err(unmerged("the mount is ending"));
        }
        let (of_a, of_b) = (merged.run.count(&a), merged.run.count(&b));
        let mut names: BTreeSet<Box<[u8]>> = BTreeSet::new();
        for (overlay, whole, count) in [(overlay, &a, of_a), (&then, &b, of_b)] {
            for part in whole.parts().iter().take(count) {
                let listed = list_with(&*overlay.part_fds.get(part)?, OFlags::NOATIME)?;
                names.extend(listed.into_iter().map(|(name, ..)| name.as_bytes().into()));
            }
        }
        if of_b != 1 || !are_same(&a.after(of_a), &b.after(of_b)) {
            return Err(differs(b"a directory"));
        }
        for name in names {
            let (a, b) = (overlay.find_entry(&a, &name)?, then.find_entry(&b, &name)?);
            match (a, b) {
                (None, None) => {}
                (Some(LowerEntry::Layer(a, a_place)), Some(LowerEntry::Layer(b, b_place))) => {
                    let (Some(of_a), Some(of_b)) = (&a.upper, &b.upper) else {
                        return Err(differs(&name));
                    };
                    let same = (a.ino, a.kind, of_a.generation, of_a.null_device)
                        == (b.ino, b.kind, of_b.generation, of_b.null_device)
                        && seen(overlay, a.ino, of_a, &a_place)?
                            == seen(&then, b.ino, of_b, &b_place)?
                        && is_data_same(merged, (of_a, &a_place), of_b);
                    if !same {
                        return Err(differs(&name));
                    }
                    if a.kind == FileKind::Directory {
                        let whole = |of: &UpperState| of.whole.clone().unwrap_or_default();
                        pending.push((whole(of_a), whole(of_b)));
                    }
                }
                _ => return Err(differs(&name)),
            }
        }
    }
    Ok(())
}

fn differs(name: &[u8]) -> Error {
    let name = String::from_utf8_lossy(name).into_owned();
    unmerged(format!("what they would be together shows {name:?} otherwise"))
}

fn seen(overlay: &Overlay, ino: Ino, state: &UpperState, place: &InLayer) -> Result<Seen> {
    let address = overlay.in_layer(place)?;
    let stat = overlay.numbers.identify(&address, address.stat()?)?;
    let mut attr = overlay.attr_of_upper(ino, state, &stat)?;
    let Owner { uid, gid } = overlay.owner_stored(state, &stat);
    (attr.uid, attr.gid, attr.blocks) = (uid, gid, 0);
    (attr.ino, attr.atime) = (ino, attr.mtime);
    if attr.kind == FileKind::Directory {
        (attr.size, attr.nlink) = (0, 1);
    }
    let xattrs = stored_xattrs(&address, overlay.marks)?.into_iter().collect();
    let target = match attr.kind {
        FileKind::Symlink => Some(address.read_link()?),
        _ => None,
    };
    Ok(Seen { attr, xattrs, target })
}

/// Whether the data of both is the same: below the run that of one inode, or else a copy, whose size was compared.
fn is_data_same(merged: &MergedLayer, a: (&UpperState, &InLayer), b: &UpperState) -> bool {
    let (a, _) = a;
    let outside = |state: &UpperState| match &state.data {
        Data::Lower(inode) => Some(DataAt::Archive(*inode)),
        Data::Layer(data) if !merged.run.has(data.dir.layer) => Some(DataAt::of(data)),
        Data::Layer(_) | Data::Upper => None,
    };
    outside(a) == outside(b)
}
