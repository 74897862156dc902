//! Swaps: many in one statement, or in single statements where the functions are not there.

mod functions;
mod statements;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row};

pub(super) use self::functions::Swaps;
use super::Inner;
use super::connection::{CallError, Connection, Lane, is_gone};
use super::error::{is_full, is_locked, is_refused, is_repeatable, malformed, store_error, unavailable};
use super::row::{RowValue, record, snapshot};
use crate::backends::shared::batcher::Batcher;
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{DecodeError, Record, Stamp};
use crate::store::{Snapshot, Swap, SwapRequest};

/// Limits of one transaction.
pub(super) const MAX_ITEMS: usize = 256;
pub(super) const MAX_BYTES: usize = 1 << 20;
/// The wait for a row that another transaction holds: by a whole batch, and by each careful swap.
const PATIENCE: [&str; 2] = ["50ms", "2ms"];
/// The time after a row was found locked for which swaps are careful at once.
const CAREFUL: Duration = Duration::from_secs(1);
/// The pause before a swap of a locked row is sent again: first and longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];
/// The number of tries of a batch that the server rolls back in favour of another transaction.
const ATTEMPTS: u32 = 4;

/// A parameter of a statement, with its type.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// One swap.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) id: RecordId,
    pub(super) expected: Option<Stamp>,
    pub(super) value: RowValue,
    /// True if a server may refuse it: it makes a grant.
    pub(super) refusable: bool,
}

impl Item {
    pub(super) fn of(SwapRequest { id, expected, next }: &SwapRequest) -> Item {
        let next = next.as_deref();
        let value = RowValue::of(id, next);
        Item { id: *id, expected: *expected, value, refusable: next.is_some_and(Record::may_be_refused) }
    }

    pub(super) fn bytes(&self) -> usize {
        self.value.record.as_ref().map_or(0, Vec::len)
    }

    /// The expected stamp as a column.
    fn expected(&self) -> Option<i64> {
        self.expected.map(super::row::expected)
    }

    /// The same swap, but one that writes nothing and shows the record.
    fn as_read(&self) -> Item {
        let value = RowValue { keep: 0, evidence: false, record: None };
        Item { id: self.id, expected: None, value, refusable: false }
    }
}

/// The answer to one item; `None`: another transaction holds the row, and nothing was done.
pub(super) type Answer = Result<Option<Swap>, StoreError>;

/// The answers of one transaction; `None`: the item is to be sent again, on its own.
type Answers = Vec<Option<Answer>>;

/// The ways to do swaps in one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By few statements for all. The items are of different ids, and in their order.
    Together,
    /// One after the other.
    Each,
    /// The same; a row that stays locked fails only its own swap.
    Careful,
}

fn locked() -> StoreError {
    unavailable("the row is locked by another transaction: one of the application's own is open on this key")
}

impl Inner {
    /// Does a swap together with those of other callers.
    pub(super) async fn swap(self: &Arc<Self>, swap: &SwapRequest) -> Result<Swap, StoreError> {
        let mut pauses = Pauses::new(self);
        loop {
            if let Some(answer) = Batcher::send(self, Item::of(swap)).await? {
                return Ok(answer);
            }
            pauses.rest().await?;
        }
    }

    /// Does the swaps in few transactions.
    pub(super) async fn swap_many(self: &Arc<Self>, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        let mut pauses = Pauses::new(self);
        let mut answers: Vec<Answer> = swaps.iter().map(|_| Ok(None)).collect();
        let held = |answers: &[Answer]| -> Vec<usize> {
            (0..answers.len()).filter(|&at| matches!(answers[at], Ok(None))).collect()
        };
        let mut open = held(&answers);
        while !open.is_empty() {
            let sent = self.send_all(open.iter().map(|&at| Item::of(&swaps[at]))).await;
            for (&at, answer) in open.iter().zip(sent) {
                answers[at] = answer;
            }
            open = held(&answers);
            if !open.is_empty()
                && let Err(error) = pauses.rest().await
            {
                open.drain(..).for_each(|at| answers[at] = Err(error.clone()));
            }
        }
        answers.into_iter().map(|answer| answer?.ok_or_else(malformed)).collect()
    }

    /// Sends the items in their order, some hundred at a time.
    async fn send_all(self: &Arc<Self>, all: impl Iterator<Item = Item>) -> Vec<Answer> {
        let mut answers = Vec::new();
        let (mut items, mut bytes) = (Vec::new(), 0_usize);
        for item in all {
            let is_full = items.len() == MAX_ITEMS || bytes.saturating_add(item.bytes()) > MAX_BYTES;
            if is_full && !items.is_empty() {
                answers.append(&mut self.deliver(std::mem::take(&mut items)).await);
                bytes = 0;
            }
            bytes = bytes.saturating_add(item.bytes());
            items.push(item);
        }
        if !items.is_empty() {
            answers.append(&mut self.deliver(items).await);
        }
        answers
    }

