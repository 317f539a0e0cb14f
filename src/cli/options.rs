//! Mount options as mount(8) and fstab write them: `ro,upper=/a\,b,allow_other`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use super::values::{parse_bytes, parse_disk_limit, parse_seconds};
use crate::failure::{Code, Failure};
use crate::fuse::MountFlags;
use crate::overlay::IdRange;
use crate::server::MountRequest;
use crate::store::parse_host;

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
    "nostrictatime",
    "nolazytime",
    "default_permissions",
];

/// Options that say where the archive is and how to reach it, and are flags of other commands.
const OF_SOURCE: &[&str] = &[
    "offset",
    "endpoint",
    "region",
    "profile",
    "anonymous",
    "virtual_host_style",
    "timeout",
    "allow_redirects_to",
];

/// Options that say where a mount's changes go.
const OF_CHANGES: &[&str] = &["upper", "upperdir", "workdir"];

/// Options that other file systems keep and this one cannot, and why.
const REFUSED: &[(&str, &str)] = &[
    ("strictatime", "the kernel does not say when it reads what it has in memory"),
    ("lazytime", "it is the upper's file system that writes times; mount that with it"),
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

/// What advice says of flags, said of options: `--allow-redirects-to=HOST` is `-o allow_redirects_to=HOST`
/// where there are no flags. A command that it names has its own, and ends the advice.
pub(super) fn respell(advice: &str) -> String {
    let as_option = |word: &str| {
        let flag = word.strip_prefix("--")?;
        let end = flag.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(flag.len());
        let (flag, rest) = flag.split_at(end);
        let name = flag.replace('-', "_");
        let is_option = OF_CHANGES.contains(&&*name) || OF_SOURCE.contains(&&*name);
        is_option.then(|| format!("-o {name}{rest}"))
    };
    let mut in_command = false;
    let words = advice.split(' ').map(|word| {
        in_command |= ["aws", "thawfs"].contains(&word);
        if in_command { None } else { as_option(word) }.unwrap_or_else(|| word.to_owned())
    });
    words.collect::<Vec<_>>().join(" ")
}

impl MountOption {
    /// Whether this is the plain option `name`.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// As the kernel would show it among a mount's options.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Some(value) => format!("{}={}", self.name, value.to_string_lossy()),
            None => self.name.clone(),
        }
    }

    /// Refuses what says where a mount's files come from or its changes go, for a restore, which knows
    /// both.
    pub(super) fn check_restorable(&self) -> Result<(), Failure> {
        let name = self.name.as_str();
        if !OF_CHANGES.contains(&name) && !OF_SOURCE.contains(&name) {
            return Ok(());
        }
        let message = format!("the mount option {} is not for a restore", self.name);
        Err(Failure::new(Code::Usage, message).hint(
            "changes go to a new upper each time, and the bucket is named by options of its own; \
             thawfs mount takes all of them",
        ))
    }

    /// Refuses what other file systems keep and this one cannot.
    pub(super) fn check_kept(&self) -> Result<(), Failure> {
        let Some((name, why)) = REFUSED.iter().find(|(name, _)| self.is(name)) else {
            return Ok(());
        };
        let message = format!("the mount option {name} cannot be kept: {why}");
        Err(Failure::new(Code::Usage, message).hint("leave it out"))
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

    /// The value, as `parse` reads it.
    fn parsed<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Failure> {
        parse(&self.text()?).map_err(|error| {
            Failure::new(Code::Usage, format!("the mount option {}: {error}", self.name))
        })
    }

    fn bytes(&self) -> Result<u64, Failure> {
        self.parsed(parse_bytes)
    }

    fn time(&self) -> Result<Duration, Failure> {
        self.parsed(parse_seconds).map(Duration::from_secs)
    }

    /// A number of things, which may end in K, M, G or T but are no bytes.
    fn count(&self) -> Result<usize, Failure> {
        self.parsed(|text| match text.to_ascii_lowercase().ends_with('b') {
            true => Err(format!("{text:?} is no number: it is not counted in bytes")),
            false => parse_bytes(text).map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
        })
    }

    /// A user's or group's number.
    fn id(&self) -> Result<u32, Failure> {
        let text = self.text()?;
        // The last is what system calls take for "none".
        text.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
            let message = format!("the mount option {}: {text:?} is no id", self.name);
            Failure::new(Code::Usage, message).hint("it takes a number, as id -u shows it")
        })
    }

    /// Ranges as fuse-overlayfs writes them: `STORED:SHOWN:COUNT`, and more of them behind another colon.
    fn ranges(&self) -> Result<Vec<IdRange>, Failure> {
        let text = self.text()?;
        let numbers: Option<Vec<u32>> = text.split(':').map(|number| number.parse().ok()).collect();
        let ranges = numbers.and_then(|numbers| {
            let (ranges, []) = numbers.as_chunks::<3>() else { return None };
            let ends = |first: u32, count: u32| count > 0 && first.checked_add(count).is_some();
            let range = |[stored, shown, count]: &[u32; 3]| {
                let fits = ends(*stored, *count) && ends(*shown, *count);
                fits.then_some(IdRange { stored: *stored, shown: *shown, count: *count })
            };
            ranges.iter().map(range).collect()
        });
        ranges.ok_or_else(|| {
            let message = format!("the mount option {}: {text:?} is no list of ranges", self.name);
            Failure::new(Code::Usage, message)
                .hint("it takes STORED:SHOWN:COUNT[:STORED:SHOWN:COUNT…], as 0:100000:65536")
        })
    }

    /// Does what this option says, if it is a generic mount flag; else returns `false`.
    pub(super) fn apply_flag(&self, flags: &mut MountFlags) -> bool {
        flags.apply(match self.name.as_str() {
            // mount(8) keeps `suid` and `dev` from its helpers: they are its own default.
            "allow_suid" => "suid",
            "allow_dev" => "dev",
            other => other,
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
            "rebase" => request.rebase = true,
            "fsname" => request.fsname = Some(self.text()?).filter(|name| !name.is_empty()),
            "allow_other" => request.allow_other = Some(true),
            "uid" | "squash_to_uid" => request.owners.uid = Some(self.id()?),
            "gid" | "squash_to_gid" => request.owners.gid = Some(self.id()?),
            "squash_to_root" => request.owners.squash_to_root = true,
            "uidmapping" => request.owners.uid_ranges = self.ranges()?,
            "gidmapping" => request.owners.gid_ranges = self.ranges()?,
            "no_passthrough" => request.passthrough = false,
            "checkpoints" => request.passthrough = !self.parsed(parse_exactness)?,
            "entry_ttl" => request.entry_ttl = Some(self.time()?),
            "attr_ttl" => request.attr_ttl = Some(self.time()?),
            "max_nodes" => request.max_nodes = Some(self.count()?),
            "offset" => request.source.offset = self.bytes()?,
            "cache_memory" => request.source.cache_memory = self.bytes()?,
            "disk_cache" => request.source.disk_cache = self.parsed(parse_disk_limit)?,
            "share_trace" => request.share_trace = true,
            "fill" => request.fill = Some(self.bytes()?),
            "endpoint" => request.source.access.endpoint = Some(self.text()?),
            "region" => request.source.access.region = Some(self.text()?),
            "profile" => request.source.access.profile = Some(self.text()?),
            "anonymous" => request.source.access.anonymous = true,
            "virtual_host_style" => request.source.access.virtual_host_style = true,
            "timeout" => request.source.access.deadline = self.time()?,
            "allow_redirects_to" => {
                let host = parse_host(&self.text()?).map_err(|reason| {
                    Failure::new(Code::Usage, format!("allow_redirects_to: {reason}"))
                })?;
                request.source.access.allow_redirects_to.push(host);
            }
            _ if self.apply_flag(&mut request.flags) => {}
            other if NOT_OURS.contains(&other) => {}
            other if other.starts_with("x-") || other.starts_with("comment") => {}
            other => {
                self.check_kept()?;
                return Err(Failure::new(Code::Usage, format!("unknown mount option {other:?}"))
                    .hint("see thawfs mount --help and docs/CONFIGURATION.md"));
            }
        }
        Ok(())
    }
}

