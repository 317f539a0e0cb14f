//! Mounts a frozen backup, a squashfs archive in an S3 or R2 bucket, as a live directory.

pub mod cache;
pub mod overlay;
pub mod squashfs;
pub mod store;
pub mod types;
