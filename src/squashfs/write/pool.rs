//! Work that is done by many threads and comes back in the order it was given.

use crossbeam_channel::{Receiver, Sender, bounded};

/// Hands jobs to the threads that run [`Jobs::work`]. They end when it and its clones are gone.
pub(super) struct Pool<Job, Outcome> {
    jobs: Sender<(Job, Sender<Outcome>)>,
}

/// The threads' side of a [`Pool`].
pub(super) struct Jobs<Job, Outcome>(Receiver<(Job, Sender<Outcome>)>);

impl<Job, Outcome> Clone for Jobs<Job, Outcome> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The outcome of one job, now or later.
pub(super) struct Pending<Outcome>(Receiver<Outcome>);

/// The other side has gone, since it failed and says so itself.
#[derive(Debug)]
pub(super) struct Gone;

impl<Job, Outcome> Pool<Job, Outcome> {
    /// A pool that up to `waiting` jobs wait in.
    pub(super) fn new(waiting: usize) -> (Self, Jobs<Job, Outcome>) {
        let (sender, receiver) = bounded(waiting);
        (Self { jobs: sender }, Jobs(receiver))
    }

    /// Gives out `job`; blocks while too many wait.
    pub(super) fn submit(&self, job: Job) -> Result<Pending<Outcome>, Gone> {
        let (reply, outcome) = bounded(1);
        self.jobs.send((job, reply)).map_err(|_| Gone)?;
        Ok(Pending(outcome))
    }
}

impl<Job, Outcome> Jobs<Job, Outcome> {
    /// Does jobs until there will be no more.
    pub(super) fn work(self, mut run: impl FnMut(Job) -> Outcome) {
        for (job, reply) in self.0 {
            // Nobody waits for it any more once another job has failed.
            let _ = reply.send(run(job));
        }
    }
}

impl<Outcome> Pending<Outcome> {
    /// One that is there already.
    pub(super) fn ready(outcome: Outcome) -> Self {
        let (reply, pending) = bounded(1);
        // There is room, and we have the other side.
        let _ = reply.send(outcome);
        Self(pending)
    }

    pub(super) fn wait(self) -> Result<Outcome, Gone> {
        self.0.recv().map_err(|_| Gone)
    }
}
