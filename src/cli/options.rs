//! Mount options as mount(8) and fstab write them: `ro,upper=/a\,b,allow_other`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use super::args::{parse_bytes, parse_disk_limit};
use crate::failure::{Code, Failure};
use crate::server::MountRequest;

/// Options that speak to mount(8), systemd or fstab and mean nothing here.
const NOT_OURS: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "default_permissions",
];

/// Options passed to the kernel as they are.
const FLAGS: &[&str] = &[
    "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime", "sync", "async",
    "dirsync",
];

/// One option: its name, and its value behind the first `=`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountOption {
    name: String,
    value: Option<OsString>,
}

/// Splits at commas; a backslash keeps the next byte as it is.
pub(super) fn split(options: &OsStr) -> Vec<MountOption> {
    let mut words = vec![Vec::new()];
    let mut bytes = options.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' => words.push(Vec::new()),
            b'\\' => {
                if let (Some(word), Some(kept)) = (words.last_mut(), bytes.next()) {
                    word.push(*kept);
                }
            }
            byte => {
                if let Some(word) = words.last_mut() {
                    word.push(*byte);
                }
            }
        }
    }
    words
        .into_iter()
        .filter(|word| !word.is_empty())
        .map(|word| {
            let mut parts = word.splitn(2, |byte| *byte == b'=');
            let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
            let value = parts.next().map(|value| OsString::from_vec(value.to_vec()));
            MountOption { name, value }
        })
        .collect()
}

impl MountOption {
    /// Whether this is the plain option `name`.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// Refuses what says where a mount's files come from or its changes go, for a restore, which knows
    /// both.
    pub(super) fn check_restorable(&self) -> Result<(), Failure> {
        const SET_BY_RESTORE: &[&str] = &[
            "upper",
            "upperdir",
            "workdir",
            "offset",
            "endpoint",
            "region",
            "profile",
            "anonymous",
            "virtual_host_style",
            "timeout",
        ];
        if !SET_BY_RESTORE.contains(&self.name.as_str()) {
            return Ok(());
        }
        let message = format!("the mount option {} is not for a restore", self.name);
        Err(Failure::new(Code::Usage, message).hint(
            "changes go to a new upper each time, and the bucket is named by options of its own; \
             thawfs mount takes all of them",
        ))
    }

    fn value(&self) -> Result<&OsStr, Failure> {
        self.value.as_deref().ok_or_else(|| {
            Failure::new(Code::Usage, format!("the mount option {} needs a value", self.name))
        })
    }

    fn text(&self) -> Result<String, Failure> {
        Ok(self.value()?.to_string_lossy().into_owned())
    }

    fn path(&self) -> Result<PathBuf, Failure> {
        Ok(PathBuf::from(self.value()?))
    }

    fn number(&self) -> Result<u64, Failure> {
        parse_bytes(&self.text()?).map_err(|error| {
            Failure::new(Code::Usage, format!("the mount option {}: {error}", self.name))
        })
    }

    /// Writes what this option says into `request`.
    pub(super) fn apply(&self, request: &mut MountRequest) -> Result<(), Failure> {
        match self.name.as_str() {
            "ro" => request.read_only = true,
            "rw" => request.read_only = false,
            "upper" | "upperdir" => request.upper = Some(self.path()?),
            "workdir" => request.workdir = Some(self.path()?),
            "keep_upper" => request.keep_upper = true,
            "fsname" => request.fsname = Some(self.text()?),
            "allow_other" => request.allow_other = Some(true),
            "no_passthrough" => request.passthrough = false,
            "entry_ttl" => request.entry_ttl = Some(Duration::from_secs(self.number()?)),
            "attr_ttl" => request.attr_ttl = Some(Duration::from_secs(self.number()?)),
            "max_nodes" => {
                request.max_nodes = Some(usize::try_from(self.number()?).unwrap_or(usize::MAX));
            }
            "offset" => request.source.offset = self.number()?,
            "cache_memory" => request.source.cache_memory = self.number()?,
            "disk_cache" => {
                request.source.disk_cache = parse_disk_limit(&self.text()?).map_err(|error| {
                    Failure::new(Code::Usage, format!("the mount option {}: {error}", self.name))
                })?;
            }
            "share_trace" => request.share_trace = true,
            "fill" => request.fill = Some(self.number()?),
            "endpoint" => request.source.endpoint = Some(self.text()?),
            "region" => request.source.region = Some(self.text()?),
            "profile" => request.source.profile = Some(self.text()?),
            "anonymous" => request.source.anonymous = true,
            "virtual_host_style" => request.source.virtual_host_style = true,
            "timeout" => request.source.deadline = Duration::from_secs(self.number()?),
            // mount(8) keeps `suid` and `dev` from its helpers: they are its own default.
            "allow_suid" => request.flags.push("suid".into()),
            "allow_dev" => request.flags.push("dev".into()),
            flag if FLAGS.contains(&flag) => request.flags.push(flag.to_owned()),
            other if NOT_OURS.contains(&other) => {}
            other if other.starts_with("x-") || other.starts_with("comment") => {}
            other => {
                return Err(Failure::new(Code::Usage, format!("unknown mount option {other:?}"))
                    .hint("see thawfs mount --help and docs/CONFIGURATION.md"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_split_at_bare_commas() {
        let option = |name: &str, value: Option<&str>| MountOption {
            name: name.into(),
            value: value.map(OsString::from),
        };
        for (text, options) in [
            ("", vec![]),
            ("ro", vec![option("ro", None)]),
            (",ro,,rw", vec![option("ro", None), option("rw", None)]),
            ("upper=/a\\,b,x=", vec![option("upper", Some("/a,b")), option("x", Some(""))]),
            ("fsname=a=b\\\\", vec![option("fsname", Some("a=b\\"))]),
        ] {
            assert_eq!(split(OsStr::new(text)), options, "{text}");
        }
    }
}
