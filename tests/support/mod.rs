//! What several test programs share. Each uses a part of it, and none all.
#![allow(dead_code, unreachable_pub)]

pub mod mount;
pub mod s3;
