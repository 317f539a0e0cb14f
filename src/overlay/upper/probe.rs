//! Choosing the form of an upper, by trying what its file system can do.

use std::ffi::OsStr;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};

use super::super::attr::is_null_device;
use super::super::error::Result;
use super::form::{Form, Whiteouts};
use super::marks::{Mark, Namespace};
use super::open::{Upper, unusable};
use crate::inode_ops::stat_at;

/// What is to be done where the file system will not do.
const ELSEWHERE: &str = "use a directory on ext4, xfs, btrfs, overlayfs or tmpfs";

impl Upper {
    /// The form that this upper has, or is to have.
    pub(super) fn probe(&self, work_dir: &Path) -> Result<Form> {
        let able = self.able(work_dir)?;
        let recorded = self.recorded()?;
        let can_mark = |namespace| able.marks.contains(&namespace);
        let marks = match recorded {
            Some((marks, _)) if can_mark(marks) => Some(marks),
            Some((marks, _)) => {
                let prefix = String::from_utf8_lossy(marks.prefix()).into_owned();
                let problem = format!(
                    "was made with attributes named {prefix}*, which cannot be written here"
                );
                return Err(unusable(&self.path, problem));
            }
            // Trusted attributes do not pass through overlayfs before Linux 6.7, and who reads such an
            // upper, as a lower layer, may be an ordinary user.
            None if !able.devices && can_mark(Namespace::User) => Some(Namespace::User),
            None => able.marks.first().copied(),
        };
        let Some(marks) = marks else {
            let problem = format!(
                "its file system has no extended attributes (or /proc is missing); {ELSEWHERE}"
            );
            return Err(unusable(work_dir, problem));
        };
        let whiteouts = match recorded {
            Some((_, Whiteouts::Files)) => Whiteouts::Files,
            _ if able.devices => Whiteouts::Devices,
            _ => Whiteouts::Files,
        };
        let in_one_step = able.in_one_step && whiteouts == Whiteouts::Devices;
        Ok(Form { marks, whiteouts, in_one_step, by_root: able.by_root })
    }

    /// The form of an upper that has been used, by us or by kernel overlayfs.
    fn recorded(&self) -> Result<Option<(Namespace, Whiteouts)>> {
        let root = self.root_address();
        let Some(namespace) = Namespace::of(&root)? else { return Ok(None) };
        let files = namespace.get(&root, Mark::Opaque)?.as_deref() == Some(b"x");
        let whiteouts = if files { Whiteouts::Files } else { Whiteouts::Devices };
        Ok(Some((namespace, whiteouts)))
    }

    /// Tries what the file system can do for us.
    fn able(&self, work_dir: &Path) -> Result<Able> {
        let draft = self.draft_file(OFlags::RDWR, 0o600)?.0;
        let other = self.draft_file(OFlags::RDWR, 0o600)?.0;
        let file = draft.address();
        // Not one of overlayfs's own, which one below would keep for itself before Linux 6.7.
        let by_root = file.set_xattr(c"trusted.thawfs", b"", XattrFlags::empty()).is_ok();
        let marks = Namespace::ALL
            .into_iter()
            .filter(|namespace| namespace.set(&file, Mark::Impure, b"y").is_ok())
            .collect();
        let rename = |from: &OsStr, to: &OsStr, flags| {
            rustix::fs::renameat_with(&self.work, from, &self.work, to, flags)
        };
        if let Err(errno) = rename(draft.name(), other.name(), RenameFlags::EXCHANGE) {
            let problem = format!("its file system cannot exchange files ({errno}); {ELSEWHERE}");
            return Err(unusable(work_dir, problem));
        }
        let linked = self.draft_name();
        let link = rustix::fs::linkat(
            &self.work,
            draft.name(),
            &self.work,
            linked.as_os_str(),
            AtFlags::empty(),
        );
        self.discard(&linked);
        if let Err(errno) = link {
            let problem = format!("its file system has no hard links ({errno}); {ELSEWHERE}");
            return Err(unusable(work_dir, problem));
        }
        let is_whiteout =
            |name: &OsStr| stat_at(&self.work, name).is_ok_and(|stat| is_null_device(&stat));
        let device = self.draft_name();
        let kind = FileType::CharacterDevice;
        let made =
            rustix::fs::mknodat(&self.work, device.as_os_str(), kind, Mode::empty(), 0).is_ok();
        let devices = made && is_whiteout(&device);
        self.discard(&device);
        let moved = self.draft_name();
        let renamed = rename(draft.name(), &moved, RenameFlags::WHITEOUT).is_ok();
        let in_one_step = renamed && is_whiteout(draft.name());
        self.discard(&moved);
        Ok(Able { marks, devices, in_one_step, by_root })
    }
}

/// What a file system can do.
struct Able {
    /// Attributes that can be written, the better ones first.
    marks: Vec<Namespace>,
    devices: bool,
    in_one_step: bool,
    by_root: bool,
}
