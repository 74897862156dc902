//! [`Retry`] after a failure and [`Recovery`] after a crash, as records keep them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The effect of a failure on the next begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Retry {
    /// There certainly was no effect: the next begin executes.
    Now,
    /// There certainly was no effect, and no begin executes before this time has passed. Prevents
    /// retry storms.
    After(Duration),
    /// The failure is definite: the error is replayed for as long as the record is kept.
    Never,
    /// The effect may have happened: no begin executes until an operator resolves the operation.
    Unresolved,
}

/// The treatment of an attempt whose lease expired before it was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Recovery {
    /// Executes again. For operations that are idempotent by themselves.
    Rerun,
    /// Executes again unless the attempt had marked its effect. The default.
    #[default]
    RerunUnlessEffect,
    /// Never executes again: every crash is left to an operator.
    Never,
}
