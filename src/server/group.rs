//! The server's control groups: one of its own, so that ending the job that mounted does not end the
//! mount, but never out of a limit that the caller was under.
//!
//! In hierarchies that only tell which processes belong together (version 2, and `name=systemd` of
//! version 1) the server makes `thawfs-PID` beside its caller's group, where the group that it leaves has
//! no limit which its parent lacks. Hierarchies of version 1 with a controller are there for their limits,
//! and the server stays where it is. What a BPF program denies a group shows in no file: a service with
//! `DevicePolicy=` or `IPAddressDeny=` starts its mounts in a unit of their own, or does not care.

mod limits;

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mounts::{MountInfo, read_mounts};
use crate::names;

/// What our groups' names begin with; the process id follows.
const PREFIX: &str = "thawfs-";

/// Where a server is in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its directory, as far as it is known here.
    #[serde(flatten, with = "names::path")]
    pub path: PathBuf,
    /// Why it is the caller's; `None` where it is the server's own.
    pub because: Option<String>,
}

/// The groups of this server. Dropped, those of its own are removed.
#[derive(Debug, Default)]
pub(super) struct Groups {
    found: Vec<Group>,
    /// The caller's groups, and in each place the one that was made instead.
    entered: Vec<(PathBuf, PathBuf)>,
}

impl Groups {
    /// Stays in the caller's, `because`.
    pub(super) fn stay(because: &str) -> Self {
        let stays = |located: Located| {
            let here = located.map(|(_, path)| Group { path, because: Some(because.to_owned()) });
            here.unwrap_or_else(|unknown| unknown)
        };
        Self { found: locate_all().into_iter().map(stays).collect(), entered: Vec::new() }
    }

    /// Takes groups of its own, where it may and leaves no limit.
    pub(super) fn enter() -> Self {
        let mut groups = Self::default();
        for located in locate_all() {
            let (top, group) = match located {
                Ok(located) => located,
                Err(unknown) => {
                    groups.found.push(unknown);
                    continue;
                }
            };
            match enter_beside(&top, &group) {
                Ok(path) => {
                    groups.entered.push((group, path.clone()));
                    groups.found.push(Group { path, because: None });
                }
                Err(because) => groups.found.push(Group { path: group, because: Some(because) }),
            }
        }
        groups
    }

    /// Where the server is.
    pub(super) fn found(&self) -> &[Group] {
        &self.found
    }

    /// Those that are the server's own, as far as they can be written down.
    pub(super) fn own(&self) -> Vec<PathBuf> {
        let own = self.entered.iter().map(|(_, own)| own.clone());
        own.filter(|own| own.to_str().is_some()).collect()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for (callers, own) in &self.entered {
            // A group with a process in it cannot be removed, so step out first: back, or where that
            // is gone, up. Where neither can be done, the group is left empty, for whoever clears up.
            if move_to(callers).is_err() {
                let _ = own.parent().map(move_to);
            }
            remove_empty(own);
        }
    }
}

/// The directory of a hierarchy's top and that of the group; or what is known of a group that is not to be
/// found here, and why that is so.
type Located = Result<(PathBuf, PathBuf), Group>;

/// As [`locate`], for all hierarchies.
fn locate_all() -> Vec<Located> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = read_mounts().unwrap_or_default();
    own.lines().filter_map(|line| locate(line, &mounts)).collect()
}

/// Why a group stays that lies outside of what the mount of its hierarchy shows.
const HIDDEN: &str = "what is mounted there does not show which one, as in a cgroup namespace";

/// The group that `line` of `/proc/self/cgroup` tells; `None` where the hierarchy has limits alone.
fn locate(line: &str, mounts: &[MountInfo]) -> Option<Located> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    if !matches!(controllers, "" | "name=systemd") {
        return None;
    }
    let mut mounted = mounts.iter().filter(|mount| match controllers {
        "" => mount.fs_type == "cgroup2",
        named => mount.fs_type == "cgroup" && mount.has_option(named),
    });
    let any = mounted.clone().next();
    let unknown = || match (any, controllers) {
        (Some(mount), _) => Group { path: mount.mountpoint.clone(), because: Some(HIDDEN.into()) },
        (None, "") => Group {
            path: path.into(),
            because: Some("control groups of version 2 are not mounted here".into()),
        },
        (None, named) => Group {
            path: path.into(),
            because: Some(format!("the control groups {named} are not mounted here")),
        },
    };
    Some(mounted.find_map(|mount| locate_in(mount, path)).ok_or_else(unknown))
}

/// The top and the group in one mount of the hierarchy; `None` where that does not show it.
fn locate_in(mount: &MountInfo, path: &str) -> Option<(PathBuf, PathBuf)> {
    // In a container, that what is mounted may begin further down.
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    // Outside of what this namespace shows of it.
    if below.components().any(|part| part.as_os_str() == "..") {
        return None;
    }
    let group = mount.mountpoint.join(below);
    // Without a trailing slash where the group is the top.
    Some((mount.mountpoint.clone(), group.components().collect()))
}

