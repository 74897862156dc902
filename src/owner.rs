//! Who asks for a lease: [`Owner`].

use std::cell::Cell;
use std::fmt;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// Who asks for a lease: 128 random bits, drawn before a begin is first sent and the same in all its repetitions,
/// so that a grant whose answer was lost is recognised. `Debug` does not show it: it is what a token proves itself with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner(#[serde(with = "hex::serde")] [u8; Owner::BYTES]);

impl Owner {
    pub(crate) const BYTES: usize = 16;

    /// A new owner, from a generator that is seeded by the operating system, anew after a fork.
    pub fn random() -> Owner {
        thread_local!(static PROCESS: Cell<u32> = const { Cell::new(0) });
        let mut generator = rand::rng();
        let process = std::process::id();
        // A forked child starts with a copy of its parent's generator. If the operating system has no random
        // bytes to give, the child's own process number still keeps the two apart.
        let child = PROCESS.replace(process) != process && generator.reseed().is_err();
        let mut bytes = [0; Owner::BYTES];
        generator.fill_bytes(&mut bytes);
        if child {
            bytes[..4].iter_mut().zip(process.to_le_bytes()).for_each(|(byte, id)| *byte ^= id);
        }
        Owner(bytes)
    }

    /// The same, for a record that only this process ever sees: whether it was forked is a system call to know.
    pub(crate) fn random_here() -> Owner {
        let mut bytes = [0; Owner::BYTES];
        rand::rng().fill_bytes(&mut bytes);
        Owner(bytes)
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
