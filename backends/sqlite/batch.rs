//! Many swaps in one commit.

use std::collections::HashSet;

use super::SqliteStore;
use super::jobs::Swaps;
use super::trouble::unavailable;
use crate::error::StoreError;
use crate::store::{Swap, SwapRequest};

impl SqliteStore {
    /// Implements [`Store::swap_many`](crate::Store::swap_many): replays are answered by a reader,
    /// the rest by the writer.
    pub(super) async fn swap_all(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        if let Err(error) = self.inner() {
            return swaps.iter().map(|_| Err(error.clone())).collect();
        }
        let replays = self.replays(swaps);
        let left = swaps.iter().zip(&replays).filter(|(_, replay)| replay.is_none());
        let left: Vec<SwapRequest> = left.map(|(swap, _)| swap.clone()).collect();
        let written = if left.is_empty() { Ok(Vec::new()) } else { self.0.writer.run(Swaps(left)).await };
        let (mut written, error) = match written {
            Ok(answers) => (answers.into_iter(), unavailable("its writer gave too few answers")),
            Err(error) => (Vec::new().into_iter(), error),
        };
        let answer = |replay: Option<Swap>| match replay {
            Some(swap) => Ok(swap),
            None => written.next().unwrap_or_else(|| Err(error.clone())),
        };
        replays.into_iter().map(answer).collect()
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
