//! Percentiles of durations.

use std::time::Duration;

use serde::Serialize;

/// How long something took, over all times it was done. In seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How often it was done.
    pub count: usize,
    /// Half of them took at most this long.
    pub p50: f64,
    /// Nine of ten did.
    pub p90: f64,
    /// 99 of 100 did; the longest where there are fewer.
    pub p99: f64,
}

impl Spread {
    /// Of what was measured; none of nothing.
    pub fn new(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        // Nearest rank: a percentile is always a time that was measured.
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times.get(rank - 1).map(Duration::as_secs_f64)
        };
        Some(Self { count: times.len(), p50: at(50)?, p90: at(90)?, p99: at(99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let millis =
            |times: &[u64]| Spread::new(times.iter().copied().map(Duration::from_millis).collect());
        assert_eq!(millis(&[]), None);
        assert_eq!(millis(&[7]), Some(Spread { count: 1, p50: 0.007, p90: 0.007, p99: 0.007 }));
        assert_eq!(
            millis(&[4, 1, 3, 2]),
            Some(Spread { count: 4, p50: 0.002, p90: 0.004, p99: 0.004 })
        );
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(millis(&hundred), Some(Spread { count: 100, p50: 0.05, p90: 0.09, p99: 0.099 }));
    }
}
