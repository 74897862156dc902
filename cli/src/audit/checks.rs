//! The checks.

pub(super) mod callers;
pub(super) mod copies;
pub(super) mod cuts;
pub(super) mod failures;
pub(super) mod headers;
pub(super) mod keys;
pub(super) mod protocol;
pub(super) mod replay;
