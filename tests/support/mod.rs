//! What several test programs share. Each uses a part of it, and none all.

pub(crate) mod again;
#[allow(dead_code, reason = "the other test program uses the rest")]
pub(crate) mod corpus;
#[allow(dead_code, reason = "the other test program uses none of it")]
pub(crate) mod files;
pub(crate) mod mount;
pub(crate) mod place;
pub(crate) mod presigned;
pub(crate) mod s3;
pub(crate) mod surrounding;
#[allow(dead_code, reason = "the other test program uses none of it")]
pub(crate) mod trees;
#[allow(dead_code, reason = "the other test program uses none of it")]
pub(crate) mod watch;
pub(crate) mod words;