    /// Does the swaps, which may come from concurrent callers, in an order of its own, except that
    /// those of one id stay in theirs.
    pub(super) async fn deliver(self: &Arc<Self>, items: Vec<Item>) -> Vec<Answer> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        // Two transactions that lock rows in the same order do not deadlock.
        order.sort_by_key(|&at| items[at].id);
        let mut slots: Vec<Option<Item>> = items.into_iter().map(Some).collect();
        let sorted: Vec<Item> = order.iter().filter_map(|&at| slots[at].take()).collect();
        let sorted = Arc::new(sorted);
        let answers = self.deliver_sorted(&sorted).await;
        self.announce(&sorted, &answers);
        let mut placed: Vec<Answer> = order.iter().map(|_| Err(malformed())).collect();
        for (at, answer) in order.into_iter().zip(answers) {
            placed[at] = answer;
        }
        placed
    }

    async fn deliver_sorted(self: &Arc<Self>, items: &Arc<Vec<Item>>) -> Vec<Answer> {
        let careful = self.is_careful();
        if careful || !items.is_sorted_by(|one, next| one.id < next.id) {
            return self.deliver_each(items, careful).await;
        }
        let mut answers = match self.transact(items, Way::Together).await {
            Ok(answers) => answers,
            // The server undid it: one item may be to blame.
            Err(CallError::Client(error)) if error.code().is_some() && !is_gone(&error) => {
                return self.deliver_each(items, is_locked(&error)).await;
            }
            Err(error) => {
                let error = not_full(error.into());
                return items.iter().map(|_| Err(error.clone())).collect();
            }
        };
        let open: Vec<usize> = (0..items.len()).filter(|&at| answers[at].is_none()).collect();
        if !open.is_empty() {
            let rest = Arc::new(open.iter().map(|&at| items[at].clone()).collect());
            for (at, answer) in open.into_iter().zip(self.deliver_each(&rest, false).await) {
                answers[at] = Some(answer);
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(malformed()))).collect()
    }

    /// Does the swaps one after the other, in one transaction if it can be.
    async fn deliver_each(self: &Arc<Self>, items: &Arc<Vec<Item>>, mut careful: bool) -> Vec<Answer> {
        for attempt in 1.. {
            let way = if careful { Way::Careful } else { Way::Each };
            match self.transact_all(items, way).await {
                Ok(answers) => {
                    if answers.iter().any(|answer| matches!(answer, Ok(None))) {
                        self.was_locked();
                    }
                    return answers;
                }
                Err(CallError::Client(error)) if is_locked(&error) && !careful => careful = true,
                // Only single statements end like this: they have no careful form.
                Err(CallError::Client(error)) if is_locked(&error) && items.len() > 1 => {
                    self.was_locked();
                    return self.deliver_singly(items).await;
                }
                // One row's fault is not the others'.
                Err(CallError::Client(error)) if is_refused(&error) && items.len() > 1 => {
                    return self.deliver_singly(items).await;
                }
                Err(CallError::Client(error)) if is_locked(&error) => return vec![Ok(None)],
                // The server did nothing: another transaction was preferred.
                Err(CallError::Client(error)) if is_repeatable(&error) && attempt < ATTEMPTS => {}
                Err(CallError::Client(error))
                    if is_full(&error) && items.iter().any(|item| item.refusable) =>
                {
                    return self.finish_only(items, &store_error(&error)).await;
                }
                Err(error) => {
                    let error = not_full(error.into());
                    return items.iter().map(|_| Err(error.clone())).collect();
                }
            }
        }
        Vec::new()
    }

    /// Does the swaps in a transaction each.
    async fn deliver_singly(self: &Arc<Self>, items: &[Item]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(items.len());
        for item in items {
            answers.push(match self.transact_all(&Arc::new(vec![item.clone()]), Way::Careful).await {
                Ok(mut answer) => answer.pop().unwrap_or_else(|| Err(malformed())),
                Err(CallError::Client(error)) if is_locked(&error) => Ok(None),
                Err(error) => Err(not_full(error.into())),
            });
        }
        answers
    }

    /// True if a row was found locked a short time ago.
    fn is_careful(&self) -> bool {
        let last = Duration::from_millis(self.locked_at.load(Ordering::Relaxed));
        !last.is_zero() && SystemClock.monotonic().saturating_sub(last) < CAREFUL
    }

    fn was_locked(&self) {
        let now = u64::try_from(SystemClock.monotonic().as_millis()).unwrap_or(u64::MAX);
        self.locked_at.store(now.max(1), Ordering::Relaxed);
    }

    /// Sends the items in one transaction. On a server that must be given no grants, begins only
    /// read.
    async fn transact(self: &Arc<Self>, items: &Arc<Vec<Item>>, way: Way) -> Result<Answers, CallError> {
        let (inner, items) = (Arc::clone(self), Arc::clone(items));
        self.connections
            .run(Lane::Write, async move |connection: Arc<Connection>| {
                let Some(doubt) = &connection.doubt else {
                    return inner.swaps.send(&connection, &items, way).await;
                };
                let safe: Vec<Item> = items.iter().map(Item::without_grant).collect();
                let answers = inner.swaps.send(&connection, &safe, way).await?;
                let refused = |(item, answer): (&Item, Option<Answer>)| Some(refuse(item, answer?, doubt));
                Ok(items.iter().zip(answers).map(refused).collect())
            })
            .await
    }

    /// The same for a way that answers all of them.
    async fn transact_all(
        self: &Arc<Self>,
        items: &Arc<Vec<Item>>,
        way: Way,
    ) -> Result<Vec<Answer>, CallError> {
        let answers = self.transact(items, way).await?;
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(malformed()))).collect())
    }

    /// Does the swaps of a batch that must not be refused, on a server without room, and answers
    /// the others from their records.
    async fn finish_only(self: &Arc<Self>, items: &Arc<Vec<Item>>, full: &StoreError) -> Vec<Answer> {
        let safe: Arc<Vec<Item>> = Arc::new(items.iter().map(Item::without_grant).collect());
        match self.transact_all(&safe, Way::Careful).await {
            Ok(answers) => {
                items.iter().zip(answers).map(|(item, answer)| refuse(item, answer, full)).collect()
            }
            Err(error) => {
                let error: StoreError = error.into();
                let answer =
                    |item: &Item| if item.refusable { full.clone() } else { not_full(error.clone()) };
                items.iter().map(|item| Err(answer(item))).collect()
            }
        }
    }
}

