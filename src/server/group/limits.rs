//! The limits of a control group of version 2, as its files tell them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

/// What is limited: the file, and in files with several lines or values, whose and which.
type Name = (String, String);

/// The first limit of `group` that would be none for a process beside it: what is limited there, and not
/// as strictly in any group above it, up to `top`.
///
/// # Errors
/// When a file cannot be read, so that nothing is known.
pub(super) fn left_behind(top: &Path, group: &Path) -> io::Result<Option<String>> {
    let own = read_limits(group)?;
    let mut above: BTreeMap<Name, f64> = BTreeMap::new();
    for ancestor in group.ancestors().skip(1).take_while(|ancestor| ancestor.starts_with(top)) {
        for (name, value) in read_limits(ancestor)? {
            let least = above.entry(name).or_insert(f64::INFINITY);
            *least = least.min(value);
        }
    }
    let shown = group.display();
    for (name, value) in own {
        if value < above.get(&name).copied().unwrap_or(f64::INFINITY) {
            let (file, part) = name;
            let part = if part.is_empty() { part } else { format!(" ({part})") };
            return Ok(Some(format!("{file} of {shown} is a limit{part}")));
        }
    }
    for file in ["cpuset.cpus.effective", "cpuset.mems.effective"] {
        let read = |group: &Path| read_optional(&group.join(file));
        let (Some(own), Some(parent)) = (read(group)?, group.parent().map(read).transpose()?)
        else {
            continue;
        };
        // Where the parent has none, it is the top, which has all of the machine's.
        if parent.is_none_or(|parent| !numbers(&parent).is_subset(&numbers(&own))) {
            return Ok(Some(format!("{file} of {shown} is a limit")));
        }
    }
    Ok(None)
}

/// Everything that is limited in `group`. Each file that ends so is a limit, whatever the kernel comes up
/// with; `max` is none.
fn read_limits(group: &Path) -> io::Result<Vec<(Name, f64)>> {
    let mut limits = Vec::new();
    for entry in std::fs::read_dir(group)? {
        let name = entry?.file_name();
        let Some(file) = name.to_str() else { continue };
        if (file.ends_with(".max") || file.ends_with(".high"))
            && let Some(text) = read_optional(&group.join(file))?
        {
            let parsed = parse(file, &text).into_iter().filter(|(_, value)| value.is_finite());
            limits.extend(parsed.map(|(part, value)| ((file.to_owned(), part), value)));
        }
    }
    limits.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(limits)
}

/// The values in a file: one (`max`), a quota and its period (`cpu.max`), or for each device or resource
/// one or several with names.
fn parse(file: &str, text: &str) -> Vec<(String, f64)> {
    let mut values = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [quota, period] if file == "cpu.max" => {
                values.push((String::new(), number(quota) / number(period)));
            }
            [value] => values.push((String::new(), number(value))),
            [whose, rest @ ..] => {
                values.extend(rest.iter().map(|word| match word.split_once('=') {
                    Some((which, value)) => (format!("{whose} {which}"), number(value)),
                    None => ((*whose).to_owned(), number(word)),
                }))
            }
        }
    }
    values
}

/// What cannot be read is taken for a limit.
fn number(word: &str) -> f64 {
    /// Some files have the kernel's largest number of pages, in bytes, for `max`: 2^63, less a page.
    const MAX: f64 = (1u64 << 62) as f64;
    match word.parse() {
        Ok(value) if value >= MAX => f64::INFINITY,
        Ok(value) => value,
        Err(_) if word == "max" => f64::INFINITY,
        Err(_) => 0.0,
    }
}

