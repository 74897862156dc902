//! [`FaultyStore`]: a store around a store, which fails on demand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::rest;
use crate::clock::{Clock, SystemClock};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::{Cursor, Decide, Page, Purge, Snapshot, Store, Swap, SwapRequest, Update};
use crate::store_id::StoreId;

/// The fate of one call of a [`FaultyStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing is done, and an error leaves open whether it was.
    FailBefore,
    /// It is done, and an error leaves open whether it was.
    FailAfter,
    /// Nothing is done, and no answer ever comes.
    RequestLost,
    /// It is done, and no answer ever comes.
    AnswerLost,
    /// It is done after this time, by the store's clock.
    Delay(Duration),
    /// It is done twice, as by a client library that repeats commands by itself; the second answer
    /// counts.
    Duplicate,
}

/// A store around a store, whose n-th call fails as planned. Clones share the plan and the store.
///
/// ```
/// use nevertwice::testing::{Fault, FaultyStore, block_on};
/// use nevertwice::{Begin, Engine, MemoryStore, Request};
///
/// let store = FaultyStore::new(MemoryStore::new());
/// store.on_call(1, Fault::FailAfter);
/// let engine = Engine::builder(store.clone()).build()?;
/// // The first swap was done and its answer lost: the engine repeats it and recognises its own write.
/// let begin = block_on(engine.begin(&Request::new("scope", "key")?))?;
/// assert!(matches!(begin, Begin::Acquired(_)));
/// assert_eq!(store.calls(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: Arc<S>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    calls: AtomicU64,
    plan: Mutex<Plan>,
    clock: Box<dyn Clock>,
    /// True if every call awaits something before and after it is done.
    yields: bool,
}

#[derive(Debug, Default)]
struct Plan {
    once: HashMap<u64, Fault>,
    from: Option<(u64, Fault)>,
}

impl<S> Clone for FaultyStore<S> {
    fn clone(&self) -> FaultyStore<S> {
        FaultyStore { inner: Arc::clone(&self.inner), shared: Arc::clone(&self.shared) }
    }
}

impl<S: Store> FaultyStore<S> {
    /// Wraps `inner`, without any faults so far.
    pub fn new(inner: S) -> FaultyStore<S> {
        FaultyStore::with_clock(inner, SystemClock)
    }

    /// Wraps `inner`, with delays that are counted on `clock`.
    pub fn with_clock(inner: S, clock: impl Clock) -> FaultyStore<S> {
        FaultyStore::wrap(inner, clock, false)
    }

    /// The same; each call yields to other tasks before and after it is done.
    #[cfg(feature = "memory")]
    pub(super) fn yielding(inner: S, clock: impl Clock) -> FaultyStore<S> {
        FaultyStore::wrap(inner, clock, true)
    }

    fn wrap(inner: S, clock: impl Clock, yields: bool) -> FaultyStore<S> {
        let (calls, plan, clock) = (AtomicU64::new(0), Mutex::default(), Box::new(clock));
        FaultyStore { inner: Arc::new(inner), shared: Arc::new(Shared { calls, plan, clock, yields }) }
    }

    /// Plans the fault of the `n`-th call, counted from 1 over all kinds of calls.
    pub fn on_call(&self, n: u64, fault: Fault) {
        self.plan(|plan| plan.once.insert(n, fault));
    }

    /// Plans the fault of the `n`-th call and of all after it, until [`heal`](FaultyStore::heal).
    pub fn from_call(&self, n: u64, fault: Fault) {
        self.plan(|plan| plan.from = Some((n, fault)));
    }

    /// Drops every plan.
    pub fn heal(&self) {
        self.plan(|plan| *plan = Plan::default());
    }

    /// Returns the number of calls made.
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// Returns the wrapped store.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn plan<T>(&self, change: impl FnOnce(&mut Plan) -> T) -> T {
        change(&mut self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn next_fault(&self) -> Option<Fault> {
        let n = self.shared.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.plan(|plan| {
            let lasting = plan.from.filter(|(from, _)| n >= *from).map(|(_, fault)| fault);
            plan.once.remove(&n).or(lasting)
        })
    }

    async fn call<'a, T>(
        &self,
        act: impl Fn() -> BoxFuture<'a, Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let times = u64::from(self.shared.yields);
        rest(times).await;
        let answer = self.disturbed(act).await;
        rest(times).await;
        answer
    }

    async fn disturbed<'a, T>(
        &self,
        act: impl Fn() -> BoxFuture<'a, Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let lost = || StoreError::unavailable("faulty store", "as planned");
        match self.next_fault() {
            None => act().await,
            Some(Fault::FailBefore) => Err(lost()),
            Some(Fault::FailAfter) => {
                act().await?;
                Err(lost())
            }
            Some(Fault::RequestLost) => std::future::pending().await,
            Some(Fault::AnswerLost) => {
                act().await?;
                std::future::pending().await
            }
            Some(Fault::Delay(time)) => {
                self.shared.clock.sleep(time).await;
                act().await
            }
            Some(Fault::Duplicate) => {
                act().await?;
                act().await
            }
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)] // a wrapper that forgets a method changes the store
impl<S: Store> Store for FaultyStore<S> {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.call(|| self.inner.load(id)).await
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.call(|| self.inner.swap(swap)).await
    }

    /// Returns `None`, so that every load is a call that may fail.
    fn load_now(&self, _: &RecordId) -> Option<Result<Snapshot, StoreError>> {
        None
    }

    /// Returns `None`, so that every swap is a call that may fail.
    fn swap_now(&self, _: &SwapRequest) -> Option<Result<Swap, StoreError>> {
        None
    }

    /// Returns `None`, likewise.
    fn update_now(&self, _: &RecordId, _: &mut Decide<'_>) -> Option<Result<(Update, Stamp), StoreError>> {
        None
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        let done = self.call(|| Box::pin(async { Ok(self.inner.swap_many(swaps).await) })).await;
        done.unwrap_or_else(|error| swaps.iter().map(|_| Err(error.clone())).collect())
    }

    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        self.call(|| self.inner.changed(id, stamp, within)).await
    }

    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.call(|| self.inner.scan(after, limit)).await
    }

    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.call(|| self.inner.unsettled(after, limit)).await
    }

    fn finds_unsettled(&self) -> bool {
        self.inner.finds_unsettled()
    }

    async fn purge(&self, limit: usize) -> Result<Purge, StoreError> {
        self.call(|| self.inner.purge(limit)).await
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        self.call(|| self.inner.discard(id)).await
    }

    fn durability(&self) -> Durability {
        self.inner.durability()
    }

    fn is_as_durable_as(&self, required: Durability) -> bool {
        self.inner.is_as_durable_as(required)
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn identity(&self) -> StoreId {
        self.inner.identity()
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}
