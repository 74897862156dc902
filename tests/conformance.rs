//! The conformance suite on every store of the crate.

#[cfg(feature = "memory")]
nevertwice::conformance!(memory, async { (nevertwice::MemoryStore::new(), ()) });
