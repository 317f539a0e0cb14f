//! Keeping the heap of a server small.
//!
//! glibc gives threads arenas of their own, and returns little of what large blocks leave between small
//! ones. So a server starts with two arenas, and takes large blocks from the system one by one: they are
//! few, since [`crate::buffers`] uses them again. Reading 60,000 files for 64 readers at once ended at
//! 100 MiB resident without either, and at 70 MiB with both, as fast. glibc reads the settings once, when
//! a program starts. mimalloc was tried instead, and took several times as much (`docs/decisions/allocator.md`).

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::environment::Environment;

/// What a server starts with, unless the user chose otherwise. The last keeps the heap's end from being
/// returned and taken again for every few blocks, as it is by default where the second is set.
const SETTINGS: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "61440"),
    ("MALLOC_TRIM_THRESHOLD_", "2097152"),
];

/// Has `server` start with a heap that stays small.
pub(super) fn limit(server: &mut Command) {
    let environment = Environment::of_process();
    for (variable, value) in SETTINGS {
        if environment.path(variable).is_none() {
            server.env(variable, value);
        }
    }
}

/// Starts this very program again, in the same process and with the same arguments, where its own
/// heap is not limited yet. Returns where it is, and where the program cannot be started again.
pub(crate) fn restart_limited() {
    let environment = Environment::of_process();
    if SETTINGS.iter().all(|(variable, _)| environment.path(variable).is_some()) {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut program = Command::new("/proc/self/exe");
    program.arg0(arguments.next().unwrap_or_default()).args(arguments);
    limit(&mut program);
    let error = program.exec();
    tracing::debug!("the heap stays as it is: {error}");
}
