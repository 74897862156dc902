//! Batches of swaps: splitting a batch into pipelines, and settling the answers.

use std::collections::HashSet;

use super::Inner;
use super::error::malformed;
use super::item::ItemReply;
use super::value::snapshot;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{Record, Stamp};
use crate::store::{Swap, SwapRequest};

/// Limits of one pipeline. It blocks the server for some 3 to 7 µs per swap.
const MAX_ITEMS: usize = 256;
const MAX_BYTES: usize = 1 << 20;

impl Inner {
    /// Applies the swaps in their order. A batch without repeated ids takes one round trip per few
    /// hundred swaps.
    pub(super) async fn swap_batch(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        let mut replies = Vec::with_capacity(swaps.len());
        let (mut items, mut ids, mut bytes) = (Vec::new(), HashSet::new(), 0_usize);
        for swap in swaps {
            let item = self.item(swap);
            let is_full =
                items.len() == MAX_ITEMS || bytes.saturating_add(item.bytes.len()) > MAX_BYTES && bytes > 0;
            // A swap must see the effect of an earlier one with the same id.
            if is_full || ids.contains(&swap.id) {
                replies.append(&mut self.deliver(items).await);
                (bytes, items, ids) = (0, Vec::new(), HashSet::new());
            }
            bytes = bytes.saturating_add(item.bytes.len());
            ids.insert(swap.id);
            items.push(item);
        }
        if !items.is_empty() {
            replies.append(&mut self.deliver(items).await);
        }
        self.settle(swaps, replies).await
    }

    /// Translates replies into results. Swaps whose reply does not suffice have their records
    /// loaded, all together.
    pub(super) async fn settle(
        &self,
        swaps: &[SwapRequest],
        replies: Vec<Result<ItemReply, StoreError>>,
    ) -> Vec<Result<Swap, StoreError>> {
        let settled: Vec<(&SwapRequest, Settled)> =
            swaps.iter().zip(replies).map(|(swap, reply)| (swap, settle_alone(&swap.id, reply))).collect();
        let is_open = |settled: &Settled| matches!(settled, Settled::Open(_));
        let open = settled.iter().filter(|(_, settled)| is_open(settled));
        let ids: Vec<_> = open.map(|(swap, _)| swap.id).collect();
        let mut found = self.records.load_many(&ids).await.map(Vec::into_iter);
        let mut load = || match &mut found {
            Ok(found) => found.next().unwrap_or_else(|| Err(malformed())),
            Err(error) => Err(error.clone()),
        };
        let settle = |(swap, settled): (&SwapRequest, Settled)| match settled {
            Settled::Done(result) => result,
            Settled::Open(refused) => match (load()?, refused) {
                // A duplicate is answered from the record even while begins are refused.
                (found, Some(why)) if found.record.as_ref().map(|record| record.stamp) == swap.expected => {
                    Err(why)
                }
                (found, _) => Ok(Swap::Conflict(found)),
            },
        };
        settled.into_iter().map(settle).collect()
    }
}

/// The result of a swap as far as its reply alone decides it.
enum Settled {
    Done(Result<Swap, StoreError>),
    /// The record and the server's clock have to be read again. Holds the reason if the swap was
    /// refused.
    Open(Option<StoreError>),
}

fn settle_alone(id: &RecordId, reply: Result<ItemReply, StoreError>) -> Settled {
    Settled::Done(match reply {
        Ok(ItemReply::Done { stamp, .. }) => Ok(Swap::Done(stamp)),
        Ok(ItemReply::Conflict { now, value }) => snapshot(id, now, value).map(Swap::Conflict),
        Ok(ItemReply::Seen { by, value }) => match snapshot(id, by, Some(value)) {
            Ok(found) if !found.record.as_ref().is_some_and(|record| is_unchanged(record, found.now)) => {
                return Settled::Open(None);
            }
            found => found.map(Swap::Conflict),
        },
        Ok(ItemReply::Refused(why)) => return Settled::Open(Some(why)),
        Err(error) => Err(error),
    })
}

/// True if no deadline of the record has passed by `now`. An estimate of the server's clock must
/// not decide that another caller may act because a deadline has passed: only the clock itself
/// does.
fn is_unchanged(record: &Record, now: Stamp) -> bool {
    now < record.settled_until()
}
