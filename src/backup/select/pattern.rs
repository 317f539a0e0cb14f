//! What `--exclude` takes: the patterns that Cloudflare's sandbox SDK hands to mksquashfs.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::wildcard::Wildcard;

/// The longest path in bytes.
const PATH_MAX: usize = 4096;

/// A pattern that leaves out everything below any directory whose path ends as it says.
///
/// The SDK gives each pattern P to mksquashfs twice: `P`, which is matched at the packed
/// directory's top, and `... P`, which is matched at any depth, the top included. So the second is
/// all that counts.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// One for each name at the end of a path. Never empty.
    components: Vec<Wildcard>,
}

impl Pattern {
    /// Parses what [`normalise`] made of an option. The error says what is wrong with it.
    pub(super) fn parse(pattern: &str) -> Result<Self, String> {
        // mksquashfs refuses the first three. Of the others it takes no notice, and matches nothing.
        if ["/", "./", "../"].iter().any(|start| pattern.starts_with(start)) {
            return Err("begins with /, ./ or ../; it is matched below the packed directory".into());
        }
        if pattern.len() > PATH_MAX {
            return Err(format!("is longer than {PATH_MAX} bytes, as no path is"));
        }
        if pattern.contains('\0') {
            return Err("has a NUL in it".into());
        }
        let names = || pattern.split('/').filter(|name| !name.is_empty());
        if names().any(|name| matches!(name, "." | "..")) {
            return Err("has a component . or .., which no path below the directory has".into());
        }
        let components: Vec<_> =
            names().map(|name| Wildcard::parse(name.as_bytes())).collect::<Result<_, _>>()?;
        if components.is_empty() {
            return Err("names nothing".into());
        }
        Ok(Self { components })
    }

    /// Whether the path ends as the pattern says.
    pub(super) fn matches(&self, path: &Path) -> bool {
        let mut names = path.iter().rev();
        // The last component first: few names get past it.
        (self.components.iter().rev())
            .all(|component| names.next().is_some_and(|name| component.matches(name.as_bytes())))
    }

    /// The name, if all the pattern says is that.
    pub(super) fn as_name(&self) -> Option<&[u8]> {
        match self.components.as_slice() {
            [component] => component.as_name(),
            _ => None,
        }
    }
}

/// Takes `**` out of a pattern, as the SDK does for mksquashfs, which has no such thing: at the
/// beginning and between slashes it is implied, at the end it would spare the directory itself.
/// `None` if nothing is left.
pub(super) fn normalise(pattern: &str) -> Option<String> {
    let mut normal = pattern;
    while let Some(rest) = normal.strip_prefix("**/") {
        normal = rest;
    }
    let mut normal = normal.to_owned();
    while normal.contains("/**/") {
        normal = normal.replace("/**/", "/");
    }
    let normal = normal.strip_suffix("/**").unwrap_or(&normal);
    (!matches!(normal, "" | "**")).then(|| normal.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_the_sdk_does() {
        // What packages/shared/src/backup.ts of cloudflare/sandbox-sdk returns for each.
        let cases = [
            ("node_modules", Some("node_modules")),
            ("**/node_modules/.cache", Some("node_modules/.cache")),
            ("**/**/x", Some("x")),
            ("dist/**", Some("dist")),
            ("a/**/b", Some("a/b")),
            ("a/**/**/b", Some("a/b")),
            ("a/**/**", Some("a")),
            ("a/**/", Some("a/")),
            ("a**/b", Some("a**/b")),
            ("a/**b", Some("a/**b")),
            ("**x", Some("**x")),
            ("/**/x", Some("/x")),
            ("**", None),
            ("**/", None),
            ("**/**", None),
            ("/**", None),
            ("", None),
        ];
        for (pattern, expected) in cases {
            assert_eq!(normalise(pattern).as_deref(), expected, "{pattern}");
        }
    }
}
