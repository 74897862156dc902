//! By hand in memory: a map behind a mutex.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::side::{LEASE_MS, RESPONSE, RETENTION_MS, Side, response};

#[derive(Clone, Default)]
pub(crate) struct HandMemory(Arc<Mutex<HashMap<String, Entry>>>);

struct Entry {
    state: State,
    expires: Instant,
}

#[derive(Clone)]
enum State {
    InProgress,
    Completed(Bytes),
}

impl HandMemory {
    /// Begins an operation. Returns `None` if the caller is to execute it.
    fn begin(&self, key: &str) -> Option<State> {
        let now = Instant::now();
        let mut map = self.0.lock().expect("no caller panics");
        if let Some(entry) = map.get(key).filter(|entry| entry.expires > now) {
            return Some(entry.state.clone());
        }
        let expires = now + Duration::from_millis(LEASE_MS);
        map.insert(key.to_owned(), Entry { state: State::InProgress, expires });
        None
    }

    fn complete(&self, key: &str, response: Bytes) {
        let expires = Instant::now() + Duration::from_millis(RETENTION_MS);
        if let Some(entry) = self.0.lock().expect("no caller panics").get_mut(key) {
            *entry = Entry { state: State::Completed(response), expires };
        }
    }
}

impl HandMemory {
    /// Removes entries that expire within `later`, in one scan, as a map allows.
    pub(crate) fn purge(&self, later: Duration) {
        let now = Instant::now() + later;
        self.0.lock().expect("no caller panics").retain(|_, entry| entry.expires > now);
    }
}

impl Side for HandMemory {
    async fn fresh(&self, key: String) {
        assert!(self.begin(&key).is_none());
        self.complete(&key, response().into());
    }

    async fn replay(&self, key: String) {
        assert!(matches!(self.begin(&key), Some(State::Completed(response)) if response.len() == RESPONSE));
    }
}
