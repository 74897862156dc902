//! The connections to the server, one after the other: [`Connections`].

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::time::timeout;

use super::diagnosis;
use super::grants::Grants;
use super::inspection::{self, Inspection};
use super::refusal::{again, meaning, nonsense, unavailable};
use super::time::ServerTime;
use super::watch::{Doubt, Watch};
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::wake::guarded;

/// How many connections may turn out to be dead before a call is given up.
const DEAD_ENDS: u32 = 3;
/// How soon a server that is in doubt is inspected again, at most.
const DOUBT: Duration = Duration::from_secs(1);

/// One multiplexed connection at a time. A call is sent at most once, and ends within the time-outs; the next call after one
/// that lost its connection opens another.
///
/// Each new connection inspects its server before anything else is sent. A `ConnectionManager` of the `redis` crate
/// reconnects unseen, so that nothing could be said of the server behind it.
pub(super) struct Connections {
    client: Client,
    config: AsyncConnectionConfig,
    /// For connecting, and for an answer.
    limits: [Duration; 2],
    pub(super) watch: Watch,
    state: Mutex<State>,
    /// Held by the caller that opens a connection for all.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Connection>>,
    /// The number of attempts to open one so far, and how the last one failed.
    attempts: u64,
    failure: Option<StoreError>,
}

/// A connection, and what is believed of the server behind it: that ends with the connection, since the next one may lead to
/// another server.
pub(super) struct Connection {
    inner: MultiplexedConnection,
    pub(super) time: ServerTime,
    pub(super) grants: Grants,
    /// Whether the server knows `SET .. IFEQ`.
    pub(super) compares: AtomicBool,
    run_id: Option<String>,
    looked: Mutex<Looked>,
}

/// What the last inspection came to.
struct Looked {
    /// On the monotonic clock, when it was sent.
    at: Duration,
    doubt: Option<Doubt>,
}

impl Connections {
    /// Connects with the first call.
    pub(super) fn new(client: Client, limits: [Duration; 2], watch: Watch) -> Connections {
        let [connect, answer] = limits;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect))
            .set_response_timeout(Some(answer));
        let (state, opening) = (Mutex::default(), tokio::sync::Mutex::default());
        Connections { client, config, limits, watch, state, opening }
    }

    /// The present connection. If there is none, the first caller opens one, and the others wait for that.
    pub(super) async fn get(&self) -> Result<Arc<Connection>, StoreError> {
        let attempts = {
            let state = self.lock();
            if let Some(connection) = &state.current {
                return Ok(Arc::clone(connection));
            }
            state.attempts
        };
        // The caller that opens one wakes the next.
        guarded(self.get_anew(attempts)).await
    }

    async fn get_anew(&self, attempts: u64) -> Result<Arc<Connection>, StoreError> {
        // Times out where the opening caller is no longer polled; then this one opens another.
        let _opening = timeout(self.limit(), self.opening.lock()).await;
        {
            let state = self.lock();
            if let Some(connection) = &state.current {
                return Ok(Arc::clone(connection));
            }
            if let Some(failure) = state.failure.as_ref().filter(|_| state.attempts != attempts) {
                return Err(again(failure));
            }
        }
        let opened = match timeout(self.limit(), self.open()).await {
            Ok(Ok(opened)) => opened.map(Arc::new),
            Ok(Err(error)) => Err(diagnosis::of(&self.client, &self.config, &error).await),
            Err(_) => Err(unavailable("no answer in time")),
        };
        let mut state = self.lock();
        state.attempts += 1;
        state.failure = opened.as_ref().err().map(again);
        state.current = opened.as_ref().ok().cloned();
        opened
    }

    /// Sends `count` commands at once; an error of one is its answer.
    pub(super) async fn send(
        &self,
        connection: &Arc<Connection>,
        commands: &Pipeline,
        count: usize,
    ) -> Result<Vec<Value>, StoreError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        // All callers are woken by the one task that reads the connection.
        let mut inner = connection.inner.clone();
        match guarded(inner.req_packed_commands(commands, 0, count)).await {
            Ok(replies) => {
                // A primary that became a replica: the name may lead to another by now.
                if replies.iter().any(is_no_primary) {
                    self.discard(connection);
                }
                if replies.len() == count { Ok(replies) } else { Err(nonsense()) }
            }
            // No answer, or none that can be read. What still comes is for nobody.
            Err(error) => {
                self.discard(connection);
                Err(meaning(&error))
            }
        }
    }

    /// Sends the commands over the present connection.
    pub(super) async fn call(&self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, StoreError> {
        let connection = self.get().await?;
        self.send(&connection, commands, count).await
    }

    /// Why this server must not be given another grant, if so: by an inspection that is recent enough.
    pub(super) async fn doubt(&self, connection: &Arc<Connection>) -> Option<StoreError> {
        let now = SystemClock.monotonic();
        if connection.lock().is_over(now, self.watch.every()) {
            let replies = match self.send(connection, &inspection::commands(), inspection::COUNT).await {
                Ok(replies) => replies,
                Err(error) => return Some(error),
            };
            let inspection = match Inspection::parse(replies) {
                Ok(inspection) => inspection,
                Err(error) => return Some(error),
            };
            if inspection.run_id != connection.run_id && inspection.run_id.is_some() {
                self.discard(connection);
                return Some(unavailable("another server answers on the same connection"));
            }
            *connection.lock() = Looked { at: now, doubt: self.watch.judge(&inspection) };
        }
        let doubt = connection.lock().doubt.clone().or_else(|| self.watch.doubt())?;
        if doubt == Doubt::Replica {
            self.discard(connection);
        }
        Some(doubt.error())
    }

    /// The next call opens another connection.
    fn discard(&self, connection: &Arc<Connection>) {
        let mut state = self.lock();
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            state.current = None;
        }
    }

    /// Connections that are lost at once are no reason to fail: each was made after the call.
    async fn open(&self) -> Result<Result<Connection, StoreError>, RedisError> {
        let mut dead_ends = 0;
        loop {
            let opened = self.try_open().await;
            dead_ends += 1;
            let is_lost =
                |error: &RedisError| error.is_connection_dropped() && !error.is_connection_refusal();
            if dead_ends == DEAD_ENDS || !opened.as_ref().is_err_and(is_lost) {
                return opened;
            }
        }
    }

    async fn try_open(&self) -> Result<Result<Connection, StoreError>, RedisError> {
        let mut inner = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let at = SystemClock.monotonic();
        let replies = inner.req_packed_commands(&inspection::commands(), 0, inspection::COUNT).await?;
        Ok(Inspection::parse(replies).map(|inspection| Connection {
            inner,
            time: ServerTime::default(),
            grants: Grants::default(),
            compares: AtomicBool::new(inspection.compares),
            looked: Mutex::new(Looked { at, doubt: self.watch.judge(&inspection) }),
            run_id: inspection.run_id,
        }))
    }

    /// How long it takes at most to open a connection.
    fn limit(&self) -> Duration {
        let [connect, answer] = self.limits;
        connect.saturating_add(answer)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// What was wrong with the server at the last inspection.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        self.lock().doubt.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Looked> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looked {
    /// Whether it is time for another. A doubt is looked at sooner, so that the end of trouble is noticed.
    fn is_over(&self, now: Duration, every: Duration) -> bool {
        let every = if self.doubt.is_some() { every.min(DOUBT) } else { every };
        now.saturating_sub(self.at) >= every
    }
}

fn is_no_primary(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown].iter().any(|kind| error.kind() == Some(*kind))
}
