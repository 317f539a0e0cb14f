//! What a bucket and an archive in it cost from here: [`requests()`] times ranged GETs by size and
//! concurrency, [`reading()`] what a mount would do with them, [`advise`] says what follows.
//!
//! All of it only reads, and is bounded: in bytes by [`planned_bytes`], in time by the caller.

mod advice;
mod reading;
mod requests;
mod spread;

pub use advice::{Advice, advise};
pub use reading::{Reading, reading};
pub use requests::{Requests, requests};
pub use spread::Spread;

/// Most bytes that [`requests()`] and [`reading()`] move together, in bytes; small archives take less.
pub fn planned_bytes() -> u64 {
    requests::planned_bytes() + reading::PLANNED_BYTES
}

/// Numbers that look random and are the same in every run (SplitMix64), so that two runs compare.
struct Scatter(u64);

impl Scatter {
    /// A number below `limit`, which is taken for at least 1.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}
