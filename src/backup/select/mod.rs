//! Which files a backup leaves out.
//!
//! Meant to be what Cloudflare's sandbox SDK leaves out when it is given the same `excludes` and
//! `gitignore`, where that is what it means to do. It differs from it in these points, each of
//! which there loses files or keeps what should go:
//!
//! - A pattern of several components, like `node_modules/.cache`, leaves out just that. So does
//!   mksquashfs from 4.6 on. Before, it takes the `... P` that the SDK gives it by its first
//!   component alone, and all of `node_modules` goes, at any depth.
//! - A file that git ignores is left out where it lies. The SDK leaves out all files whose paths
//!   end in the same way, tracked ones too.
//! - A directory that git ignores is left out itself, not only the files in it.
//! - Names are bytes: spaces at the ends, quotes, newlines and names that are not UTF-8 are taken
//!   as they are, and patterns that begin with `#`, a space or a backslash mean what they say. The
//!   SDK passes both on by lines.

mod git;
mod pattern;
mod wildcard;

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::failure::{Code, Failure};
use git::{Ignored, Unknown};
use pattern::{Pattern, normalise};

const HINT: &str = "a pattern is what paths below the directory end in, such as *.log or build/cache; \
                    a backslash makes the next character an ordinary one";

/// What of a directory is left out of its backup. May be asked from several threads.
#[derive(Debug, Default)]
pub struct Selection {
    /// Patterns that are but one name, as most are.
    names: HashSet<Vec<u8>>,
    patterns: Vec<Pattern>,
    ignored: Ignored,
    warnings: Vec<String>,
}

impl Selection {
    /// Reads the patterns and, with `gitignore`, asks git what it ignores in the directory `root`.
    ///
    /// A pattern is matched, component by component, against the end of each path below `root`. A
    /// leading `**/` means nothing, `/**/` is `/`, and a trailing `/**` or `/` is dropped, so that
    /// files match, too. In a component, `*`, `?`, `[…]` and the groups `@(a|b)`, `?(…)`, `*(…)`, `+(…)` and
    /// `!(…)` are wildcards, by bytes; none but the last matches a leading dot; a backslash makes
    /// the next character an ordinary one.
    ///
    /// With `gitignore`, untracked files that git ignores are left out, and untracked directories
    /// that it ignores with all that is in them. Other repositories within the work tree are kept
    /// whole or left out whole, as git takes them, and so is `.git`. Outside of a work tree, and
    /// without a git program, nothing is left out, which is among the [`Self::warnings`].
    ///
    /// Fails with [`Code::Usage`] for a pattern that mksquashfs refuses or that cannot match
    /// anything, and with [`Code::Failed`] if git does not answer.
    pub fn new(root: &Path, patterns: &[String], gitignore: bool) -> Result<Self, Failure> {
        let mut selection = Self::default();
        for pattern in patterns {
            selection.exclude(pattern)?;
        }
        if gitignore {
            selection.ignore(root)?;
        }
        Ok(selection)
    }

    /// Whether `path`, relative to the packed directory, is left out, and with it, if it is a
    /// directory, all below it. It is for who walks the tree not to ask about what is below.
    pub fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        self.ignored.contains(path.as_os_str().as_bytes(), is_dir)
            || path.file_name().is_some_and(|name| self.names.contains(name.as_bytes()))
            || self.patterns.iter().any(|pattern| pattern.matches(path))
    }

    /// What the user should know: options that came to nothing. One line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn exclude(&mut self, given: &str) -> Result<(), Failure> {
        let Some(normal) = normalise(given) else {
            let warning = format!("exclude pattern {given:?} names nothing and is passed over");
            self.warnings.push(warning);
            return Ok(());
        };
        // mksquashfs's own mark for "at any depth", which every pattern has anyway. Without it the
        // pattern is one more; with it, it is a name that begins with dots.
        let unmarked = normal.strip_prefix("... ");
        for pattern in unmarked.into_iter().chain([normal.as_str()]) {
            let pattern = Pattern::parse(pattern).map_err(|wrong| {
                let message = format!("the exclude pattern {given:?} {wrong}");
                Failure::new(Code::Usage, message).hint(HINT)
            })?;
            match pattern.as_name() {
                Some(name) => drop(self.names.insert(name.to_owned())),
                None => self.patterns.push(pattern),
            }
        }
        Ok(())
    }

    fn ignore(&mut self, root: &Path) -> Result<(), Failure> {
        match Ignored::below(root) {
            Ok(ignored) => {
                if ignored.all() {
                    let warning =
                        format!("git ignores all of {}: it is packed empty", root.display());
                    self.warnings.push(warning);
                }
                self.ignored = ignored;
            }
            Err(Unknown::Failed(failure)) => return Err(failure),
            // The rules alone would leave out files that match and are tracked. The SDK packs
            // everything in both cases.
            Err(Unknown::NoGit) => {
                self.warnings.push("there is no git program: --gitignore leaves nothing out".into())
            }
            Err(Unknown::NoWorkTree) => self.warnings.push(format!(
                "{} is in no git work tree: --gitignore leaves nothing out",
                root.display()
            )),
        }
        Ok(())
    }
}
