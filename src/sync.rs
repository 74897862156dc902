//! Synchronisation primitives. Normally these are the standard library's. Under `--cfg
//! nevertwice_shuttle`, for the tests named `schedules`, they are shuttle's, which chooses at each
//! of them which thread runs next and so explores one schedule after another.

#[cfg(not(all(test, nevertwice_shuttle)))]
mod primitives {
    pub(crate) use std::sync::*;
    #[cfg(feature = "sqlite")]
    pub(crate) use std::thread;
}

#[cfg(all(test, nevertwice_shuttle))]
mod primitives;

#[cfg(all(test, nevertwice_shuttle, any(feature = "redis", feature = "sqlite", feature = "postgres")))]
pub(crate) mod runtime;
#[cfg(all(test, nevertwice_shuttle))]
pub(crate) mod schedules;

pub(crate) use self::primitives::*;