/// The pauses of a call on a locked row, until its time limit.
struct Pauses {
    until: Duration,
    pause: Duration,
}

impl Pauses {
    fn new(inner: &Inner) -> Pauses {
        let until = SystemClock.monotonic().saturating_add(inner.connections.settings.answer_timeout);
        Pauses { until, pause: PAUSES[0] }
    }

    async fn rest(&mut self) -> Result<(), StoreError> {
        if SystemClock.monotonic() >= self.until {
            return Err(locked());
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSES[1]);
        Ok(())
    }
}

impl Item {
    /// The same swap or, if it would make a grant, one that only reads.
    fn without_grant(&self) -> Item {
        if self.refusable { self.as_read() } else { self.clone() }
    }
}

/// Turns the answer to a read into the answer to the begin that was not sent: a conflict with
/// another record than the expected one, or the refusal.
fn refuse(item: &Item, answer: Answer, why: &StoreError) -> Answer {
    match answer {
        _ if !item.refusable => answer,
        Ok(Some(Swap::Conflict(found)))
            if found.record.as_ref().map(|record| record.stamp) != item.expected =>
        {
            Ok(Some(Swap::Conflict(found)))
        }
        Ok(Some(_)) => Err(why.clone()),
        held => held,
    }
}

/// Only begins may be refused for lack of room.
fn not_full(error: StoreError) -> StoreError {
    match error {
        StoreError::Full { detail, .. } => unavailable(detail),
        other @ (StoreError::Unavailable { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Unusable { .. }) => other,
    }
}

/// Reads the time, the stamp and the record, the latter two null without a row, from this column
/// on.
pub(super) fn loaded(id: &RecordId, row: &Row, from: usize) -> Result<Result<Snapshot, StoreError>, Error> {
    let (now, at): (i64, Option<i64>) = (row.try_get(from)?, row.try_get(from + 1)?);
    let bytes: Option<&[u8]> = row.try_get(from + 2)?;
    Ok(snapshot(id, now, at.zip(bytes)))
}

/// Reads a listed row; `None` if its record was removed.
pub(super) fn listed(id: &RecordId, at: i64, bytes: &[u8]) -> Result<Option<Record>, StoreError> {
    record(id, at, bytes)
}

/// Reads an id column.
pub(super) fn id_of(bytes: &[u8]) -> Result<RecordId, StoreError> {
    let none = RecordId::from_bytes([0; 32]);
    let damaged =
        |_| super::error::corrupt(&none, DecodeError::Damaged { what: "an id that is not 32 bytes" });
    bytes.try_into().map(RecordId::from_bytes).map_err(damaged)
}
