//! What requests are worked on with, and where.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::INodeNo;

use super::context::Context;
use super::faults::Faults;
use super::gate::Gate;
use super::io_mode::IoModes;
use super::notify::Device;
use super::options::MountOptions;
use super::prune::Pruner;
use super::work::{Pools, Work};
use crate::overlay::{self, Overlay};
use crate::types::Ino;

/// Most bytes of reads that are worked on at a time. One costs up to three times its length until it is
/// answered: stored, decoded, and joined. As many reads of a usual block as the pool has threads may wait
/// for the network together.
const READ_AT_ONCE: usize = 8 << 20;

/// The same for reads of what is on this machine, which go on while those wait for the network.
const READ_HERE_AT_ONCE: usize = 4 << 20;

/// How long a read waits for its turn: several round trips to the slowest of stores.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// The overlay as fuser serves it.
pub(super) struct Adapter {
    pub(super) pools: Arc<Pools>,
    pub(super) context: Arc<Context>,
}

impl Adapter {
    /// `device` is the one that the file system is mounted from.
    pub(super) fn new(
        overlay: Arc<Overlay>,
        options: &MountOptions,
        device: OwnedFd,
        faults: Arc<Faults>,
    ) -> Self {
        let stack_depth = options.upper_stack_depth;
        let device = Arc::new(Device::new(device));
        Self {
            pools: Arc::new(Pools::new()),
            context: Arc::new(Context {
                overlay,
                modes: IoModes::default(),
                entry_ttl: options.entry_ttl,
                attr_ttl: options.attr_ttl,
                passthrough: AtomicBool::new(stack_depth.is_some()),
                no_opendir: AtomicBool::new(false),
                stack_depth: stack_depth.unwrap_or(0),
                notifier: Arc::new(OnceLock::new()),
                pruner: Pruner::new(options.max_nodes, Arc::clone(&device)),
                device,
                local_reads: Arc::new(Gate::new(READ_HERE_AT_ONCE, READ_PATIENCE)),
                reads: Arc::new(Gate::new(READ_AT_ONCE, READ_PATIENCE)),
                parked: Arc::default(),
                faults,
            }),
        }
    }

    /// Runs `job`, which answers a request, where `work` says.
    pub(super) fn run(&self, work: Work, job: impl FnOnce(&Context) + Send + 'static) {
        self.pools.run(work, &self.context, |context| {
            job(context);
            tracing::debug!("answered");
        });
    }

    /// Runs `operation` where `work` says, or where it may wait for the store's metadata, or data it
    /// would copy, if it comes to that; then has it answered.
    pub(super) fn attempt<T>(
        &self,
        work: Work,
        operation: impl Fn(&Context) -> overlay::Result<T> + Send + 'static,
        answer: impl FnOnce(&Context, overlay::Result<T>) + Send + 'static,
    ) {
        self.pools.attempt(work, Work::Metadata, &self.context, operation, answer);
    }

    /// Has the kernel forget files if it remembers too many.
    pub(super) fn prune(&self) {
        if self.context.pruner.is_due(self.context.overlay.node_count()) {
            let prune = |context: &Context| context.pruner.round(&context.overlay);
            self.pools.run(Work::Local, &self.context, prune);
        }
    }

    /// Where to look something up that has to do with `ino`: here, or where the disk may be waited for.
    pub(super) fn looking(&self, ino: INodeNo) -> Work {
        if self.context.overlay.would_block(Ino(ino.0)) { Work::Local } else { Work::Here }
    }

    /// Where to change something that has to do with `inos`. A change must not stop half way: what may need the
    /// store's metadata goes where that can be waited for.
    pub(super) fn changing<const N: usize>(&self, inos: [INodeNo; N]) -> Work {
        let waits = inos.iter().any(|ino| self.context.overlay.would_block(Ino(ino.0)));
        if waits { Work::Metadata } else { Work::Here }
    }
}
