//! Threads that may block, for requests whose answer is not in memory.
//!
//! If a FUSE thread waited for the network, all requests behind it would wait, too. So it answers what it can
//! at once, and hands the rest, reply included, to a pool. Threads start when a job finds none idle, and end
//! after a quiet while: a mount that nobody uses has none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

/// A request with its reply, ready to run to the end.
type Job = Box<dyn FnOnce() + Send>;

/// How long a thread waits for another job before it ends.
const IDLE: Duration = Duration::from_secs(5);

/// Small stacks do: the deepest call is a decoder, which keeps its state on the heap.
const STACK_BYTES: usize = 512 * 1024;

/// A pool that grows on demand up to a bound; past it, jobs queue in order.
pub(crate) struct Pool {
    jobs: Sender<Job>,
    workers: Arc<Workers>,
}

struct Workers {
    /// What its threads are called.
    name: &'static str,
    /// How many there can be.
    most: usize,
    queue: Receiver<Job>,
    /// Threads that live.
    threads: AtomicUsize,
    /// Those of them that wait for a job.
    idle: AtomicUsize,
}

impl Pool {
    /// A pool of up to `most` threads, with none yet.
    pub(crate) fn new(name: &'static str, most: usize) -> Self {
        let (jobs, queue) = crossbeam_channel::unbounded();
        let (threads, idle) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let workers = Workers { name, most, queue, threads, idle };
        Self { jobs, workers: Arc::new(workers) }
    }

    /// Runs `job` on a thread of the pool, soon.
    pub(crate) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        // The pool itself holds a receiver, so the channel cannot be closed.
        let _ = self.jobs.send(Box::new(job));
        if self.workers.queue.len() > self.workers.idle.load(Ordering::SeqCst) {
            self.start_thread();
        }
    }

    fn start_thread(&self) {
        let grown =
            self.workers.threads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |threads| {
                (threads < self.workers.most).then_some(threads + 1)
            });
        if grown.is_err() {
            return;
        }
        let living = Living(Arc::clone(&self.workers));
        let started = std::thread::Builder::new()
            .name(self.workers.name.into())
            .stack_size(STACK_BYTES)
            .spawn(move || living.0.work());
        if let Err(error) = started {
            tracing::warn!("could not start a thread: {error}");
            if self.workers.threads.load(Ordering::SeqCst) == 0 {
                // Nobody is left to take the job: run it here, slowly, rather than never.
                if let Ok(job) = self.workers.queue.try_recv() {
                    job();
                }
            }
        }
    }
}

/// Counts one thread for as long as it lives, a panic included.
struct Living(Arc<Workers>);

impl Drop for Living {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Workers {
    /// Runs jobs until none came for a while.
    fn work(&self) {
        loop {
            self.idle.fetch_add(1, Ordering::SeqCst);
            let job = self.queue.recv_timeout(IDLE);
            self.idle.fetch_sub(1, Ordering::SeqCst);
            // Whoever counted this thread as idle a moment ago left its job in the queue: the last
            // look comes after the count went down.
            match job.or_else(|_| self.queue.try_recv()) {
                Ok(job) => job(),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    const MOST: usize = 64;

    #[test]
    fn as_many_jobs_as_the_bound_run_at_once() {
        let pool = Pool::new("test", MOST);
        let all_there = Arc::new(Barrier::new(MOST + 1));
        for _ in 0..MOST {
            let all_there = Arc::clone(&all_there);
            pool.spawn(move || {
                all_there.wait();
            });
        }
        // Returns only if every job got a thread of its own.
        all_there.wait();
    }

    #[test]
    fn jobs_past_the_bound_run_once_a_thread_is_free() {
        let pool = Pool::new("test", MOST);
        let (sender, receiver) = crossbeam_channel::unbounded();
        let gate = Arc::new(Barrier::new(MOST + 1));
        for index in 0..3 * MOST {
            let (sender, gate) = (sender.clone(), Arc::clone(&gate));
            pool.spawn(move || {
                if index < MOST {
                    gate.wait();
                }
                sender.send(index).unwrap();
            });
        }
        gate.wait();
        let mut done: Vec<usize> = (0..3 * MOST)
            .map(|_| receiver.recv_timeout(Duration::from_secs(20)).unwrap())
            .collect();
        done.sort_unstable();
        assert_eq!(done, (0..3 * MOST).collect::<Vec<_>>());
    }
}
