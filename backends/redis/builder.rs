//! How a store is set up: [`RedisStoreBuilder`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ::redis::Client;
use ::redis::aio::ConnectionManagerConfig;

use super::courier::Courier;
use super::grants::Grants;
use super::link::Link;
use super::records::Records;
use super::refusal::meaning;
use super::script::Scripts;
use super::time::ServerTime;
use super::waiters::Waiters;
use super::{Inner, RedisStore, in_tokio, preflight};
use crate::error::StoreError;
use crate::policy::Durability;

/// Sets up a [`RedisStore`]; made by [`RedisStore::builder`].
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisStoreBuilder {
    client: Result<Client, StoreError>,
    prefix: Vec<u8>,
    response_timeout: Duration,
    connection_timeout: Duration,
    clock_slack: Duration,
    assumed: Option<Durability>,
}

impl RedisStoreBuilder {
    /// What the names of all keys start with. **Default `nevertwice:`.** Stores with different prefixes do not see each
    /// other's records.
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> RedisStoreBuilder {
        self.prefix = prefix.as_ref().as_bytes().to_vec();
        self
    }

    /// How long the server may take to answer. **Default 1 s.** An engine repeats a call that got no answer until its
    /// [`call_timeout`](crate::Policy::call_timeout), of which this should be less than a third.
    pub fn response_timeout(mut self, limit: Duration) -> RedisStoreBuilder {
        self.response_timeout = limit;
        self
    }

    /// How long it may take to connect and log in. **Default 1 s.**
    pub fn connection_timeout(mut self, limit: Duration) -> RedisStoreBuilder {
        self.connection_timeout = limit;
        self
    }

    /// By how much the server's clock may be set back, or that of a new primary be slow, without harm. **Default 10 min.**
    /// The server keeps every record, and the stamp of every removed one, for that much longer. With less than a minute
    /// every write takes the script, which is slower.
    pub fn clock_slack(mut self, slack: Duration) -> RedisStoreBuilder {
        self.clock_slack = slack;
        self
    }

    /// States what the server's writes survive, for where it must not be asked ([`Warning::DurabilityUnverified`](super::Warning::DurabilityUnverified)):
    /// your word, not checked. **Default: the least that what it told allows.** What it does tell counts instead.
    pub fn assume_durability(mut self, durability: Durability) -> RedisStoreBuilder {
        self.assumed = Some(durability);
        self
    }

    /// Connects, and looks at whether the server can be used, within the time-outs.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if nobody answers, or not now; [`StoreError::Unusable`] if the URL is none, the
    /// log-in is refused, or the server must not be used as it is set up.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        in_tokio()?;
        let client = self.client?;
        // The engine repeats what failed, within its deadline: no retries of our own in between.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(self.connection_timeout))
            .set_response_timeout(Some(self.response_timeout));
        let link = Link::new(client.clone(), config).map_err(|error| meaning(&error))?;
        let scripts = Scripts::new();
        let records = Arc::new(Records { link, prefix: self.prefix });
        let limits = [self.connection_timeout, self.response_timeout];
        let found = preflight::inspect(&client, &records.link, limits, &scripts, self.assumed).await?;
        Ok(RedisStore(Arc::new(Inner {
            waiters: Waiters::new(Arc::clone(&records), client, limits),
            records,
            clock_slack: self.clock_slack,
            scripts,
            time: ServerTime::default(),
            compares: AtomicBool::new(found.compares),
            grants: Grants::default(),
            courier: Courier::default(),
            // A trip that goes three times, and a probe of the connection.
            patience: (self.connection_timeout.saturating_add(self.response_timeout)).saturating_mul(4),
            durability: found.durability,
            warnings: found.warnings,
        })))
    }

    pub(super) fn new(client: Result<Client, StoreError>) -> RedisStoreBuilder {
        RedisStoreBuilder {
            client,
            prefix: b"nevertwice:".to_vec(),
            response_timeout: Duration::from_secs(1),
            connection_timeout: Duration::from_secs(1),
            clock_slack: Duration::from_secs(600),
            assumed: None,
        }
    }
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client: it knows the password.
        f.debug_struct("RedisStoreBuilder")
            .field("response_timeout", &self.response_timeout)
            .field("connection_timeout", &self.connection_timeout)
            .field("clock_slack", &self.clock_slack)
            .field("assumed", &self.assumed)
            .finish_non_exhaustive()
    }
}
