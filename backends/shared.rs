//! The parts that several backends share: a registry of waiters for those that run on any
//! executor; `batcher` and `waiters` for those that need tokio; `tx_lease` for those with
//! transactions of the application's own.

#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) mod batcher;
#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) mod runtime;
#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) mod waiters;

#[cfg(any(feature = "memory", feature = "sqlite"))]
mod registry;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) mod tx_lease;

#[cfg(any(feature = "memory", feature = "sqlite"))]
pub(crate) use self::registry::Registry;
