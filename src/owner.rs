//! The identity of a caller that requests a lease: [`Owner`].

use std::fmt;

use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};

/// The identity of a caller that requests a lease: 128 random bits, drawn before a begin is first
/// sent and the same in all its repetitions, so that a grant whose answer was lost is recognised.
/// `Debug` does not show it, because it is the secret of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner(#[serde(with = "hex::serde")] [u8; Owner::BYTES]);

/// Draws the owner of a begin.
pub(crate) type DrawOwner = fn() -> Result<Owner, OwnerError>;

/// The operating system gave no random bytes: no owner can be drawn, and nothing was sent. It may
/// be transient.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the operating system provided no random bytes: {detail}")]
#[non_exhaustive]
pub struct OwnerError {
    detail: String,
}

impl Owner {
    pub(crate) const BYTES: usize = 16;

    /// A new owner, from the operating system's random source each time. A generator inside the
    /// process would repeat itself in every copy of the process: a forked child, or a snapshot of a
    /// machine or a container that is started twice.
    ///
    /// # Errors
    /// [`OwnerError`] if the operating system gives no random bytes. There is no weaker fallback.
    pub fn random() -> Result<Owner, OwnerError> {
        Owner::draw(&mut SysRng)
    }

    /// A new owner for a record that only this process ever sees. A generator inside the process is
    /// enough, since a copy of the process has a copy of the records too.
    pub(crate) fn random_here() -> Result<Owner, OwnerError> {
        Ok(Owner(rand::random::<u128>().to_le_bytes()))
    }

    fn draw<S: TryRng<Error: fmt::Display>>(source: &mut S) -> Result<Owner, OwnerError> {
        let mut bytes = [0; Owner::BYTES];
        let drawn = source.try_fill_bytes(&mut bytes);
        drawn.map_err(|error| OwnerError { detail: error.to_string() })?;
        Ok(Owner(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; Owner::BYTES] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; Owner::BYTES]) -> Owner {
        Owner(bytes)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A random source that fails half way through.
    struct Failing;

    impl TryRng for Failing {
        type Error = std::io::Error;

        fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
            Err(std::io::ErrorKind::Interrupted.into())
        }

        fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
            Err(std::io::ErrorKind::Interrupted.into())
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
            bytes[..8].fill(7);
            Err(std::io::ErrorKind::Interrupted.into())
        }
    }

    #[test]
    fn a_system_without_random_bytes_is_an_error_and_no_weaker_name() {
        let error = Owner::draw(&mut Failing).unwrap_err();
        assert!(error.to_string().starts_with("the operating system provided no random bytes: "));
    }

    #[test]
    fn a_begin_without_a_name_is_refused_and_one_that_has_a_name_draws_none() {
        let request = crate::Request::new("scope", "key").unwrap();
        let policy = crate::Policy::default();
        let none = || Owner::draw(&mut Failing);
        assert!(matches!(request.params(&policy, none), Err(crate::Error::Owner(_))));
        assert!(request.owner(Owner([1; Owner::BYTES])).params(&policy, none).is_ok());
    }
}
