//! [`EngineBuilder`]: combines a policy and a store, and checks that both are safe.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::durability::Durability;
use crate::engine::Engine;
use crate::policy::{Oversized, Policy, PolicyError};
use crate::record::Recovery;
use crate::store::Store;
use crate::store_id::StoreId;

/// Builds an [`Engine`]; made by [`Engine::builder`]. Every setting has the default of [`Policy`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct EngineBuilder {
    store: Box<dyn Store>,
    policy: Policy,
    clock: Arc<dyn Clock>,
    required: Durability,
}

impl EngineBuilder {
    pub(crate) fn new(store: Box<dyn Store>) -> EngineBuilder {
        EngineBuilder {
            store,
            policy: Policy::default(),
            clock: Arc::new(SystemClock),
            required: Durability::Memory,
        }
    }

    /// Sets [`Policy::lease`]: longer than the slowest call that is waited for under it. Default 30
    /// s.
    pub fn lease(mut self, lease: Duration) -> EngineBuilder {
        self.policy.lease = lease;
        self
    }

    /// Sets [`Policy::retention`]: longer than the longest retry window of any caller. Default 24
    /// h.
    pub fn retention(mut self, retention: Duration) -> EngineBuilder {
        self.policy.retention = retention;
        self
    }

    /// Sets [`Policy::recovery`]. Default [`Recovery::RerunUnlessEffect`].
    pub fn recovery(mut self, recovery: Recovery) -> EngineBuilder {
        self.policy.recovery = recovery;
        self
    }

    /// Sets [`Policy::max_attempts`]. Default: no limit.
    pub fn max_attempts(mut self, max_attempts: u32) -> EngineBuilder {
        self.policy.max_attempts = max_attempts;
        self
    }

    /// Sets [`Policy::max_response`], in bytes. Default 1 MiB.
    pub fn max_response(mut self, bytes: usize) -> EngineBuilder {
        self.policy.max_response = bytes;
        self
    }

    /// Sets [`Policy::oversized`]. Default [`Oversized::Marker`].
    pub fn oversized(mut self, oversized: Oversized) -> EngineBuilder {
        self.policy.oversized = oversized;
        self
    }

    /// Sets [`Policy::unresolved_retention`]: the time that evidence of an effect that may have
    /// happened is kept while no operator settles it. Default 90 days.
    pub fn unresolved_retention(mut self, kept: Duration) -> EngineBuilder {
        self.policy.unresolved_retention = kept;
        self
    }

    /// Sets [`Policy::response_retention`]. Default: as long as the record is kept.
    pub fn response_retention(mut self, kept: Duration) -> EngineBuilder {
        self.policy.response_retention = Some(kept);
        self
    }

    /// Sets [`Policy::max_checkpoint`], in bytes. Default 64 KiB.
    pub fn max_checkpoint(mut self, bytes: usize) -> EngineBuilder {
        self.policy.max_checkpoint = bytes;
        self
    }

    /// Sets [`Policy::call_timeout`]. Default 5 s.
    pub fn call_timeout(mut self, limit: Duration) -> EngineBuilder {
        self.policy.call_timeout = limit;
        self
    }

    /// Sets [`Policy::finish_timeout`]. Default: until the lease ends, and at least the
    /// `call_timeout`.
    pub fn finish_timeout(mut self, limit: Duration) -> EngineBuilder {
        self.policy.finish_timeout = Some(limit);
        self
    }

    /// Sets [`Policy::run_wait`]. Default 30 s.
    pub fn run_wait(mut self, limit: Duration) -> EngineBuilder {
        self.policy.run_wait = limit;
        self
    }

    /// Sets [`Policy::max_waiters`]. Default 10 000.
    pub fn max_waiters(mut self, waiters: usize) -> EngineBuilder {
        self.policy.max_waiters = waiters;
        self
    }

    /// Sets [`Policy::holder`]. Default: empty.
    pub fn holder(mut self, name: impl Into<String>) -> EngineBuilder {
        self.policy.holder = name.into();
        self
    }

    /// Sets [`Policy::keep_keys`]. Default false.
    pub fn keep_keys(mut self, keep: bool) -> EngineBuilder {
        self.policy.keep_keys = keep;
        self
    }

    /// Adds to [`Policy::accept_tokens_from`] an identity that the store had before it was renamed.
    pub fn accept_tokens_from(mut self, store: StoreId) -> EngineBuilder {
        self.policy.accept_tokens_from.push(store);
        self
    }

    /// Sets [`Policy::max_waiters_per_key`]. Default 1 000.
    pub fn max_waiters_per_key(mut self, waiters: usize) -> EngineBuilder {
        self.policy.max_waiters_per_key = waiters;
        self
    }

    /// Sets [`Policy::max_waiters_per_scope`]. Default 5 000.
    pub fn max_waiters_per_scope(mut self, waiters: usize) -> EngineBuilder {
        self.policy.max_waiters_per_scope = waiters;
        self
    }

    /// Sets [`Policy::handler_timeout`]: the longest time that the application lets an operation
    /// run. A shorter lease is refused, by `build` and in a request.
    pub fn handler_timeout(mut self, limit: Duration) -> EngineBuilder {
        self.policy.handler_timeout = limit;
        self
    }

    /// Sets [`Policy::retry_horizon`]: the time after its first attempt within which a caller may
    /// still retry (3 days for Stripe's webhooks). A shorter retention is refused, by `build` and
    /// in a request.
    pub fn retry_horizon(mut self, limit: Duration) -> EngineBuilder {
        self.policy.retry_horizon = limit;
        self
    }

    /// Sets the durability that acknowledged outcomes require. `build` refuses a store that keeps
    /// less.
    pub fn require(mut self, durability: Durability) -> EngineBuilder {
        self.required = durability;
        self
    }

    /// Takes time from `clock` instead of the operating system. Stores have clocks of their own.
    pub fn clock(mut self, clock: impl Clock) -> EngineBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// Builds the engine.
    ///
    /// # Errors
    /// [`PolicyError`], with the numbers, if a window is zero or shorter than what it must cover,
    /// or the store keeps less than is required.
    pub fn build(self) -> Result<Engine, PolicyError> {
        self.policy.check()?;
        let (has, required) = (self.store.durability(), self.required);
        if !self.store.is_as_durable_as(required) {
            return Err(PolicyError::Durability { has, required });
        }
        Ok(Engine::assemble(self.store, self.policy, self.clock))
    }
}