/// Whether checkpoints are to be of one moment, whoever writes: then the kernel writes nothing by itself.
fn parse_exactness(text: &str) -> Result<bool, String> {
    match text {
        "exact" => Ok(true),
        "fast" => Ok(false),
        other => Err(format!("{other:?} is neither exact nor fast")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::SourceRequest;

    #[test]
    fn ranges_are_triples_of_numbers_that_fit() {
        let ranges = |text: &str| {
            let option = MountOption { name: "uidmapping".into(), value: Some(text.into()) };
            option.ranges().ok()
        };
        let range = |stored, shown, count| IdRange { stored, shown, count };
        assert_eq!(
            ranges("0:1000:1:1:110000:65536"),
            Some(vec![range(0, 1000, 1), range(1, 110_000, 65_536)])
        );
        assert_eq!(ranges("4294967294:0:1"), Some(vec![range(u32::MAX - 1, 0, 1)]));
        for bad in [
            "",
            "0",
            "0:1",
            "0:1:0",
            "0:1:2:3",
            "4294967295:0:1",
            "0:4294967290:6",
            "a:0:1",
            "-1:0:1",
        ] {
            assert_eq!(ranges(bad), None, "{bad}");
        }
    }

    #[test]
    fn flags_are_respelled_and_nothing_else_is() {
        for (advice, expected) in [
            ("--allow-redirects-to=a-b.c follows it", "-o allow_redirects_to=a-b.c follows it"),
            ("add --virtual-host-style", "add -o virtual_host_style"),
            ("leave --anonymous, out", "leave -o anonymous, out"),
            ("name another directory with --upper", "name another directory with -o upper"),
            (
                "it is another's; name one with --workdir",
                "it is another's; name one with -o workdir",
            ),
            ("thawfs unmount --dead /a--b -- x", "thawfs unmount --dead /a--b -- x"),
            (
                "choose a --profile, or credential_process = aws configure export --profile x",
                "choose a -o profile, or credential_process = aws configure export --profile x",
            ),
            ("", ""),
        ] {
            assert_eq!(respell(advice), expected);
        }
    }

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

    /// What a list of options makes of a request.
    fn applied(options: &str) -> Result<MountRequest, Failure> {
        let mut request = MountRequest::new(SourceRequest::new("a"), PathBuf::from("/m"));
        for option in split(OsStr::new(options)) {
            option.apply(&mut request)?;
        }
        Ok(request)
    }

    #[test]
    fn every_number_has_the_unit_of_what_it_measures() {
        let seconds = |text: &str| {
            let request = applied(&format!("entry_ttl={text},attr_ttl={text},timeout={text}"));
            request.map(|request| {
                let ttls = [request.entry_ttl.unwrap(), request.attr_ttl.unwrap()];
                assert_eq!(ttls, [request.source.access.deadline; 2], "{text}");
                ttls[0].as_secs()
            })
        };
        for (text, expected) in
            [("0", 0), ("300", 300), ("300s", 300), ("5m", 300), ("2h", 7200), ("1d", 86_400)]
        {
            assert_eq!(seconds(text).unwrap(), expected, "{text}");
        }
        let count = |text: &str| applied(&format!("max_nodes={text}")).map(|r| r.max_nodes);
        assert_eq!(count("500").unwrap(), Some(500));
        assert_eq!(count("2M").unwrap(), Some(2 << 20));
        for (name, values) in [
            ("entry_ttl", &["5M", "1K", "5MiB", "1.5", "-1", ""][..]),
            ("attr_ttl", &["5M", "1G"]),
            ("timeout", &["5M", "30S"]),
            ("max_nodes", &["5m5", "1MiB", "1kb", "1h", ""]),
            ("offset", &["1h", "5s", "2d"]),
            ("cache_memory", &["1h", "5s"]),
            ("fill", &["1h", "5s"]),
            ("disk_cache", &["1h", "5s"]),
        ] {
            for value in values {
                let failure = applied(&format!("{name}={value}")).unwrap_err();
                assert_eq!(failure.code, Code::Usage, "{name}={value}");
                assert!(failure.message.contains(name), "{name}={value}: {}", failure.message);
            }
        }
    }
}
