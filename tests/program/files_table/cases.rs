//! What is done, and what is told of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};

/// One thing that is done, in a directory that has `w`, which is watched, and `out`, which is not. Both have a file `f`, and
/// directories `d`, with a file `g`, and `e`.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) act: fn(&Path) -> io::Result<()>,
    /// What is told of all that is below `w`.
    pub(super) recursive: &'static str,
    /// What is told of what is in it alone.
    pub(super) direct: &'static str,
    /// The same of a plain directory, where that differs.
    pub(super) plain: Option<(&'static str, &'static str)>,
}

const fn case(
    name: &'static str,
    act: fn(&Path) -> io::Result<()>,
    recursive: &'static str,
    direct: &'static str,
) -> Case {
    Case { name, act, recursive, direct, plain: None }
}

impl Case {
    /// Where inotify tells otherwise; what has a `?` it may leave out.
    const fn plainly(mut self, recursive: &'static str, direct: &'static str) -> Self {
        self.plain = Some((recursive, direct));
        self
    }
}

/// Not for reading, too: on tmpfs the end of what may have been mapped is told as a write.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    options
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, PermissionsExt::from_mode(mode))
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "make a file",
            |at| options().create_new(true).open(at.join("w/n")).map(drop),
            "CREATE n",
            "CREATE n",
        ),
        case(
            "make and write",
            |at| fs::write(at.join("w/n"), "data"),
            "CREATE n, WRITE n",
            "CREATE n, WRITE n",
        ),
        case(
            "make further below",
            |at| fs::write(at.join("w/d/n"), "data"),
            "CREATE d/n, WRITE d/n",
            "",
        ),
        case("make elsewhere", |at| fs::write(at.join("out/n"), "data"), "", ""),
        case(
            "append",
            |at| OpenOptions::new().append(true).open(at.join("w/f"))?.write_all(b"more"),
            "WRITE f",
            "WRITE f",
        ),
        case(
            "overwrite",
            |at| options().open(at.join("w/f"))?.write_all_at(b"x", 1),
            "WRITE f",
            "WRITE f",
        ),
        case(
            "overwrite further below",
            |at| options().open(at.join("w/d/g"))?.write_all_at(b"x", 1),
            "WRITE d/g",
            "",
        ),
        case("truncate", |at| options().open(at.join("w/f"))?.set_len(1), "WRITE f", "WRITE f"),
        case(
            "truncate by opening",
            |at| File::create(at.join("w/f")).map(drop),
            "WRITE f",
            "WRITE f",
        ),
        case("open and read", |at| fs::read(at.join("w/f")).map(drop), "", ""),
        case("list", |at| fs::read_dir(at.join("w/d"))?.try_for_each(|it| it.map(drop)), "", ""),
        case("chmod", |at| chmod(&at.join("w/f"), 0o600), "CHMOD f", "CHMOD f"),
        case("chmod further below", |at| chmod(&at.join("w/d/g"), 0o600), "CHMOD d/g", ""),
        case("chmod a directory", |at| chmod(&at.join("w/d"), 0o700), "CHMOD d", "CHMOD d"),
        case(
            "chown",
            |at| {
                let stat = fs::metadata(at.join("w/f"))?;
                let ids = (stat.uid(), stat.gid());
                std::os::unix::fs::chown(at.join("w/f"), Some(ids.0), Some(ids.1))
            },
            "CHMOD f",
            "CHMOD f",
        ),
        case(
            "utime",
            |at| {
                let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
                options().open(at.join("w/f"))?.set_modified(time)
            },
            "CHMOD f",
            "CHMOD f",
        )
        .plainly("WRITE f", "WRITE f"),
        case(
            "utime and atime",
            |at| {
                let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
                let times = fs::FileTimes::new().set_modified(time).set_accessed(time);
                options().open(at.join("w/f"))?.set_times(times)
            },
            "CHMOD f",
            "CHMOD f",
        ),
        case(
            "utime of a directory",
            |at| {
                let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
                File::open(at.join("w/d"))?.set_modified(time)
            },
            "CHMOD d",
            "CHMOD d",
        ),
        case(
            "setfattr",
            |at| Ok(rustix::fs::setxattr(at.join("w/f"), "user.x", b"1", XattrFlags::empty())?),
            "CHMOD f",
            "CHMOD f",
        ),
        case("mkdir", |at| fs::create_dir(at.join("w/n")), "CREATE n", "CREATE n"),
        case(
            "mkdir -p",
            |at| fs::create_dir_all(at.join("w/n/m/o")),
            "CREATE n, CREATE n/m, CREATE n/m/o",
            "CREATE n",
        ),
        case(
            "make in a new directory",
            |at| {
                fs::create_dir(at.join("w/n"))?;
                fs::write(at.join("w/n/x"), "data")
            },
            "CREATE n, CREATE n/x, WRITE n/x",
            "CREATE n",
        )
        .plainly("CREATE n, CREATE n/x, WRITE n/x?", "CREATE n"),
        case("symlink", |at| symlink("f", at.join("w/s")), "CREATE s", "CREATE s"),
        case(
            "mkfifo",
            |at| Ok(rustix::fs::mknodat(CWD, at.join("w/p"), FileType::Fifo, Mode::RWXU, 0)?),
            "CREATE p",
            "CREATE p",
        ),
        case("link", |at| fs::hard_link(at.join("w/f"), at.join("w/l")), "CREATE l", "CREATE l"),
        case(
            "link from elsewhere",
            |at| fs::hard_link(at.join("out/f"), at.join("w/l")),
            "CREATE l",
            "CREATE l",
        ),
        case("link to elsewhere", |at| fs::hard_link(at.join("w/f"), at.join("out/l")), "", ""),
        case(
            "write by a name that is elsewhere",
            |at| {
                fs::hard_link(at.join("out/f"), at.join("w/l"))?;
                options().open(at.join("out/f"))?.write_all_at(b"x", 1)
            },
            "CREATE l, WRITE l",
            "CREATE l, WRITE l",
        )
        .plainly("CREATE l", "CREATE l"),
        case(
            "write to what has a name elsewhere, too",
            |at| {
                fs::hard_link(at.join("w/f"), at.join("out/l"))?;
                fs::metadata(at.join("out/l"))?;
                options().open(at.join("w/f"))?.write_all_at(b"x", 1)
            },
            "WRITE f",
            "WRITE f",
        ),
        case(
            "chmod of what has had a name elsewhere first",
            |at| {
                fs::hard_link(at.join("out/f"), at.join("w/l"))?;
                chmod(&at.join("w/l"), 0o600)
            },
            "CREATE l, CHMOD l",
            "CREATE l, CHMOD l",
        ),
        case(
            "write to one of two names",
            |at| {
                fs::hard_link(at.join("w/f"), at.join("w/l"))?;
                options().open(at.join("w/f"))?.write_all_at(b"x", 1)
            },
            "CREATE l, WRITE l, WRITE f",
            "CREATE l, WRITE l, WRITE f",
        )
        .plainly("CREATE l, WRITE f", "CREATE l, WRITE f"),
        case(
            "an unnamed file gets a name",
            |at| {
                let flags = OFlags::TMPFILE | OFlags::RDWR;
                let mut file = File::from(rustix::fs::open(at.join("w"), flags, Mode::RWXU)?);
                file.write_all(b"data")?;
                let name = format!("/proc/self/fd/{}", file.as_raw_fd());
                Ok(rustix::fs::linkat(CWD, name, CWD, at.join("w/n"), AtFlags::SYMLINK_FOLLOW)?)
            },
            "CREATE n",
            "CREATE n",
        ),
        case(
            "rename",
            |at| fs::rename(at.join("w/f"), at.join("w/n")),
            "RENAME f, CREATE n",
            "RENAME f, CREATE n",
        ),
        case(
            "rename a directory",
            |at| fs::rename(at.join("w/d"), at.join("w/n")),
            "RENAME d, CREATE n",
            "RENAME d, CREATE n",
        ),
        case(
            "write in a renamed directory",
            |at| {
                fs::rename(at.join("w/d"), at.join("w/n"))?;
                fs::write(at.join("w/n/x"), "data")
            },
            "RENAME d, CREATE n, CREATE n/x, WRITE n/x",
            "RENAME d, CREATE n",
        ),
        case(
            "rename into a directory",
            |at| fs::rename(at.join("w/f"), at.join("w/d/n")),
            "RENAME f, CREATE d/n",
            "RENAME f",
        )
        .plainly("RENAME f, CREATE d/n", "REMOVE f"),
        case(
            "rename out of a directory",
            |at| fs::rename(at.join("w/d/g"), at.join("w/n")),
            "RENAME d/g, CREATE n",
            "CREATE n",
        ),
        case(
            "rename over",
            |at| fs::rename(at.join("w/d/g"), at.join("w/f")),
            "RENAME d/g, CREATE f",
            "CREATE f",
        ),
        case(
            "rename a directory over an empty one",
            |at| fs::rename(at.join("w/d"), at.join("w/e")),
            "RENAME d, CREATE e",
            "RENAME d, CREATE e",
        ),
        case(
            "rename to another name of it",
            |at| {
                fs::hard_link(at.join("w/f"), at.join("w/l"))?;
                fs::rename(at.join("w/f"), at.join("w/l"))
            },
            "CREATE l",
            "CREATE l",
        ),
        case(
            "write aside and rename over",
            |at| {
                fs::write(at.join("w/.f.new"), "data")?;
                fs::rename(at.join("w/.f.new"), at.join("w/f"))
            },
            "CREATE .f.new, WRITE .f.new, RENAME .f.new, CREATE f",
            "CREATE .f.new, WRITE .f.new, RENAME .f.new, CREATE f",
        ),
        case(
            "exchange",
            |at| exchange(&at.join("w/f"), &at.join("w/d")),
            "RENAME f, RENAME d, CREATE d, CREATE f",
            "RENAME f, RENAME d, CREATE d, CREATE f",
        ),
        case("move in", |at| fs::rename(at.join("out/f"), at.join("w/n")), "CREATE n", "CREATE n"),
        case(
            "move a directory in",
            |at| fs::rename(at.join("out/d"), at.join("w/n")),
            "CREATE n, CREATE n/g",
            "CREATE n",
        ),
        case(
            "write in what was moved in",
            |at| {
                fs::rename(at.join("out/d"), at.join("w/n"))?;
                options().open(at.join("w/n/g"))?.write_all_at(b"x", 1)
            },
            "CREATE n, CREATE n/g, WRITE n/g",
            "CREATE n",
        )
        .plainly("CREATE n, CREATE n/g, WRITE n/g?", "CREATE n"),
        case("move out", |at| fs::rename(at.join("w/f"), at.join("out/n")), "REMOVE f", "REMOVE f"),
        case(
            "move a directory out",
            |at| fs::rename(at.join("w/d"), at.join("out/n")),
            "REMOVE d",
            "REMOVE d",
        ),
        case(
            "write in what was moved out",
            |at| {
                fs::rename(at.join("w/d"), at.join("out/n"))?;
                fs::write(at.join("out/n/x"), "data")
            },
            "REMOVE d",
            "REMOVE d",
        ),
        case(
            "move out and back",
            |at| {
                fs::rename(at.join("w/e"), at.join("out/n"))?;
                File::create(at.join("out/n/x"))?;
                fs::rename(at.join("out/n"), at.join("w/e"))
            },
            "REMOVE e, CREATE e, CREATE e/x",
            "REMOVE e, CREATE e",
        ),
        case(
            "exchange with elsewhere",
            |at| exchange(&at.join("w/f"), &at.join("out/d")),
            "REMOVE f, CREATE f, CREATE f/g",
            "REMOVE f, CREATE f",
        ),
        case("unlink", |at| fs::remove_file(at.join("w/f")), "REMOVE f", "REMOVE f"),
        case(
            "unlink while it is open",
            |at| {
                let file = options().open(at.join("w/f"))?;
                fs::remove_file(at.join("w/f"))?;
                file.write_all_at(b"x", 1)
            },
            "REMOVE f",
            "REMOVE f",
        ),
        case(
            "unlink one of two names",
            |at| {
                fs::hard_link(at.join("w/f"), at.join("w/l"))?;
                fs::remove_file(at.join("w/f"))
            },
            "CREATE l, REMOVE f",
            "CREATE l, REMOVE f",
        ),
        case("rmdir", |at| fs::remove_dir(at.join("w/e")), "REMOVE e", "REMOVE e"),
        case("rm -r", |at| fs::remove_dir_all(at.join("w/d")), "REMOVE d/g, REMOVE d", "REMOVE d"),
        case(
            "rmdir and mkdir again",
            |at| {
                fs::remove_dir(at.join("w/e"))?;
                fs::create_dir(at.join("w/e"))?;
                fs::write(at.join("w/e/x"), "data")
            },
            "REMOVE e, CREATE e, CREATE e/x, WRITE e/x",
            "REMOVE e, CREATE e",
        )
        .plainly("REMOVE e, CREATE e, CREATE e/x, WRITE e/x?", "REMOVE e, CREATE e"),
        case("chmod the watched directory", |at| chmod(&at.join("w"), 0o700), "CHMOD .", "CHMOD ."),
        case(
            "utime of the watched directory",
            |at| {
                let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
                File::open(at.join("w"))?.set_modified(time)
            },
            "CHMOD .",
            "CHMOD .",
        ),
        case(
            "rename the watched directory",
            |at| {
                fs::rename(at.join("w"), at.join("v"))?;
                fs::write(at.join("v/n"), "data")
            },
            "RENAME ., CREATE n, WRITE n",
            "RENAME ., CREATE n, WRITE n",
        )
        .plainly("RENAME .", "RENAME ."),
        case(
            "rename what the watched directory is in",
            |at| {
                fs::rename(at, at.with_extension("moved"))?;
                fs::write(at.with_extension("moved").join("w/n"), "data")
            },
            "CREATE n, WRITE n",
            "CREATE n, WRITE n",
        ),
        case(
            "another in the place of the watched directory",
            |at| {
                fs::rename(at.join("w"), at.join("v"))?;
                fs::create_dir(at.join("w"))?;
                fs::write(at.join("w/n"), "data")
            },
            "RENAME .",
            "RENAME .",
        ),
        case(
            "exchange the watched directory",
            |at| {
                exchange(&at.join("w"), &at.join("out"))?;
                fs::write(at.join("w/n"), "data")
            },
            "RENAME .",
            "RENAME .",
        ),
        case(
            "rm -r the watched directory",
            |at| {
                fs::remove_file(at.join("w/f"))?;
                fs::remove_dir(at.join("w/e"))?;
                fs::remove_dir_all(at.join("w/d"))?;
                fs::remove_dir(at.join("w"))
            },
            "REMOVE f, REMOVE e, REMOVE d/g, REMOVE d, REMOVE .",
            "REMOVE f, REMOVE e, REMOVE d, REMOVE .",
        ),
        case(
            "rm -r the watched directory, and make it again",
            |at| {
                fs::remove_dir_all(at.join("w/d"))?;
                fs::remove_dir(at.join("w/e"))?;
                fs::remove_file(at.join("w/f"))?;
                fs::remove_dir(at.join("w"))?;
                fs::create_dir(at.join("w"))?;
                fs::write(at.join("w/n"), "data")
            },
            "REMOVE d/g, REMOVE d, REMOVE e, REMOVE f, REMOVE ., CREATE ., CREATE n, WRITE n",
            "REMOVE d, REMOVE e, REMOVE f, REMOVE ., CREATE ., CREATE n, WRITE n",
        )
        .plainly(
            "REMOVE d/g, REMOVE d, REMOVE e, REMOVE f, REMOVE .",
            "REMOVE d, REMOVE e, REMOVE f, REMOVE .",
        ),
        case(
            "another over the watched directory",
            |at| {
                fs::remove_dir_all(at.join("w/d"))?;
                fs::remove_dir(at.join("w/e"))?;
                fs::remove_file(at.join("w/f"))?;
                fs::create_dir(at.join("new"))?;
                fs::write(at.join("new/n"), "data")?;
                fs::rename(at.join("new"), at.join("w"))
            },
            "REMOVE d/g, REMOVE d, REMOVE e, REMOVE f, CREATE ., CREATE n",
            "REMOVE d, REMOVE e, REMOVE f, CREATE ., CREATE n",
        )
        .plainly(
            "REMOVE d/g, REMOVE d, REMOVE e, REMOVE f, CHMOD .?, REMOVE .",
            "REMOVE d, REMOVE e, REMOVE f, CHMOD .?, REMOVE .",
        ),
        case(
            "another in the place of what the watched directory was in",
            |at| {
                let new = at.with_extension("new");
                fs::create_dir_all(new.join("w"))?;
                fs::write(new.join("w/n"), "data")?;
                fs::remove_dir_all(at.join("w/d"))?;
                fs::remove_dir(at.join("w/e"))?;
                fs::remove_file(at.join("w/f"))?;
                fs::remove_dir(at.join("w"))?;
                fs::remove_dir_all(at)?;
                fs::rename(new, at)
            },
            "REMOVE d/g, REMOVE d, REMOVE e, REMOVE f, REMOVE ., CREATE ., CREATE n",
            "REMOVE d, REMOVE e, REMOVE f, REMOVE ., CREATE ., CREATE n",
        )
        .plainly(
            "REMOVE d/g, REMOVE d, REMOVE e, REMOVE f, REMOVE .",
            "REMOVE d, REMOVE e, REMOVE f, REMOVE .",
        ),
    ]
}
