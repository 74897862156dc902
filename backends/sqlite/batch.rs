//! Swaps, one or many in one commit.

use std::collections::HashSet;

use super::SqliteStore;
use super::error::{Error, Result};
use super::jobs::Job;
use crate::error::StoreError;
use crate::store::{Swap, SwapRequest};

impl SqliteStore {
    /// Implements [`Store::swap_many`](crate::store::Store::swap_many): replays are answered by a
    /// reader, the rest by the writer.
    pub(super) async fn swap_all(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        if let Err(error) = self.inner() {
            return swaps.iter().map(|_| Err(error.clone().into())).collect();
        }
        let replays = self.replays(swaps);
        let left = swaps.iter().zip(&replays).filter(|(_, replay)| replay.is_none());
        let left: Vec<SwapRequest> = left.map(|(swap, _)| swap.clone()).collect();
        let written = if left.is_empty() { Ok(Vec::new()) } else { self.write(left).await };
        let (written, error) = match written {
            Ok(answers) => (answers, unanswered()),
            Err(error) => (Vec::new(), error),
        };
        let mut written = written.into_iter();
        let answer = |replay: Option<Swap>| match replay {
            Some(swap) => Ok(swap),
            None => written.next().unwrap_or_else(|| Err(error.clone().into())),
        };
        replays.into_iter().map(answer).collect()
    }

    /// Implements [`Store::swap`](crate::store::Store::swap).
    pub(super) async fn swap_one(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        if swap.expected.is_none() {
            // A duplicate is answered without the write lock. The writer compares again.
            let snapshot = self.read(&swap.id)?;
            if snapshot.record.is_some() {
                return Ok(Swap::Conflict(snapshot));
            }
        }
        self.write(vec![swap.clone()]).await?.pop().unwrap_or_else(|| Err(unanswered().into()))
    }

    async fn write(&self, swaps: Vec<SwapRequest>) -> Result<Vec<Result<Swap, StoreError>>> {
        self.inner()?.writer.run(|reply| Job::Swaps(swaps, reply)).await
    }

    /// Returns the conflicts of swaps that expect no record and find one: these need no write lock.
    /// `None` marks a swap for the writer. That includes every later swap of an id that already has
    /// one for the writer, since it may depend on the first, and every swap whose row cannot be
    /// read, so that the writer reports the error.
    fn replays(&self, swaps: &[SwapRequest]) -> Vec<Option<Swap>> {
        let mut left = HashSet::new();
        let mut replay = |swap: &SwapRequest| {
            if swap.expected.is_none() && !left.contains(&swap.id) {
                let snapshot = self.read(&swap.id).ok().filter(|snapshot| snapshot.record.is_some());
                if let Some(snapshot) = snapshot {
                    return Some(Swap::Conflict(snapshot));
                }
            }
            left.insert(swap.id);
            None
        };
        swaps.iter().map(&mut replay).collect()
    }
}

fn unanswered() -> Error {
    Error::unavailable("its writer gave too few answers")
}
