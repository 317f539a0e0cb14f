//! Object stores behind one narrow trait.

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {}