/// Moves this process to a new group beside `group`, or says why not.
fn enter_beside(top: &Path, group: &Path) -> Result<PathBuf, String> {
    let parent = match group.parent() {
        Some(parent) if group != top => parent,
        _ => return Err("it is at the top".into()),
    };
    match limits::left_behind(top, group) {
        Ok(None) => {}
        Ok(Some(limit)) => return Err(limit),
        Err(error) => return Err(format!("its limits cannot be read: {error}")),
    }
    let own = parent.join(format!("{PREFIX}{}", std::process::id()));
    // Of a server that was killed and had the same number.
    remove_empty(&own);
    // Who could write to it could make groups in it, and fill it with processes.
    std::fs::DirBuilder::new()
        .mode(0o755)
        .create(&own)
        .map_err(|error| format!("no group can be made in {}: {error}", parent.display()))?;
    if let Err(error) = move_to(&own) {
        remove_empty(&own);
        return Err(format!("{} cannot be entered: {error}", own.display()));
    }
    Ok(own)
}

/// Moves this process, all its threads included.
fn move_to(group: &Path) -> io::Result<()> {
    std::fs::write(group.join("cgroup.procs"), "0")
}

/// Removes a group that a server had for its own, if no process is in it: the kernel sees to that.
pub(super) fn remove_empty(group: &Path) -> bool {
    is_ours(group) && std::fs::remove_dir(group).is_ok()
}

fn is_ours(group: &Path) -> bool {
    let name = group.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix(PREFIX).is_some_and(|pid| pid.parse::<u32>().is_ok())
}

/// Groups of servers that are no more, in all hierarchies that servers make some in.
pub(super) fn find_empty() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in read_mounts().unwrap_or_default() {
        let named = || mount.has_option("name=systemd");
        if mount.fs_type == "cgroup2" || (mount.fs_type == "cgroup" && named()) {
            gather_empty(&mount.mountpoint, &mut found);
        }
    }
    // A hierarchy that is mounted twice shows them twice, which removing does not mind.
    found
}

fn gather_empty(group: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if is_ours(&path) {
            let processes = std::fs::read_to_string(path.join("cgroup.procs"));
            if processes.is_ok_and(|processes| processes.trim().is_empty()) {
                found.push(path);
            }
        } else {
            gather_empty(&path, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fs_type: &str, root: &str, mountpoint: &str, options: &str) -> MountInfo {
        MountInfo {
            id: 2,
            parent: 1,
            device: "0:30".into(),
            root: root.into(),
            mountpoint: mountpoint.into(),
            fs_type: fs_type.into(),
            source: "cgroup".into(),
            options: options.into(),
        }
    }

    #[test]
    fn a_group_is_found_where_its_hierarchy_is_mounted() {
        let mounts = [
            mount("cgroup", "/", "/c/memory", "rw,memory"),
            mount("cgroup", "/", "/c/systemd", "rw,xattr,name=systemd"),
            mount("cgroup2", "/docker/7", "/c/unified", "rw,nsdelegate"),
        ];
        let located = |line: &str, mounts: &[MountInfo]| {
            locate(line, mounts).map(|located| match located {
                Ok((top, group)) => (top.display().to_string(), group.display().to_string()),
                Err(Group { path, because }) => (path.display().to_string(), because.unwrap()),
            })
        };
        for (line, expected) in [
            ("4:memory:/job", None),
            ("1:name=systemd:/job", Some(("/c/systemd", "/c/systemd/job"))),
            ("1:name=other:/job", None),
            ("0::/docker/7", Some(("/c/unified", "/c/unified"))),
            ("0::/docker/7/a:b", Some(("/c/unified", "/c/unified/a:b"))),
            ("0::/docker/8", Some(("/c/unified", HIDDEN))),
            ("0::/docker/7/../8", Some(("/c/unified", HIDDEN))),
            ("", None),
        ] {
            let expected = expected.map(|(top, group)| (top.to_owned(), group.to_owned()));
            assert_eq!(located(line, &mounts), expected, "{line}");
        }
        // Seen from a namespace: the whole hierarchy, and what was mounted in it.
        let outside = mount("cgroup2", "/../..", "/c/outside", "rw");
        let inside = mount("cgroup2", "/", "/c/inside", "rw");
        for (mounts, expected) in [
            (vec![outside.clone()], ("/c/outside", HIDDEN)),
            (vec![outside, inside], ("/c/inside", "/c/inside")),
            (vec![], ("/", "control groups of version 2 are not mounted here")),
        ] {
            let expected = (expected.0.to_owned(), expected.1.to_owned());
            assert_eq!(located("0::/", &mounts), Some(expected));
        }
    }

    #[test]
    fn only_what_has_our_name_is_ours() {
        for (name, ours) in [
            ("/c/thawfs-1", true),
            ("/c/thawfs-", false),
            ("/c/thawfs-1/x", false),
            ("/c/thawfs-x", false),
            ("/c/mythawfs-1", false),
        ] {
            assert_eq!(is_ours(Path::new(name)), ours, "{name}");
        }
    }
}
