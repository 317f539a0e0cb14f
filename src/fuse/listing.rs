//! Requests for what is in a directory.

use std::ops::ControlFlow;
use std::time::Duration;

use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::adapter::Adapter;
use super::attr::{bare, file_type, undescribed};
use crate::types::Ino;

impl Adapter {
    /// Names alone.
    pub(super) fn list(&self, ino: Ino, offset: u64, mut reply: ReplyDirectory) {
        self.run(self.changing([INodeNo(ino.0)]), move |context| {
            let mut some = false;
            let result = context.overlay.readdir(ino, offset, false, &mut |entry| {
                some = true;
                let full = reply.add(
                    INodeNo(entry.ino.0),
                    entry.next_cookie,
                    file_type(entry.kind),
                    entry.name,
                );
                if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            match result {
                Ok(()) => reply.ok(),
                // What there is comes first. The reader goes on behind it, and then is told.
                Err(_) if some => reply.ok(),
                Err(error) => reply.error(context.failed(&error)),
            }
        });
    }

    /// Names with what a lookup of each would say, which counts as one.
    pub(super) fn list_described(&self, ino: Ino, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.run(self.changing([INodeNo(ino.0)]), move |context| {
            let mut some = false;
            // One TTL serves name and attributes here; the protocol has two, fuser passes one.
            let result = context.overlay.readdir(ino, offset, true, &mut |entry| {
                some = true;
                if let Some(problem) = entry.problem {
                    context.faults.record(problem);
                }
                let ((attr, ttl), generation) = match &entry.attr {
                    Some(attr) => (context.told(attr), attr.generation),
                    // These two have none, and are not looked up by being listed.
                    None if entry.name == "." || entry.name == ".." => {
                        ((bare(entry.ino, entry.kind), Duration::ZERO), 0)
                    }
                    None => ((undescribed(entry.ino, entry.kind), Duration::ZERO), 0),
                };
                let ttl = context.entry_ttl.min(ttl);
                let full = reply.add(
                    INodeNo(entry.ino.0),
                    entry.next_cookie,
                    entry.name,
                    &ttl,
                    &attr,
                    Generation(generation),
                );
                if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            match result {
                Ok(()) => reply.ok(),
                // What there is comes first: lookups of it are counted. The reader is told next.
                Err(_) if some => reply.ok(),
                Err(error) => reply.error(context.failed(&error)),
            }
        });
    }
}
