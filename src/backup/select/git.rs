//! What `--gitignore` leaves out: what git itself says is ignored.
//!
//! The git program is asked, as the SDK does. A file that matches a rule but is tracked is kept,
//! and only the index tells; the rules themselves come from `.gitignore` at every level, those
//! above the packed directory among them, from `.git/info/exclude` and from `core.excludesFile`.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::failure::{Code, Failure};

/// The untracked paths below a directory that git ignores.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    files: HashSet<Vec<u8>>,
    /// With everything in them.
    directories: HashSet<Vec<u8>>,
    /// The directory itself is ignored, and with it all that is in it.
    all: bool,
}

/// Why git's rules say nothing about a directory.
pub(super) enum Unknown {
    NoGit,
    NoWorkTree,
    Failed(Failure),
}

impl Ignored {
    /// Asks git about the directory `root`.
    ///
    /// Fails where git runs and doesn't answer, for example because the work tree belongs to
    /// somebody else: to go on would put into the backup what was to stay out.
    pub(super) fn below(root: &Path) -> Result<Self, Unknown> {
        let inside = git(root, &["rev-parse", "--is-inside-work-tree"])?;
        if !inside.status.success() {
            let outside = String::from_utf8_lossy(&inside.stderr).contains("not a git repository");
            return Err(if outside { Unknown::NoWorkTree } else { failed(root, &inside) });
        }
        // In a bare repository and below .git the answer is "false".
        if inside.stdout.trim_ascii() != b"true" {
            return Err(Unknown::NoWorkTree);
        }
        let list = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"];
        let listed = git(root, &[list.as_slice(), &["--", "."]].concat())?;
        if !listed.status.success() {
            return Err(failed(root, &listed));
        }
        Ok(Self::parse(&listed.stdout))
    }

    pub(super) fn all(&self) -> bool {
        self.all
    }

    pub(super) fn contains(&self, path: &[u8], is_dir: bool) -> bool {
        self.all || if is_dir { &self.directories } else { &self.files }.contains(path)
    }

    /// Parses git's list, in which directories end with a slash.
    fn parse(listed: &[u8]) -> Self {
        let mut paths: Vec<_> = listed.split(|&b| b == 0).filter(|path| !path.is_empty()).collect();
        paths.sort_unstable();
        let mut ignored = Self::default();
        let mut next = paths.iter().skip(1);
        for path in &paths {
            let next = next.next();
            let Some(directory) = path.strip_suffix(b"/") else {
                ignored.files.insert(path.to_vec());
                continue;
            };
            // Of an ignored directory git lists nothing but itself. One that is listed with what is
            // in it only happens to hold nothing else; it is kept, since programs may want it.
            if next.is_some_and(|next| next.starts_with(path)) {
                continue;
            }
            ignored.all |= directory == b".";
            ignored.directories.insert(directory.to_vec());
        }
        ignored
    }
}

fn git(root: &Path, arguments: &[&str]) -> Result<Output, Unknown> {
    let mut command = Command::new("git");
    command.arg("-C").arg(root).args(arguments).stdin(Stdio::null());
    // What is packed decides which repository is asked, not what a hook that calls us works on.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"] {
        command.env_remove(name);
    }
    // Messages in English; no lock taken to refresh the index.
    command.env("LC_ALL", "C").env("GIT_OPTIONAL_LOCKS", "0");
    command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unknown::NoGit,
        _ => Unknown::Failed(Failure::io("run git in", root, &error)),
    })
}

fn failed(root: &Path, output: &Output) -> Unknown {
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| line.starts_with("fatal:")).or(said.lines().next());
    let line = line.unwrap_or("it said nothing");
    let message = format!("git does not say what is ignored in {}: {line}", root.display());
    let hint = if said.contains("dubious ownership") {
        "add the repository to git's safe.directory, or leave out --gitignore"
    } else {
        "see what `git status` says there, or leave out --gitignore"
    };
    Unknown::Failed(Failure::new(Code::Failed, message).hint(hint))
}
