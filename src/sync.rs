//! What threads meet at. Normally it is the standard library's; under `--cfg nevertwice_shuttle`, for the tests called
//! `schedules`, it is shuttle's, which decides at each of these who goes on, and so tries one schedule after the other.

#[cfg(not(all(test, nevertwice_shuttle)))]
mod primitives {
    pub(crate) use std::sync::*;
    #[cfg(feature = "sqlite")]
    pub(crate) use std::thread;
}

#[cfg(all(test, nevertwice_shuttle))]
mod primitives;

#[cfg(all(test, nevertwice_shuttle, any(feature = "redis", feature = "sqlite")))]
pub(crate) mod runtime;
#[cfg(all(test, nevertwice_shuttle))]
pub(crate) mod schedules;

pub(crate) use self::primitives::*;
