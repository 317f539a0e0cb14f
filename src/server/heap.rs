//! Keeping the heap of a server small.
//!
//! glibc gives threads arenas of their own and returns little of them. Reading a large file and then
//! many small ones through 64 readers ended at 65 to 75 MiB resident, with two arenas at 47 to 50 MiB,
//! as fast. glibc reads the setting once, when a program starts.

use std::os::unix::process::CommandExt;
use std::process::Command;

const VARIABLE: &str = "MALLOC_ARENA_MAX";
const ARENAS: &str = "2";

/// Has `server` start with few arenas, unless the user chose a number.
pub(super) fn limit(server: &mut Command) {
    if std::env::var_os(VARIABLE).is_none() {
        server.env(VARIABLE, ARENAS);
    }
}

/// Starts this very program again, in the same process and with the same arguments, where its own
/// heap is not limited yet. Returns where it is, and where the program cannot be started again.
pub fn restart_limited() {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut program = Command::new("/proc/self/exe");
    program.arg0(arguments.next().unwrap_or_default()).args(arguments);
    limit(&mut program);
    log::debug!("the heap stays as it is: {}", program.exec());
}
