//! [`Durability`]: the failures that acknowledged writes survive.

use std::fmt;

/// The failures that a store's acknowledged writes survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// None: the records are lost with the process.
    Memory,
    /// A `kill -9` of the process, or of the server.
    Process,
    /// A power cut.
    Power,
    /// The loss of the primary: this many replicas have the write too. (A failover is still no
    /// consensus.) It does not include [`Power`](Durability::Power) unless the store says so
    /// ([`Store::is_as_durable_as`](crate::store::Store::is_as_durable_as)).
    Replicated(u8),
}

impl Durability {
    /// Returns true if a store of this level keeps what `required` promises. Replicas survive a
    /// killed process, but do not replace a synced disk.
    pub fn satisfies(self, required: Durability) -> bool {
        match (self, required) {
            (_, Durability::Memory) => true,
            (Durability::Memory, Durability::Process | Durability::Power | Durability::Replicated(_)) => {
                false
            }
            (Durability::Process | Durability::Power | Durability::Replicated(_), Durability::Process) => {
                true
            }
            (has, Durability::Power) => has == Durability::Power,
            (Durability::Replicated(has), Durability::Replicated(required)) => has >= required,
            (Durability::Process | Durability::Power, Durability::Replicated(_)) => false,
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Durability::Memory => f.write_str("Memory"),
            Durability::Process => f.write_str("Process"),
            Durability::Power => f.write_str("Power"),
            Durability::Replicated(replicas) => write!(f, "Replicated({replicas})"),
        }
    }
}
