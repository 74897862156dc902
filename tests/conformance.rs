//! The conformance suite on every store of the crate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use nevertwice::{
    Record, RecordId, Snapshot, Stamp, Store, StoreError, Swap, SwapRequest, SystemClock, Timeline,
    async_trait,
};

#[cfg(feature = "memory")]
nevertwice::conformance!(memory, async { (nevertwice::MemoryStore::new(), ()) });

/// The minimal custom store, as the README describes it.
#[derive(Debug)]
struct Minimal {
    records: Mutex<(HashMap<RecordId, Record>, Stamp)>,
    time: Timeline,
}

impl Minimal {
    fn new() -> Minimal {
        Minimal { records: Mutex::default(), time: Timeline::new(Arc::new(SystemClock), Stamp::ZERO) }
    }
}

#[async_trait]
impl Store for Minimal {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        let record = self.records.lock().unwrap().0.get(id).cloned().map(Box::new);
        Ok(Snapshot { record, now: self.time.now() })
    }

    async fn swap(&self, SwapRequest { id, expected, next }: &SwapRequest) -> Result<Swap, StoreError> {
        let mut guard = self.records.lock().unwrap();
        let (records, last) = &mut *guard;
        let record = records.get(id).cloned().map(Box::new);
        if record.as_ref().map(|record| record.stamp) != *expected {
            return Ok(Swap::Conflict(Snapshot { record, now: self.time.now() }));
        }
        *last = self.time.stamp_after(*last);
        match next.as_deref() {
            Some(next) => records.insert(*id, next.clone().stamped(*last)),
            None => records.remove(id),
        };
        Ok(Swap::Done(*last))
    }
}

nevertwice::conformance!(minimal, async { (Minimal::new(), ()) });
