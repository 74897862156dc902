//! The settings of a store: [`RedisStoreBuilder`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Client;

use super::connection::Connections;
use super::error::{is_forbidden, unusable};
use super::listener::RedisListener;
use super::records::Records;
use super::script::Scripts;
use super::tracking::TrackingConnection;
use super::watch::ServerWatch;
use super::{Inner, RedisStore, Warning, in_tokio, is_exposed, store_id};
use crate::backends::shared::batcher::Batcher;
use crate::backends::shared::waiters::Waiters;
use crate::durability::Durability;
use crate::error::StoreError;
use crate::process::Process;

/// Sets up a [`RedisStore`]; made by [`RedisStore::builder`].
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisStoreBuilder {
    client: Result<Client, StoreError>,
    prefix: String,
    response_timeout: Duration,
    connection_timeout: Duration,
    clock_slack: Duration,
    assumed: Option<Durability>,
    recheck_every: Duration,
    read_only: bool,
}

impl RedisStoreBuilder {
    /// Sets the prefix of all key names. **Default `nevertwice:`.** Stores with different prefixes
    /// do not see each other's records.
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> RedisStoreBuilder {
        prefix.as_ref().clone_into(&mut self.prefix);
        self
    }

    /// Bounds the time that the server may take to answer. **Default 1 s.** An engine repeats an
    /// unanswered call until its [`call_timeout`](crate::Policy::call_timeout), of which this
    /// should be less than a third.
    pub fn response_timeout(mut self, limit: Duration) -> RedisStoreBuilder {
        self.response_timeout = limit;
        self
    }

    /// Bounds the time to connect and log in. **Default 1 s.**
    pub fn connection_timeout(mut self, limit: Duration) -> RedisStoreBuilder {
        self.connection_timeout = limit;
        self
    }

    /// Sets how far the server's clock may be set back, or the clock of a new primary be behind,
    /// without harm. **Default 10 min.** The server keeps every record, and the stamp of every
    /// removed one, for that much longer. With less than a minute every write uses the script,
    /// which is slower.
    pub fn clock_slack(mut self, slack: Duration) -> RedisStoreBuilder {
        self.clock_slack = slack;
        self
    }

    /// Assumes this durability where the server does not reveal its settings
    /// ([`Warning::DurabilityUnverified`](super::Warning::DurabilityUnverified)). It is not
    /// checked, and ignored where the server does reveal them. **Default: the weakest level
    /// consistent with what is known.**
    pub fn assume_durability(mut self, durability: Durability) -> RedisStoreBuilder {
        self.assumed = Some(durability);
        self
    }

    /// Bounds the age of the inspection on which a grant relies. **Default 30 s.** A begin that
    /// finds it older inspects the server first, which takes one round trip of three commands;
    /// without begins there are no inspections.
    ///
    /// For this long after the server is configured to evict, begins may still be granted. The
    /// shorter, the fewer of them can repeat an operation whose record was evicted.
    /// `Duration::ZERO` inspects before every pipeline that contains a begin.
    pub fn recheck_every(mut self, time: Duration) -> RedisStoreBuilder {
        self.recheck_every = time;
        self
    }

    /// Opens the store for reading only, as an operator's tool does: `load`, `scan` and `unsettled`
    /// work, and every write fails with [`StoreError::Unusable`]. **Default: for writing too.**
    ///
    /// No scripts are loaded. The user needs `+get +time` on the keys under the prefix, and `+scan`
    /// to list them. A replica is accepted.
    pub fn read_only(mut self) -> RedisStoreBuilder {
        self.read_only = true;
        self
    }

    /// Connects and inspects the server within the timeouts.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the server does not answer, or cannot serve at present.
    /// [`StoreError::Unusable`] if the URL is invalid or names a database that the server does not
    /// have, the login is refused, or the server's configuration makes it unsafe to use.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        in_tokio()?;
        let client = self.client?;
        let limits = [self.connection_timeout, self.response_timeout];
        let connections =
            Connections::new(client.clone(), limits, ServerWatch::new(self.assumed, self.recheck_every));
        if let Some(doubt) =
            connections.get().await?.doubt().filter(|doubt| !self.read_only || !doubt.is_readable())
        {
            return Err(unusable(doubt.detail()));
        }
        let scripts = Scripts::new();
        if !self.read_only {
            scripts.load(&connections).await?;
        }
        let info = client.get_connection_info();
        let identity = store_id(info.redis_settings().db(), &self.prefix);
        let mut warnings = Vec::new();
        if is_exposed(info.addr()) {
            warnings.push(Warning::PlainTcp);
        }
        // Other failures of this extra connection do not prevent using the store.
        if !self.read_only
            && TrackingConnection::open(&client, limits).await.is_err_and(|error| is_forbidden(&error))
        {
            warnings.push(Warning::ChangesUnannounced);
        }
        let records = Arc::new(Records { connections, prefix: self.prefix.into_bytes() });
        Ok(RedisStore(Arc::new(Inner {
            waiters: Waiters::new(Arc::new(RedisListener { records: Arc::clone(&records), client, limits })),
            records,
            identity,
            clock_slack: self.clock_slack,
            scripts,
            batcher: Batcher::default(),
            // Opening a connection, an inspection, and up to three rounds of a pipeline.
            delivery_limit: (self.connection_timeout.saturating_add(self.response_timeout)).saturating_mul(5),
            warnings,
            read_only: self.read_only,
            process: Process::current(),
        })))
    }

    pub(super) fn new(client: Result<Client, StoreError>) -> RedisStoreBuilder {
        RedisStoreBuilder {
            client,
            prefix: "nevertwice:".to_owned(),
            response_timeout: Duration::from_secs(1),
            connection_timeout: Duration::from_secs(1),
            clock_slack: Duration::from_secs(600),
            assumed: None,
            recheck_every: Duration::from_secs(30),
            read_only: false,
        }
    }
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Leaves out the client, which holds the password.
        f.debug_struct("RedisStoreBuilder")
            .field("response_timeout", &self.response_timeout)
            .field("connection_timeout", &self.connection_timeout)
            .field("clock_slack", &self.clock_slack)
            .field("assumed", &self.assumed)
            .field("recheck_every", &self.recheck_every)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}
