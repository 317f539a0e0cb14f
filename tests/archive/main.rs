//! The archive format, read and written: against the kernel, squashfs-tools and backhand as oracles, with
//! damaged bytes, and what it costs. One program, so that it is linked once; each file is a subject.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod corpus_compare;
mod fuzz_replay;
mod reader_corpus;
mod reader_costs;
mod reader_hostile;
mod reader_oracles;
mod writer_costs;
mod writer_faults;
mod writer_onto;
mod writer_oracles;
mod writer_support;
mod writer_trees;

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a crate of its own elsewhere")]
mod targets;

#[path = "../support"]
#[allow(dead_code, reason = "the other test program uses the rest")]
mod support {
    pub(crate) mod again;
    pub(crate) mod corpus;
    pub(crate) mod surrounding;
}
