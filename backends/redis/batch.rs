//! Batches of swaps: splitting a batch into pipelines, and settling the answers.

use std::collections::HashSet;

use super::Inner;
use super::refusal::nonsense;
use super::script::{Answer, snapshot};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{Record, Stamp};
use crate::store::{Swap, SwapRequest};

/// Limits of one pipeline. It blocks the server for some 3 to 7 µs per swap.
const TRIP_ITEMS: usize = 256;
const TRIP_BYTES: usize = 1 << 20;

impl Inner {
    /// Applies the swaps in their order. A batch without repeated ids takes one round trip per few
    /// hundred swaps.
    pub(super) async fn swap_batch(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        let mut answers = Vec::with_capacity(swaps.len());
        let (mut trip, mut ids, mut bytes) = (Vec::new(), HashSet::new(), 0_usize);
        for swap in swaps {
            let item = self.item(swap);
            let is_full =
                trip.len() == TRIP_ITEMS || bytes.saturating_add(item.bytes.len()) > TRIP_BYTES && bytes > 0;
            // A swap must see the effect of an earlier one with the same id.
            if is_full || ids.contains(&swap.id) {
                answers.append(&mut self.deliver(&mut trip).await);
                (bytes, trip, ids) = (0, Vec::new(), HashSet::new());
            }
            bytes = bytes.saturating_add(item.bytes.len());
            ids.insert(swap.id);
            trip.push(item);
        }
        if !trip.is_empty() {
            answers.append(&mut self.deliver(&mut trip).await);
        }
        self.settle(swaps, answers).await
    }

    /// Translates answers into results. Swaps whose answer does not suffice have their records
    /// loaded, all together.
    pub(super) async fn settle(
        &self,
        swaps: &[SwapRequest],
        answers: Vec<Result<Answer, StoreError>>,
    ) -> Vec<Result<Swap, StoreError>> {
        let mut settled: Vec<Settled> =
            swaps.iter().zip(answers).map(|(swap, answer)| settle_alone(&swap.id, answer)).collect();
        let look: Vec<usize> = (0..settled.len())
            .filter(|&place| settled.get(place).is_some_and(|settled| !matches!(settled, Settled::Is(_))))
            .collect();
        let ids: Vec<_> = look.iter().filter_map(|&place| Some(swaps.get(place)?.id)).collect();
        let mut found = self.records.load_many(&ids).await.map(Vec::into_iter);
        for place in look {
            let found = match &mut found {
                Ok(found) => found.next().unwrap_or_else(|| Err(nonsense())),
                Err(error) => Err(error.clone()),
            };
            let (Some(answer), Some(SwapRequest { expected, .. })) =
                (settled.get_mut(place), swaps.get(place))
            else {
                continue;
            };
            *answer = Settled::Is(found.and_then(|found| match answer {
                // A duplicate is answered from the record even while begins are refused.
                Settled::Refused(why) if found.record.as_ref().map(|record| record.stamp) == *expected => {
                    Err(why.clone())
                }
                Settled::Refused(_) | Settled::Unclear | Settled::Is(_) => Ok(Swap::Conflict(found)),
            }));
        }
        let settled = settled.into_iter();
        settled
            .map(|answer| if let Settled::Is(answer) = answer { answer } else { Err(nonsense()) })
            .collect()
    }
}

/// The result of a swap as far as its answer alone decides it, without reading the record and the
/// server's clock again.
enum Settled {
    Is(Result<Swap, StoreError>),
    Unclear,
    /// It was not done, for this reason.
    Refused(StoreError),
}

fn settle_alone(id: &RecordId, answer: Result<Answer, StoreError>) -> Settled {
    Settled::Is(match answer {
        Ok(Answer::Done { stamp, .. }) => Ok(Swap::Done(stamp)),
        Ok(Answer::Conflict { now, value }) => snapshot(id, now, value).map(Swap::Conflict),
        Ok(Answer::Seen { by, value }) => match snapshot(id, by, Some(value)) {
            Ok(found) if found.record.as_ref().is_some_and(|record| is_unchanged(record, found.now)) => {
                Ok(Swap::Conflict(found))
            }
            Ok(_) => return Settled::Unclear,
            Err(error) => Err(error),
        },
        Ok(Answer::Refused(why)) => return Settled::Refused(why),
        Err(error) => Err(error),
    })
}

/// True if no deadline of the record has passed by `now`. An estimate of the server's clock must
/// not decide that another caller may act because a deadline has passed: only the clock itself
/// does.
fn is_unchanged(record: &Record, now: Stamp) -> bool {
    now < record.settled_until()
}
