//! What the protocol does not say of who calls, and in whose name the kernel writes for them.

use std::io;

use fuser::Request;
use parking_lot::Mutex;
use rustix::process::Gid;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::overlay::Rights;

/// The map of user numbers of a process whose rights hold for all users' files: those in a user namespace hold
/// for its own users. It is asked for because everybody may read it, which needs no right of ours; the
/// namespace's own number shows to `CAP_SYS_PTRACE` alone.
const ALL_USERS: [&str; 3] = ["0", "0", "4294967295"];

/// An id that is left as it is.
const KEEP: Option<Gid> = None;

/// Who sent a request, whose process is asked for the rest while it waits for the reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    uid: u32,
    gid: u32,
    pid: u32,
    /// What the request itself says of `CAP_FSETID`.
    keeps_setid: Option<bool>,
}

impl Sender {
    pub(super) fn of(request: &Request) -> Self {
        Self { uid: request.uid(), gid: request.gid(), pid: request.pid(), keeps_setid: None }
    }

    /// The same, of whom the kernel has said that they lack `CAP_FSETID`.
    pub(super) fn without_fsetid(self) -> Self {
        Self { keeps_setid: Some(false), ..self }
    }

    fn status(&self) -> io::Result<String> {
        std::fs::read_to_string(format!("/proc/{}/status", self.pid))
    }
}

impl Rights for Sender {
    /// Of a process that cannot be seen from here, user 0 has the right.
    fn keeps_setid(&self) -> bool {
        self.keeps_setid.unwrap_or_else(|| {
            let rights = self.status().ok().and_then(|status| parse_rights(&status));
            let has = rights.map_or(self.uid == 0, |set| set.contains(CapabilitySet::FSETID));
            let users = std::fs::read_to_string(format!("/proc/{}/uid_map", self.pid));
            has && users.map_or(true, |map| map.split_whitespace().eq(ALL_USERS))
        })
    }

    /// A process that cannot be seen from here has the one group that the request names.
    fn is_of(&self, group: u32) -> bool {
        self.gid == group
            || self.status().is_ok_and(|status| parse_groups(&status).any(|id| id == group))
    }
}

/// What a line of a `/proc/PID/status` says.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// The supplementary groups.
fn parse_groups(status: &str) -> impl Iterator<Item = u32> {
    let words = field(status, "Groups").into_iter().flat_map(str::split_whitespace);
    words.filter_map(|id| id.parse().ok())
}

/// The effective capabilities.
fn parse_rights(status: &str) -> Option<CapabilitySet> {
    let bits = u64::from_str_radix(field(status, "CapEff")?.trim(), 16).ok()?;
    Some(CapabilitySet::from_bits_retain(bits))
}

/// Does `register` as a thread of no group and without the right to leave set-id bits on a file that is
/// written to. The kernel writes to a backing file with the rights that we had when it was registered,
/// whoever writes: with all of root's, a bit that is set while the file is open outlives every write.
pub(super) fn without_fsetid<T>(register: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = rustix::thread::capabilities(None)?;
    if !own.effective.contains(CapabilitySet::FSETID) {
        return register();
    }
    // Taking rights up again makes the whole process as dumpable as `fs.suid_dumpable` says.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let dumpable = rustix::process::dumpable_behavior();
    let groups = rustix::process::getgroups()?;
    let group = rustix::process::getegid();
    let less = CapabilitySets { effective: own.effective - CapabilitySet::FSETID, ..own };
    // No file is of this group. Where groups may not be changed, the bit stays on files of our own.
    let none = Gid::from_raw(u32::MAX - 1);
    let changed = rustix::thread::set_thread_groups(&[]).is_ok();
    let changed = changed && rustix::thread::set_thread_res_gid(KEEP, none, KEEP).is_ok();
    rustix::thread::set_capabilities(None, less)?;
    let result = register();
    // What is permitted can always be taken up again.
    rustix::thread::set_capabilities(None, own)?;
    if changed {
        rustix::thread::set_thread_res_gid(KEEP, group, KEEP)?;
        rustix::thread::set_thread_groups(&groups)?;
    }
    // What the kernel calls dumpable for root alone cannot be set, and is what it stays.
    let _ = dumpable.and_then(rustix::process::set_dumpable_behavior);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_a_status_and_their_lack_is_none() {
        let of = |status| parse_groups(status).collect::<Vec<_>>();
        let status = "Name:\tx\nGid:\t1\t1\t1\t1\nFDSize:\t64\nGroups:\t5 77 \nNStgid:\t9\n";
        assert_eq!(of(status), [5, 77]);
        assert_eq!(of("Groups:\t \n"), [0; 0]);
        assert_eq!(of(""), [0; 0]);
    }

    #[test]
    fn rights_are_read_from_a_status_and_their_lack_is_unknown() {
        let has = |status| parse_rights(status).map(|set| set.contains(CapabilitySet::FSETID));
        assert_eq!(has("CapPrm:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n"), Some(true));
        assert_eq!(has("CapEff:\t000001ffffffffef\n"), Some(false));
        assert_eq!(has("CapEff:\t0000000000000010\n"), Some(true));
        assert_eq!(has("CapEff:\tx\n"), None);
        assert_eq!(has(""), None);
    }
}