/// A list like `0-3,8`.
fn numbers(list: &str) -> BTreeSet<u32> {
    list.trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

/// `None` where the group has no such file, or one that says nothing of a group of its kind.
fn read_optional(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of a group, below `dir`, as the kernel writes them.
    fn group(dir: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(dir).unwrap();
        for (file, text) in files {
            std::fs::write(dir.join(file), text).unwrap();
        }
    }

    #[test]
    fn a_limit_that_the_groups_above_lack_is_found() {
        const FREE: &[(&str, &str)] = &[
            ("memory.max", "max\n"),
            ("memory.high", "max\n"),
            ("memory.peak", "4096\n"),
            ("cpu.max", "max 100000\n"),
            ("cpu.weight", "100\n"),
            ("pids.max", "max\n"),
            ("io.max", ""),
            ("rdma.max", "mlx4_0 hca_handle=max hca_object=max\n"),
            ("misc.max", "sev max\n"),
            ("cgroup.procs", "1\n"),
        ];
        // The files of the caller's group and of its parent, and the one that is named.
        type Files<'a> = &'a [(&'a str, &'a str)];
        let cases: &[(Files<'_>, Files<'_>, Option<&str>)] = &[
            (&[], &[], None),
            (&[("memory.max", "1048576\n")], &[], Some("memory.max")),
            (&[("memory.max", "1048576\n")], &[("memory.max", "1048576\n")], None),
            (&[("memory.max", "1048577\n")], &[("memory.max", "1048576\n")], None),
            (&[("memory.max", "1048575\n")], &[("memory.max", "1048576\n")], Some("memory.max")),
            (&[("memory.high", "1\n")], &[("memory.max", "1\n")], Some("memory.high")),
            (&[("memory.swap.max", "0\n")], &[], Some("memory.swap.max")),
            (&[("pids.max", "10\n")], &[], Some("pids.max")),
            (&[("pids.max", "max\n")], &[("pids.max", "10\n")], None),
            (&[("cpu.max", "50000 100000\n")], &[], Some("cpu.max")),
            (&[("cpu.max", "50000 100000\n")], &[("cpu.max", "10000 20000\n")], None),
            (&[("cpu.max", "50000 100000\n")], &[("cpu.max", "60000 100000\n")], Some("cpu.max")),
            (&[("io.max", "8:0 rbps=max wbps=1 riops=max wiops=max\n")], &[], Some("8:0 wbps")),
            (
                &[("io.max", "8:0 rbps=2 wbps=max riops=max wiops=max\n")],
                &[("io.max", "8:0 rbps=2 wbps=max riops=max wiops=max\n")],
                None,
            ),
            (
                &[("io.max", "8:0 rbps=2 wbps=max riops=max wiops=max\n")],
                &[("io.max", "8:16 rbps=2 wbps=max riops=max wiops=max\n")],
                Some("8:0 rbps"),
            ),
            (&[("hugetlb.1GB.max", "9223372036854771712\n")], &[], None),
            (&[("hugetlb.1GB.max", "1073741824\n")], &[], Some("hugetlb.1GB.max")),
            (&[("misc.max", "sev 3\n")], &[], Some("misc.max")),
            (&[("new.max", "whatever\n")], &[], Some("new.max")),
            (
                &[("cpuset.cpus.effective", "0-1\n")],
                &[("cpuset.cpus.effective", "0-3\n")],
                Some("cpuset.cpus"),
            ),
            (&[("cpuset.cpus.effective", "0-3\n")], &[("cpuset.cpus.effective", "0,1-3\n")], None),
        ];
        for (own, parent, named) in cases {
            let dir = tempfile::tempdir().unwrap();
            let top = dir.path();
            group(&top.join("a"), FREE);
            group(&top.join("a"), parent);
            group(&top.join("a/b"), FREE);
            group(&top.join("a/b"), own);
            let found = left_behind(top, &top.join("a/b")).unwrap();
            match named {
                None => assert_eq!(found, None, "{own:?} below {parent:?}"),
                Some(named) => {
                    let found = found.unwrap_or_default();
                    assert!(found.contains(named), "{own:?} below {parent:?}: {found}");
                }
            }
            // The same limit two groups up holds as well.
            if !own.iter().any(|(file, _)| file.starts_with("cpuset")) {
                group(&top.join("a"), FREE);
                group(top, parent);
                let found = left_behind(top, &top.join("a/b")).unwrap();
                assert_eq!(found.is_some(), named.is_some(), "{own:?} below {parent:?}");
            }
        }
    }
}
