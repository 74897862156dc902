//! [`Engine::keep_alive`]: renews many leases from one future.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::time::Duration;

use futures_util::future::join_all;

use crate::engine::Engine;
use crate::lease::Lease;
use crate::run::{Step, retry_pause};

impl Engine {
    /// Renews each of `leases` at a third of its length, until the future is dropped: race it with
    /// the work (with `tokio::select!`, for example). Leases that are finished, released or lost
    /// meanwhile are skipped. Leases due at about the same time are renewed together, which takes
    /// one commit on SQLite and one round trip on Redis.
    ///
    /// It never completes. If a lease could not be kept, its holder learns that from
    /// [`Lease::lost`].
    ///
    /// ```
    /// use futures_util::future::{Either, select};
    /// use nevertwice::{Begin, Engine, Lease, MemoryStore, Request};
    /// use std::pin::pin;
    /// # futures_executor::block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let messages = ["a", "b"].map(|id| Request::new("orders", id).unwrap());
    /// let mut leases: Vec<Lease> = Vec::new();
    /// for begin in engine.begin_many(&messages).await {
    ///     if let Begin::Acquired(lease) = begin? {
    ///         leases.push(lease);
    ///     }
    /// }
    /// let work = pin!(async { /* an hour's work on all of them */ });
    /// match select(work, pin!(engine.keep_alive(&leases))).await {
    ///     Either::Left(((), _)) => {}
    ///     Either::Right((never, _)) => match never {},
    /// }
    /// for lease in &leases {
    ///     lease.complete("done").await?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn keep_alive<L: Borrow<Lease>>(&self, leases: &[L]) -> Infallible {
        let mut kept: Vec<Kept<'_>> = leases.iter().map(|lease| Kept::new(lease.borrow())).collect();
        loop {
            kept.retain(Kept::is_open);
            let Some(first) = kept.iter().min_by_key(|kept| kept.due()) else { std::future::pending().await };
            let pause = first.due().saturating_sub(self.clock().monotonic());
            let step = Step::begin(first.lease, pause);
            self.clock().sleep(pause).await;
            step.end();
            // Leases that are due soon are renewed too.
            let now = self.clock().monotonic();
            let soon = |kept: &Kept<'_>| kept.due() <= now.saturating_add(kept.lease.length() / 12);
            let due = kept.iter_mut().filter(|kept| kept.is_open() && soon(kept));
            join_all(due.map(|kept| kept.renew())).await;
        }
    }
}

/// A lease that is kept alive.
struct Kept<'a> {
    lease: &'a Lease,
    /// The time at which a failed renewal is tried again.
    again: Duration,
}

impl<'a> Kept<'a> {
    fn new(lease: &'a Lease) -> Kept<'a> {
        Kept { lease, again: Duration::ZERO }
    }

    /// Returns false once the lease is finished, released or known to be lost.
    fn is_open(&self) -> bool {
        self.lease.is_working()
    }

    fn due(&self) -> Duration {
        self.lease.due().max(self.again)
    }

    /// Renews once, within a sixth of the lease, as `run` does.
    async fn renew(&mut self) {
        let length = self.lease.length();
        let step = Step::begin(self.lease, length / 6);
        let renewed = self.lease.renew_within(length / 6).await;
        step.end();
        match renewed {
            Ok(()) => self.again = Duration::ZERO, // it is due by the new lease
            Err(_) => {
                self.again = self.lease.engine().clock().monotonic().saturating_add(retry_pause(length))
            }
        }
    }
}
