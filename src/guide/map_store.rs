use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use nevertwice::{RecordId, Stamp, StoreError};
use nevertwice::store::{Record, Snapshot, Store, Swap, SwapRequest};
use nevertwice::SystemClock;
use nevertwice::store::{Timeline, async_trait};

/// Records in a map, and the greatest stamp given so far, under one lock.
#[derive(Debug)]
struct MapStore {
    inner: Mutex<(HashMap<RecordId, Record>, Stamp)>,
    time: Timeline,
}

impl MapStore {
    fn new() -> MapStore {
        MapStore { inner: Mutex::default(), time: Timeline::new(Arc::new(SystemClock), Stamp::ZERO) }
    }
}

#[async_trait]
impl Store for MapStore {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        let record = self.inner.lock().unwrap().0.get(id).cloned().map(Box::new);
        Ok(Snapshot { record, now: self.time.now() })
    }

    async fn swap(&self, SwapRequest { id, expected, next }: &SwapRequest) -> Result<Swap, StoreError> {
        let mut inner = self.inner.lock().unwrap();
        let (records, last) = &mut *inner;
        let record = records.get(id).cloned().map(Box::new);
        if record.as_ref().map(|record| record.stamp) != *expected {
            return Ok(Swap::Conflict(Snapshot { record, now: self.time.now() }));
        }
        *last = self.time.stamp_after(*last); // greater than every stamp before, removed ones too
        match next.as_deref() {
            Some(next) => records.insert(*id, next.clone().stamped(*last)),
            None => records.remove(id),
        };
        Ok(Swap::Done(*last))
    }
}
