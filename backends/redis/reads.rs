//! Reads that replicas must confirm, those of concurrent callers together: [`Reads`].

use std::sync::Arc;
use std::time::Duration;

use super::error::unavailable;
use super::records::{Read, Records, Wanted};
use super::shard::PATIENCE;
use crate::backends::shared::batcher::{Batcher, Transport};
use crate::error::StoreError;

/// The reads of one server. Each pipeline ends with a `WAIT`, which blocks its connection, so that
/// reads that come meanwhile share the next one.
pub(super) struct Reads {
    records: Arc<Records>,
    batcher: Batcher<Reads>,
}

impl Reads {
    pub(super) fn new(records: &Arc<Records>) -> Reads {
        Reads { records: Arc::clone(records), batcher: Batcher::default() }
    }
}

impl Transport for Reads {
    type Item = Wanted;
    type Answer = Read;

    const MAX_ITEMS: usize = 256;
    const MAX_BYTES: usize = usize::MAX;

    fn bytes(_: &Wanted) -> usize {
        0
    }

    fn unanswered(detail: &'static str) -> StoreError {
        unavailable(detail)
    }

    fn batcher(&self) -> &Batcher<Reads> {
        &self.batcher
    }

    fn delivery_limit(&self) -> Duration {
        let [connect, answer] = self.records.settings.limits;
        // A lane, opening a connection, an inspection, four reads, and a confirmation in two
        // rounds.
        connect.saturating_add(answer.saturating_mul(PATIENCE + 8))
    }

    async fn deliver(self: &Arc<Self>, wanted: Vec<Wanted>) -> Vec<Result<Read, StoreError>> {
        match self.records.read(&wanted).await {
            Ok(reads) => reads,
            Err(error) => wanted.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}
