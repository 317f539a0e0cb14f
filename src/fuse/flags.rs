//! The flags of a mount that every file system has, by the names that `-o` knows them by.

use rustix::mount::MountFlags as Bits;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

/// Each flag, with the option that sets it and the one that takes it back.
const OPTIONS: [(Bits, &str, Option<&str>); 7] = [
    (Bits::NOSUID, "nosuid", Some("suid")),
    (Bits::NODEV, "nodev", Some("dev")),
    (Bits::NOEXEC, "noexec", Some("exec")),
    (Bits::NOATIME, "noatime", Some("atime")),
    (Bits::NODIRATIME, "nodiratime", Some("diratime")),
    (Bits::SYNCHRONOUS, "sync", Some("async")),
    (Bits::DIRSYNC, "dirsync", None),
];

/// Generic mount flags. By default, as fusermount3 has it for everybody, set-user-id programs gain nothing and
/// devices cannot be opened: an archive is not to be trusted with either, unless whoever mounts it says so.
///
/// On record they are the options that make them of the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<&'static str>")]
pub struct MountFlags(Bits);

impl Default for MountFlags {
    fn default() -> Self {
        Self(Bits::NOSUID | Bits::NODEV)
    }
}

impl MountFlags {
    /// Does what `option` says. Returns whether it is one of these.
    pub fn apply(&mut self, option: &str) -> bool {
        let found = OPTIONS.iter().find(|(_, on, off)| *on == option || *off == Some(option));
        if let Some((flag, on, _)) = found {
            self.0.set(*flag, *on == option);
        }
        found.is_some()
    }

    /// The same, but with those of `bits` that there are options for.
    pub(crate) fn of(bits: Bits) -> Self {
        Self(OPTIONS.iter().fold(Bits::empty(), |all, (flag, ..)| all | (bits & *flag)))
    }

    /// As the kernel has them.
    pub(crate) fn bits(self) -> Bits {
        self.0
    }

    /// Whether all of `flags` are set.
    pub(crate) fn has(self, flags: Bits) -> bool {
        self.0.contains(flags)
    }

    /// Whether reading a file leaves its `st_atime` as it is. The kernel keeps this flag and leaves what
    /// it means to us.
    pub fn no_atime(self) -> bool {
        self.has(Bits::NOATIME)
    }

    /// Whether listing a directory leaves its `st_atime` as it is.
    pub fn no_dir_atime(self) -> bool {
        self.no_atime() || self.has(Bits::NODIRATIME)
    }

    /// The option for the first of them that this process may not ask the kernel for. fusermount3, which
    /// mounts for those who may not themselves, leaves such options out with a line that nobody would see.
    pub fn refused(self) -> Option<&'static str> {
        let may_mount = rustix::thread::capabilities(None)
            .is_ok_and(|own| own.effective.contains(CapabilitySet::SYS_ADMIN));
        let trusted = Self::default().0 - self.0;
        let mut asked = OPTIONS.iter().filter(|(flag, ..)| trusted.contains(*flag));
        asked.find_map(|(_, _, off)| *off).filter(|_| !may_mount)
    }

    /// The options that make these of the default.
    fn options(self) -> impl Iterator<Item = &'static str> {
        let changed = self.0 ^ Self::default().0;
        let changed = OPTIONS.into_iter().filter(move |(flag, ..)| changed.contains(*flag));
        changed.filter_map(move |(flag, on, off)| if self.has(flag) { Some(on) } else { off })
    }
}

/// An option that nobody knows was one of another version, and asks for nothing.
impl From<Vec<String>> for MountFlags {
    fn from(options: Vec<String>) -> Self {
        let mut flags = Self::default();
        for option in options {
            flags.apply(&option);
        }
        flags
    }
}

impl From<MountFlags> for Vec<&'static str> {
    fn from(flags: MountFlags) -> Self {
        flags.options().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> MountFlags {
        let mut flags = MountFlags::default();
        for option in options {
            assert!(flags.apply(option), "{option}");
        }
        flags
    }

    #[test]
    fn of_opposites_the_last_one_counts() {
        for (options, expected) in [
            (&[][..], Bits::NOSUID | Bits::NODEV),
            (&["suid", "dev"], Bits::empty()),
            (&["suid", "nosuid", "dev"], Bits::NOSUID),
            (&["nodev", "noexec", "exec", "sync"], Bits::NOSUID | Bits::NODEV | Bits::SYNCHRONOUS),
            (&["suid", "dev", "noatime", "dirsync"], Bits::NOATIME | Bits::DIRSYNC),
        ] {
            assert_eq!(of(options).bits(), expected, "{options:?}");
        }
        assert!(!MountFlags::default().apply("ro"));
        assert!(of(&["noatime"]).no_dir_atime() && !of(&["nodiratime"]).no_atime());
    }

    #[test]
    fn a_record_has_the_options_that_differ_from_the_default() {
        for (options, record) in [
            (&[][..], "[]"),
            (&["nosuid", "nodev", "atime"], "[]"),
            (&["noatime", "suid", "dirsync"], r#"["suid","noatime","dirsync"]"#),
        ] {
            let flags = of(options);
            assert_eq!(serde_json::to_string(&flags).unwrap(), record);
            assert_eq!(serde_json::from_str::<MountFlags>(record).unwrap(), flags);
        }
        let older = r#"["nodev","suid","of-the-future","suid"]"#;
        assert_eq!(serde_json::from_str::<MountFlags>(older).unwrap(), of(&["suid"]));
    }
}
