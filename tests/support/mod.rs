//! What several test programs share. Each uses a part of it, and none all.
#![allow(dead_code, unreachable_pub, reason = "every crate that includes this uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by a panic")]

pub mod mount;
pub mod place;
pub mod presigned;
pub mod s3;
#[allow(clippy::duplicate_mod, reason = "some tests have two kinds of support")]
pub mod surrounding;
pub mod words;
