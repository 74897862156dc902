//! The conformance suite on the memory store and on the store of the guide's chapter "Write a
//! store".

include!("../src/guide/map_store.rs");

#[cfg(feature = "memory")]
nevertwice::conformance!(memory, async { (nevertwice::MemoryStore::new(), ()) });
nevertwice::conformance!(map_store, async { (MapStore::new(), ()) });
