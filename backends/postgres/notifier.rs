//! Announcements of changes to the waiters of other processes: [`Notifier`].

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_postgres::types::Type;

use super::Inner;
use super::connection::{Connection, Lane};
use crate::key::RecordId;
use crate::store_id::StoreId;

/// The time for which changes are collected before they are announced together. A notification in
/// the transaction of the change would be prompt, but serialises all commits of the database.
const COLLECT: Duration = Duration::from_millis(5);
/// The bytes of an id that are announced: enough that waiters rarely wake for another record.
const PREFIX: usize = 8;
/// The ids in one notification, whose text is limited to 8000 bytes.
const IDS: usize = 480;
/// The ids that are kept until they are announced. Waiters find more by themselves.
const MOST: usize = 65_536;
/// Notifications are lost with the server anyway, so their commit need not wait for its disk.
pub(super) const NOTIFY: &str = "SELECT pg_notify($1, text), set_config('synchronous_commit', 'off', true) \
     FROM unnest($2::text[]) AS text";

/// Collects changed ids and announces them from a task that runs while there are any. An
/// announcement may be lost: waiters read their records now and then.
pub(super) struct Notifier {
    channel: String,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    ids: Vec<[u8; PREFIX]>,
    is_running: bool,
}

impl Notifier {
    pub(super) fn new(identity: &StoreId) -> Notifier {
        Notifier { channel: channel(identity), queue: Mutex::default() }
    }

    /// Queues the ids. Must be called in the runtime, with the store that the notifier is part of.
    pub(super) fn announce(&self, inner: &Arc<Inner>, ids: impl Iterator<Item = RecordId>) {
        let mut queue = self.lock();
        queue.ids.extend(ids.map(|id| prefix(&id)));
        queue.ids.truncate(MOST);
        if queue.ids.is_empty() || queue.is_running {
            return;
        }
        queue.is_running = true;
        // A runtime that shuts down drops the task at once, which takes the lock.
        drop(queue);
        let mut running = Running { inner: Arc::clone(inner), is_over: false };
        tokio::spawn(async move { while running.step().await {} });
    }

    /// Takes what was collected. If that is nothing, the task is over.
    fn take(&self) -> Vec<[u8; PREFIX]> {
        let mut queue = self.lock();
        queue.is_running = !queue.ids.is_empty();
        std::mem::take(&mut queue.ids)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task of a notifier. It keeps the store's connections until everything is announced, since an
/// application may drop the store right after its last change. If a runtime that shuts down drops
/// the task, another one may start.
struct Running {
    inner: Arc<Inner>,
    is_over: bool,
}

impl Running {
    /// Announces what was collected; false if there was nothing.
    async fn step(&mut self) -> bool {
        tokio::time::sleep(COLLECT).await;
        let inner = &self.inner;
        let ids = inner.notifier.take();
        if ids.is_empty() {
            self.is_over = true;
            return false;
        }
        let texts: Vec<String> = ids.chunks(IDS).map(encode).collect();
        let channel = inner.notifier.channel.clone();
        let sent = inner.connections.run(Lane::Write, async move |connection: Arc<Connection>| {
            connection.client.query_typed(NOTIFY, &[(&channel, Type::TEXT), (&texts, Type::TEXT_ARRAY)]).await
        });
        // A lost announcement is found by the waiters.
        let _ = sent.await;
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.inner.notifier.lock().is_running = false;
        }
    }
}

/// Returns the channel of a store.
pub(super) fn channel(identity: &StoreId) -> String {
    format!("nevertwice_{identity}")
}

/// Returns the part of an id that is announced.
pub(super) fn prefix(id: &RecordId) -> [u8; PREFIX] {
    let mut prefix = [0; PREFIX];
    prefix.copy_from_slice(&id.as_bytes()[..PREFIX]);
    prefix
}

fn encode(ids: &[[u8; PREFIX]]) -> String {
    let mut text = String::with_capacity(ids.len() * PREFIX * 2);
    for id in ids {
        let _ = write!(text, "{}", hex::encode(id)); // a String takes everything
    }
    text
}

/// Reads the ids of a notification; none from a text that no store sent.
pub(super) fn decode(text: &str) -> Vec<[u8; PREFIX]> {
    let bytes = hex::decode(text).unwrap_or_default();
    bytes.chunks_exact(PREFIX).filter_map(|id| id.try_into().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_fits_and_is_read_back() {
        let ids: Vec<[u8; PREFIX]> = (0..IDS as u64).map(u64::to_be_bytes).collect();
        let text = encode(&ids);
        assert!(text.len() < 8000);
        assert_eq!(decode(&text), ids);
        assert!(decode("anything").is_empty() && decode("00").is_empty());
    }
}
