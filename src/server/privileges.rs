//! What a server may do. It reads archives that anybody may have made and answers everybody on the
//! machine, so it gives up what it does not need before it does either; and what it knows of credentials is
//! for nobody to read from its memory.
//!
//! Capabilities belong to threads: all of this is done while a server has but one, which the others then
//! take after.

use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::backup::SourceRequest;
use crate::environment::Environment;

/// What root's servers keep, as `docs/CONFIGURATION.md` lists it.
const KEPT: CapabilitySet = CapabilitySet::empty()
    // Files belong to who made them, or to whom the archive says.
    .union(CapabilitySet::CHOWN)
    // The upper is read and written whoever its files belong to. Who may do what was checked by the
    // kernel before, with `default_permissions`.
    .union(CapabilitySet::DAC_OVERRIDE)
    // So are modes, times and attributes set.
    .union(CapabilitySet::FOWNER)
    // A setgid bit that a caller may set would be lost, as the file's group is not the server's.
    .union(CapabilitySet::FSETID)
    // Devices and whiteouts.
    .union(CapabilitySet::MKNOD)
    // `security.capability`.
    .union(CapabilitySet::SETFCAP)
    // A thread leaves its groups while it registers a file that the kernel then writes to by itself for
    // somebody without rights: with ours, set-id bits would stay.
    .union(CapabilitySet::SETGID)
    // mount(2) and umount(2), `trusted.*` attributes, and passthrough.
    .union(CapabilitySet::SYS_ADMIN);

/// Keeps what is in this process's memory, its environment included, from other processes of the user and
/// out of core dumps. A debugger gets at it only with `THAWFS_DEBUGGABLE=1`.
pub(super) fn hide_memory() {
    if Environment::of_process().get("THAWFS_DEBUGGABLE") == Some("1") {
        return;
    }
    set_dumpable(DumpableBehavior::NotDumpable);
}

/// Gives up what serving `source` does not need. To be called by a process that becomes a server, before
/// it opens the source or starts a thread.
pub(crate) fn restrict(source: &SourceRequest) {
    if source.holds_secrets() {
        hide_memory();
    } else {
        set_dumpable(DumpableBehavior::Dumpable);
    }
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        tracing::warn!("{} threads keep the rights that they have", threads - 1);
    }
    if let Err(error) = give_up(source.runs_programs()) {
        tracing::warn!("the server has more rights than it needs: {error}");
    }
}

fn set_dumpable(behavior: DumpableBehavior) {
    if let Err(error) = rustix::process::set_dumpable_behavior(behavior) {
        tracing::warn!("memory is as open to debuggers as before: {error}");
    }
}

/// A program that the user has chosen (`runs_programs`) finds what it would find without us: what it may
/// come to have stays. It may become somebody else, and is to end in time all the same.
fn give_up(runs_programs: bool) -> rustix::io::Result<()> {
    let own = rustix::thread::capabilities(None)?;
    // Who cannot unmount alone needs fusermount3 for that, which is set-user-id.
    let needs_helper = !own.effective.contains(CapabilitySet::SYS_ADMIN);
    if !runs_programs && !needs_helper {
        if own.effective.contains(CapabilitySet::SETPCAP) {
            // Else root would get everything back by executing anything.
            for capability in CapabilitySet::all() - KEPT {
                if rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false) {
                    rustix::thread::remove_capability_from_bounding_set(capability)?;
                }
            }
        }
        rustix::thread::set_no_new_privs(true)?;
    }
    rustix::thread::clear_ambient_capability_set()?;
    let kept = if runs_programs { KEPT | CapabilitySet::KILL } else { KEPT };
    let least = CapabilitySets {
        effective: own.effective & kept,
        permitted: own.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, least)
}
