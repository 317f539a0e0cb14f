//! Where a backup may be restored to that nobody chose: what a bucket or a handle says is the word of
//! whoever could write there, and must not hide a directory of the system.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::failure::{Code, Failure};

/// What lies directly below the root of a fresh Debian, but for `/root`, `/srv`, `/opt`, `/mnt` and
/// `/media`, which are there to be filled. What begins with `lib` is in [`WHOLE`].
const AT_THE_TOP: &[&str] = &[
    "bin",
    "boot",
    "dev",
    "etc",
    "home",
    "initrd.img",
    "initrd.img.old",
    "lost+found",
    "proc",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "var",
    "vmlinuz",
    "vmlinuz.old",
];

/// Directories of which everything is the system's, as are all whose name begins with `lib`, at the top,
/// in `/usr` and in `/usr/local`. Root looks for programs in the local ones first; the last two say who may
/// enter as whom, and what is run when.
const WHOLE: &[&str] = &[
    "/etc",
    "/boot",
    "/dev",
    "/proc",
    "/sys",
    "/run",
    "/bin",
    "/sbin",
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/local/etc",
    "/root/.ssh",
    "/var/spool/cron",
];

/// Refuses `dir`, which a bucket or a handle named, where it is the system's. Gives it without symlinks.
///
/// # Errors
/// [`Code::Mountpoint`], with a hint to name another.
pub(crate) fn check_unchosen(dir: &Path) -> Result<PathBuf, Failure> {
    let refuse = |message: String| {
        Failure::new(Code::Mountpoint, message)
            .hint("name the directory to restore to: thawfs restore BACKUP DIR")
    };
    let shown = dir.display();
    if !dir.is_absolute() || dir.components().any(|component| component == Component::ParentDir) {
        return Err(refuse(format!("the backup was made in {shown}, which is no absolute path")));
    }
    let real = resolve(dir).map_err(|error| {
        refuse(format!("the backup was made in {shown}, which leads nowhere here: {error}"))
    })?;
    if !is_of_the_system(&real) {
        return Ok(real);
    }
    let leads = if real == dir { String::new() } else { format!(" (here {})", real.display()) };
    Err(refuse(format!(
        "the backup was made in {shown}{leads}, which belongs to the system: it is not restored there \
         unasked"
    )))
}

/// `dir` without symlinks, as far as it exists; the rest as it is.
fn resolve(dir: &Path) -> io::Result<PathBuf> {
    for above in dir.ancestors() {
        match above.canonicalize() {
            Ok(real) => {
                let rest = dir.strip_prefix(above).unwrap_or(Path::new(""));
                // Joining nothing would add a slash.
                return Ok(if rest.as_os_str().is_empty() { real } else { real.join(rest) });
            }
            // Not a name that is free: a link to where nothing is.
            Err(error) if above.is_symlink() => return Err(error),
            Err(_) => {}
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Whether `real`, which has no symlinks, is the root, or one of the lists above has it, as written or as
/// this machine's links have it.
fn is_of_the_system(real: &Path) -> bool {
    let names: Vec<&OsStr> = real
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let is_lib = |name: &OsStr| name.as_encoded_bytes().starts_with(b"lib");
    match names.as_slice() {
        [] => return true,
        [first, ..] if is_lib(first) => return true,
        [first, second, ..] if *first == "usr" && is_lib(second) => return true,
        [first, second, third, ..] if *first == "usr" && *second == "local" && is_lib(third) => {
            return true;
        }
        _ => {}
    }
    let leads_to = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_whole = |whole: &&str| {
        let whole = Path::new(whole);
        real.starts_with(whole) || real.starts_with(leads_to(whole))
    };
    let is_at_the_top = |name: &&str| {
        let top = Path::new("/").join(name);
        real == top || real == leads_to(&top)
    };
    WHOLE.iter().any(is_whole) || AT_THE_TOP.iter().any(is_at_the_top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_system_are_refused_and_others_are_not() {
        let refused = "/ // /. /bin /boot /dev /etc /home /initrd.img /vmlinuz.old /lib /lib32 /lib64 /libx32 \
            /lost+found /proc /run /sbin /sys /tmp /usr /var /etc/ /etc/x /boot/efi /dev/shm/x /proc/1 /sys/fs /run/user/1000 \
            /bin/x /sbin/x /lib/x /lib64/x/y /libfoo/x /usr/bin /usr/bin/x /usr/sbin /usr/lib /usr/lib/x \
            /usr/lib64 /usr/libexec/x /usr/local/bin /usr/local/sbin/x /usr/local/lib/x /usr/local/etc \
            /root/.ssh /root/.ssh/x /var/spool/cron/crontabs /var/run/x /var/lock/y /./etc/x //etc \
            /srv/../etc /no-such/../srv srv";
        for dir in refused.split_whitespace() {
            let failure = check_unchosen(Path::new(dir)).unwrap_err();
            assert_eq!(failure.code, Code::Mountpoint, "{dir}");
            assert!(failure.hint.unwrap().contains("DIR"), "{dir}");
        }
        let allowed = "/root /srv /opt /mnt /media /root/x /srv/x /workspace /home/me /home/me/lib \
            /usr/src/app /usr/src /usr/local /usr/local/src/x /usr/share/x /root/.sshx /var/spool/x /var/www /var/lib \
            /var/lib/x /tmp/x /etcetera /etcetera/x /binary /opt/lib /Lib /data/etc /varied /media/lib";
        for dir in allowed.split_whitespace() {
            assert_eq!(check_unchosen(Path::new(dir)), Ok(dir.into()), "{dir}");
        }
    }

    #[test]
    fn it_is_judged_where_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().canonicalize().unwrap();
        let link = |name: &str, target: &str| {
            std::os::unix::fs::symlink(target, at.join(name)).unwrap();
            at.join(name)
        };
        std::fs::create_dir(at.join("real")).unwrap();
        let good = link("good", "real");
        assert_eq!(check_unchosen(&good).unwrap(), at.join("real"));
        assert_eq!(check_unchosen(&good.join("new/er")).unwrap(), at.join("real/new/er"));
        let etc = link("etc", "/etc");
        link("again", "etc");
        for bad in [
            etc.clone(),
            etc.join("new"),
            at.join("again/new"),
            link("root", "/"),
            link("top", "/").join("usr/bin"),
            link("dangling", "/etc/there-is-no-such-thing"),
            link("round", "round"),
        ] {
            assert_eq!(
                check_unchosen(&bad).unwrap_err().code,
                Code::Mountpoint,
                "{}",
                bad.display()
            );
        }
        // Chosen by links, it is allowed as the same named at once.
        assert!(check_unchosen(&link("top2", "/").join("srv/x")).is_ok());
    }
}
