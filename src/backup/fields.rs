//! What a handle and the metadata both have, and what may stand in it.

use crate::failure::{Code, Failure};

/// Longest directory, in bytes, as the kernel counts paths.
const MAX_DIR: usize = 4096;

/// What is wrong with a value that a user gave.
pub(super) fn invalid(what: &str, value: &str, reason: &str) -> Failure {
    // A value may be of any length and hold anything.
    let shown: String = value.chars().take(100).collect();
    Failure::new(Code::InvalidBackupConfig, format!("a backup's {what} {reason}: {shown:?}"))
}

/// Whether a backup's directory is one, and else what it has to be.
pub(super) fn check_dir(dir: &str) -> Result<(), &'static str> {
    if !dir.starts_with('/') {
        return Err("must be an absolute path");
    }
    if dir.contains('\0') {
        return Err("must not hold a NUL");
    }
    if dir.split('/').any(|segment| segment == "..") {
        return Err("must have no .. in it");
    }
    if dir.len() > MAX_DIR {
        return Err("must have at most 4096 bytes");
    }
    Ok(())
}
