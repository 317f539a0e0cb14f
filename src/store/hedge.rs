//! Asking a second time for what takes longer than usual.
//!
//! Stores answer most requests in a few tens of milliseconds and some in a second; who asks again after
//! a while gets the usual time nearly always (Dean and Barroso, "The Tail at Scale"). The second answer
//! costs the store a request, so there is a cap on their share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::{BoxFuture, Either, select};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{Counters, ETag, GetRange, Pace, Ranged, ReadRanges, Result};

/// How many of the latest times are kept of each size.
const SAMPLES: usize = 128;
/// How many have to be known before any is called slow.
const LEAST_SAMPLES: usize = 20;
/// No answer is slow before this: the second one would hardly come sooner.
const LEAST_WAIT: Duration = Duration::from_millis(20);
/// At most one request in so many is sent twice.
const ONE_IN: u64 = 20;
/// Sizes whose times are kept apart, in bytes; a larger request is of the last sort.
const SIZES: [u64; 3] = [128 << 10, 1 << 20, 4 << 20];

/// An object whose ranged GETs are sent again, once, when they take longer than nineteen in twenty of
/// their size did. Whichever is answered first counts.
#[derive(Debug)]
pub struct Hedged {
    inner: Arc<dyn ReadRanges>,
    times: [Mutex<Times>; SIZES.len() + 1],
    requests: AtomicU64,
    hedges: AtomicU64,
    won: AtomicU64,
}

/// The latest times of requests of about one size, in microseconds.
#[derive(Debug, Default)]
struct Times {
    samples: Vec<u32>,
    next: usize,
}

impl Times {
    fn note(&mut self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        match self.samples.get_mut(self.next) {
            Some(oldest) => *oldest = micros,
            None => self.samples.push(micros),
        }
        self.next = (self.next + 1) % SAMPLES;
    }

    /// What one in twenty takes longer than, once that can be told.
    fn slow(&self) -> Option<Duration> {
        if self.samples.len() < LEAST_SAMPLES {
            return None;
        }
        let mut samples = self.samples.clone();
        let at = samples.len() * 19 / 20;
        let (_, slow, _) = samples.select_nth_unstable(at);
        Some(Duration::from_micros((*slow).into()).max(LEAST_WAIT))
    }
}

impl Hedged {
    /// Over `inner`.
    pub fn new(inner: Arc<dyn ReadRanges>) -> Self {
        Self {
            inner,
            times: Default::default(),
            requests: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            won: AtomicU64::new(0),
        }
    }

    fn times(&self, range: &GetRange) -> &Mutex<Times> {
        let bytes = match range {
            GetRange::Between(range) => range.end.saturating_sub(range.start),
            GetRange::Last(count) => *count,
        };
        let [small, medium, large, huge] = &self.times;
        match SIZES.iter().position(|size| bytes <= *size) {
            Some(0) => small,
            Some(1) => medium,
            Some(2) => large,
            _ => huge,
        }
    }

    /// Takes one of the requests that may be sent twice.
    fn may_hedge(&self) -> bool {
        let allowed = self.requests.load(Relaxed) / ONE_IN;
        let take = |hedges| (hedges < allowed).then_some(hedges + 1);
        self.hedges.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// The answer to `ask`, or to the same asked again once it has become slow.
    async fn first_of_two<'a>(
        &self,
        slow: Option<Duration>,
        ask: impl Fn() -> BoxFuture<'a, Result<Ranged>>,
    ) -> Result<Ranged> {
        let mut first = ask();
        let Some(slow) = slow else { return first.await };
        if let Ok(answer) = timeout(slow, &mut first).await {
            return answer;
        }
        // Neither where the store has asked for a pause.
        if self.inner.pace().holds_off || !self.may_hedge() {
            return first.await;
        }
        match select(first, ask()).await {
            Either::Left((Ok(answer), _)) => Ok(answer),
            Either::Left((Err(error), second)) => second.await.map_err(|_| error),
            Either::Right((Ok(answer), _)) => {
                self.won.fetch_add(1, Relaxed);
                Ok(answer)
            }
            Either::Right((Err(_), first)) => first.await,
        }
    }
}

#[async_trait]
impl ReadRanges for Hedged {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    async fn get_range(
        &self,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged> {
        self.requests.fetch_add(1, Relaxed);
        let times = self.times(&range);
        let slow = times.lock().slow();
        let started = Instant::now();
        let ask = || self.inner.get_range(range.clone(), expect, piece);
        let answer = self.first_of_two(slow, ask).await;
        if answer.is_ok() {
            times.lock().note(started.elapsed());
        }
        answer
    }

    fn counters(&self) -> Counters {
        Counters {
            hedges: self.hedges.load(Relaxed),
            hedges_won: self.won.load(Relaxed),
            ..self.inner.counters()
        }
    }

    fn pace(&self) -> Pace {
        self.inner.pace()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_is_what_one_in_twenty_takes_longer_than() {
        let mut times = Times::default();
        for n in 0..LEAST_SAMPLES as u64 - 1 {
            times.note(Duration::from_millis(30 + n));
            assert_eq!(times.slow(), None);
        }
        for n in 0..100 {
            times.note(Duration::from_millis(if n % 10 == 0 { 900 } else { 40 }));
        }
        assert_eq!(times.slow(), Some(Duration::from_millis(900)));
        for _ in 0..2 * SAMPLES {
            times.note(Duration::from_millis(1));
        }
        assert_eq!(times.slow(), Some(LEAST_WAIT), "old times are forgotten");
        assert_eq!(times.samples.len(), SAMPLES);
    }
}
