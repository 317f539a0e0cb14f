//! Whose files a mount shows: what the user asked for, in the user namespace of the server.

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};
use crate::overlay::{IdNamespace, IdOptions, IdRange, IdView, Identity, Overlay};
use crate::squashfs::Archive;
use crate::types::{Ino, Owner};

/// Most numbers that a warning lists.
const LISTED: usize = 5;

/// Whose files are shown to be, by the names and meanings that fuse-overlayfs gives its options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerOptions {
    /// All files are this user's.
    pub uid: Option<u32>,
    /// All files are this group's.
    pub gid: Option<u32>,
    /// All files are root's, so far as the two above do not say otherwise.
    pub squash_to_root: bool,
    /// Users that are shown as others.
    pub uid_ranges: Vec<IdRange>,
    /// Groups that are shown as others.
    pub gid_ranges: Vec<IdRange>,
}

impl OwnerOptions {
    /// What they mean in this process's user namespace.
    ///
    /// # Errors
    /// [`Code::Usage`] where all files are to be somebody's whom the namespace does not have.
    pub(super) fn identity(&self) -> Result<Identity, Failure> {
        let root = self.squash_to_root.then_some(0);
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let view = |sort, all: Option<u32>, ranges: &[IdRange], own| {
            let namespace = namespace(sort, own);
            if let Some(id) = all.filter(|id| !namespace.has(*id)) {
                let message = format!("there is no {sort} {id} in this user namespace");
                return Err(Failure::new(Code::Usage, message)
                    .hint(format!("/proc/self/{sort}_map lists those that it has")));
            }
            Ok(IdView::new(IdOptions { all, ranges: ranges.to_vec() }, namespace))
        };
        Ok(Identity {
            uids: view("uid", self.uid.or(root), &self.uid_ranges, uid)?,
            gids: view("gid", self.gid.or(root), &self.gid_ranges, gid)?,
        })
    }

    /// What a user should be told of the owners in a tree, if one of the options would help.
    pub(super) fn warnings(
        &self,
        tree: &Overlay,
        archive: &Archive,
        identity: &Identity,
    ) -> Vec<String> {
        if *self != Self::default() {
            return Vec::new();
        }
        let own = rustix::process::geteuid().as_raw();
        let mut warnings = Vec::new();
        if let Ok(root) = tree.getattr(Ino::ROOT, None)
            && own != 0
            && root.uid != own
        {
            let group = rustix::process::getegid();
            warnings.push(format!(
                "the files are those of user {}, and you are user {own}: you can do with them what \
                 others may. With -o uid={own},gid={group} all are shown as yours",
                root.uid
            ));
        }
        // The table has users and groups alike. One that cannot be read fails what needs it.
        let mut strange = archive.owners().unwrap_or_default();
        strange.retain(|id| !identity.uids.can_show(*id) || !identity.gids.can_show(*id));
        if let Some(first) = strange.first().copied() {
            let shown = identity.shown(Owner { uid: first, gid: first });
            let more = if strange.len() > LISTED { ", …" } else { "" };
            let listed: Vec<_> = strange.iter().take(LISTED).map(u32::to_string).collect();
            warnings.push(format!(
                "users or groups of the archive have no number in this user namespace ({}{more}): their \
                 files are shown as those of {}:{}. -o uidmapping and gidmapping show them as others",
                listed.join(", "),
                shown.uid,
                shown.gid,
            ));
        }
        warnings
    }
}

/// The numbers of `sort`, `uid` or `gid`, in this process's user namespace; `own` is its own.
fn namespace(sort: &str, own: u32) -> IdNamespace {
    // Without /proc there are no user namespaces either that it could tell of.
    let map = std::fs::read_to_string(format!("/proc/self/{sort}_map")).unwrap_or_default();
    let overflow = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{sort}"));
    let overflow = overflow.ok().and_then(|text| text.trim().parse().ok());
    let known = parse_map(&map);
    IdNamespace { known, own, overflow: overflow.unwrap_or(IdNamespace::default().overflow) }
}

/// First number and count of each line of a `uid_map`; nothing where that is all there are.
fn parse_map(map: &str) -> Vec<(u32, u32)> {
    let line = |line: &str| -> Option<(u32, u32)> {
        let numbers: Vec<u32> = line.split_whitespace().flat_map(str::parse).collect();
        let [first, _outside, count] = *numbers else { return None };
        Some((first, count))
    };
    let known: Vec<_> = map.lines().filter_map(line).collect();
    if known == [(0, u32::MAX)] { Vec::new() } else { known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_read_and_one_of_all_numbers_is_none() {
        assert_eq!(parse_map("         0          0 4294967295\n"), []);
        assert_eq!(parse_map("0 1000 1\n1 110000 65536\n"), [(0, 1), (1, 65_536)]);
        assert_eq!(parse_map(""), []);
    }
}
