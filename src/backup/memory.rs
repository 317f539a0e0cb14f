//! How much memory caches take unless somebody says.

use std::fs;
use std::path::{Path, PathBuf};

/// What caches take where memory is plenty, in bytes. With the server itself, up to 8 MiB of stored
/// metadata and the kernel's requests in flight that stays about 64 MiB.
const MOST: u64 = 24 << 20;

/// What they need to be of use, in bytes.
const LEAST: u64 = 4 << 20;

/// Memory for chunks and blocks together, in bytes: 24 MiB, or a tenth of the memory that the
/// machine has or that this process's control groups allow, if that is less; at least 4 MiB.
pub(crate) fn default_cache_memory() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_total(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let allowed = memory_groups(&groups, &mounts).filter_map(|(top, group)| limit(&top, &group));
    let least = allowed.chain(machine).min().unwrap_or(u64::MAX);
    (least / 10).clamp(LEAST, MOST)
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The hierarchies of control groups that limit memory, of either version: where each is mounted, and
/// the group that this process is in.
fn memory_groups(groups: &str, mounts: &str) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(1);
        let (top, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let is_memory = |names: &str| names.split(',').any(|name| name == "memory");
        let group = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next()?, fields.next()?);
            let is_it = match kind {
                "cgroup2" => controllers.is_empty(),
                "cgroup" => is_memory(options) && is_memory(controllers),
                _ => false,
            };
            is_it.then_some(group)
        })?;
        Some((top.into(), Path::new(top).join(group.trim_start_matches('/'))))
    })
}

/// The least of the limits of a group and of those above it. Inside a container the group's own path
/// may not exist; the top is then the container's group.
fn limit(top: &Path, group: &Path) -> Option<u64> {
    let read = |group: &Path| {
        ["memory.max", "memory.limit_in_bytes"]
            .into_iter()
            .find_map(|file| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok())
    };
    group.ancestors().take_while(|above| above.starts_with(top)).filter_map(read).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_from_a_group_to_the_top_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (top, group) = (dir.path().join("top"), dir.path().join("top/outer/inner"));
        fs::create_dir_all(&group).unwrap();
        assert_eq!(limit(&top, &group), None);
        fs::write(group.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit(&top, &group), None);
        fs::write(top.join("outer/memory.max"), "268435456\n").unwrap();
        assert_eq!(limit(&top, &group), Some(256 << 20));
        fs::write(top.join("memory.limit_in_bytes"), "134217728\n").unwrap();
        assert_eq!(limit(&top, &group), Some(128 << 20));
        assert_eq!(limit(&top, &top.join("not/here")), Some(128 << 20));
        fs::write(dir.path().join("memory.max"), "1").unwrap();
        assert_eq!(limit(&top, &group), Some(128 << 20), "above the top");
    }

    #[test]
    fn groups_of_both_versions_are_found() {
        let both = "cgroup /cg/cpu cgroup rw,cpu 0 0\ncgroup /cg/memory cgroup rw,memory 0 0\n\
                    cgroup2 /cg/unified cgroup2 rw 0 0\nproc /proc proc rw 0 0\n";
        let groups = "4:memory:/job/1\n1:cpu:/\n0::/session\n";
        let found: Vec<_> = memory_groups(groups, both).collect();
        assert_eq!(
            found,
            [("/cg/memory", "/cg/memory/job/1"), ("/cg/unified", "/cg/unified/session")]
                .map(|(top, group)| (top.into(), group.into()))
        );
        assert_eq!(memory_total("MemFree: 5 kB\nMemTotal:   2048 kB\n"), Some(2 << 20));
    }
}
