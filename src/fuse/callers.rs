//! What the protocol does not say of who calls, and in whose name the kernel writes for them.

use std::io;

use fuser::Request;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The groups of a caller.
pub(super) struct Groups {
    gid: u32,
    supplementary: Vec<u32>,
}

impl Groups {
    /// Of who sent `request`. A caller whose process cannot be seen from here has the one group that
    /// the request names.
    pub(super) fn of(request: &Request) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{}/status", request.pid()));
        let supplementary = status.map(|status| parse_groups(&status)).unwrap_or_default();
        Self { gid: request.gid(), supplementary }
    }

    pub(super) fn contains(&self, group: u32) -> bool {
        self.gid == group || self.supplementary.contains(&group)
    }
}

/// The supplementary groups in a `/proc/PID/status`.
fn parse_groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.into_iter().flat_map(str::split_whitespace).filter_map(|id| id.parse().ok()).collect()
}

/// Does `register` without this thread's right to leave setuid bits on a file that is written to. The
/// kernel writes to a backing file with the rights that we had when it was registered, whoever writes:
/// with all of root's, a bit that is set while the file is open outlives every write.
pub(super) fn without_fsetid<T>(register: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = rustix::thread::capabilities(None)?;
    if !own.effective.contains(CapabilitySet::FSETID) {
        return register();
    }
    let less = CapabilitySets { effective: own.effective - CapabilitySet::FSETID, ..own };
    rustix::thread::set_capabilities(None, less)?;
    let result = register();
    // What is permitted can always be taken up again.
    rustix::thread::set_capabilities(None, own)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_a_status_and_their_lack_is_none() {
        let status = "Name:\tx\nGid:\t1\t1\t1\t1\nFDSize:\t64\nGroups:\t5 77 \nNStgid:\t9\n";
        assert_eq!(parse_groups(status), [5, 77]);
        assert_eq!(parse_groups("Groups:\t \n"), [0; 0]);
        assert_eq!(parse_groups(""), [0; 0]);
    }
}
