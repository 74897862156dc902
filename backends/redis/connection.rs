//! The connection to the server and its replacements: [`Connections`].

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::{AsyncConnectionConfig, Client, ConnectionAddr, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::time::timeout;

use super::address::{Address, Redirect};
use super::error::{diagnose, is_lost, malformed, store_error, unavailable};
use super::grant_cache::{GrantCache, SharedGrants};
use super::inspection::{self, ServerReport};
use super::shard::Settings;
use super::time::ServerTime;
use super::watch::{Doubt, ServerWatch};
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::wake::guarded_in_place;

/// Number of new connections, each lost immediately, after which the call fails.
const OPEN_ATTEMPTS: u32 = 3;
/// Detail of the error for a port that may not expect TLS.
const NO_TLS_ANSWER: &str = "no answer in time: is TLS expected on this port?";
/// Longest interval between inspections while grants are refused, and of those that reads rely on.
const DOUBT: Duration = Duration::from_secs(1);

/// One multiplexed connection at a time. A call is sent at most once and ends within the timeouts.
/// After a call that lost the connection, the next one opens another.
///
/// Each new connection inspects its server before anything else is sent. The `ConnectionManager` of
/// the `redis` crate reconnects invisibly, so nothing could be assumed about the server behind it.
pub(super) struct Connections {
    client: Client,
    config: AsyncConnectionConfig,
    /// Timeouts for connecting and for an answer.
    limits: [Duration; 2],
    pub(super) watch: Arc<ServerWatch>,
    address: Address,
    is_cluster: bool,
    /// The id that the node of a cluster must have, once it is known.
    node_id: Arc<OnceLock<String>>,
    grants: Arc<SharedGrants>,
    current: Mutex<Current>,
    /// Held by the caller that opens a connection for all callers.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Current {
    connection: Option<Arc<Connection>>,
    /// The number of attempts to open one so far, and the error of the last one.
    attempts: u64,
    failure: Option<StoreError>,
}

/// A connection, and everything assumed about the server behind it. The next connection may lead to
/// another server.
pub(super) struct Connection {
    inner: MultiplexedConnection,
    pub(super) time: ServerTime,
    pub(super) grants: Arc<GrantCache>,
    /// True if the server knows `SET .. IFEQ`.
    pub(super) compares: AtomicBool,
    run_id: Option<String>,
    /// The id of the node of a cluster.
    node_id: Option<String>,
    /// The address of the node of a cluster, relative to which its redirects are read.
    node: Option<Address>,
    last_inspection: Mutex<LastInspection>,
    silence: Silence,
}

/// The calls that were dropped since the server last answered. A dropped call does not see its
/// timeout, so a connection that no answer comes through would be kept as long as every caller
/// leaves early.
#[derive(Default)]
struct Silence {
    /// The time of the first, in microseconds on the monotonic clock, plus one; 0 if there is none.
    first: AtomicU64,
    /// The time of the last.
    last: AtomicU64,
}

/// A call under way. Dropped, it may be the start of a silence.
struct Asking<'a>(Option<&'a Silence>);

/// The result of the last inspection.
struct LastInspection {
    /// The time at which it was sent, on the monotonic clock.
    at: Duration,
    /// The time at which a read sent another one, for all reads that come meanwhile.
    claimed: Duration,
    doubt: Option<Doubt>,
    /// True if something was seen since then that another one would explain.
    is_due: bool,
}

impl Connections {
    /// Creates them unconnected; the first call connects.
    pub(super) fn new(
        client: Client,
        address: &Address,
        settings: &Settings,
        grants: &Arc<SharedGrants>,
        node_id: &Arc<OnceLock<String>>,
    ) -> Connections {
        let (limits, watch) = (settings.limits, Arc::clone(&settings.watch));
        let (address, is_cluster) = (address.clone(), settings.is_cluster);
        let config = configuration(limits);
        let (grants, node_id) = (Arc::clone(grants), Arc::clone(node_id));
        let (current, opening) = (Mutex::default(), tokio::sync::Mutex::default());
        Connections { client, config, limits, watch, address, is_cluster, node_id, grants, current, opening }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// True if there is a connection.
    pub(super) fn is_open(&self) -> bool {
        self.lock().connection.is_some()
    }

    /// Returns the current connection. If there is none, the first caller opens one and the others
    /// wait for it.
    pub(super) async fn get(&self) -> Result<Arc<Connection>, StoreError> {
        let attempts = {
            let mut current = self.lock();
            let [_, answer] = self.limits;
            match &current.connection {
                Some(connection) if connection.silence.is_over(answer) => current.connection = None,
                Some(connection) => return Ok(Arc::clone(connection)),
                None => {}
            }
            current.attempts
        };
        // The caller that opens one wakes the next.
        // Boxed, since it is rare, and would make every pipeline's future large to move.
        guarded_in_place(Box::pin(self.get_anew(attempts))).await
    }

    async fn get_anew(&self, attempts: u64) -> Result<Arc<Connection>, StoreError> {
        // Times out if the opening caller is no longer polled; this one then opens another.
        let _opening = timeout(self.limit(), self.opening.lock()).await;
        {
            let current = self.lock();
            if let Some(connection) = &current.connection {
                return Ok(Arc::clone(connection));
            }
            if let Some(failure) = current.failure.as_ref().filter(|_| current.attempts != attempts) {
                return Err(failure.clone());
            }
        }
        let opened = timely(&self.client, &self.config, self.limit(), self.open()).await;
        let opened = opened.and_then(|opened| opened.map(Arc::new));
        let mut current = self.lock();
        current.attempts += 1;
        current.failure = opened.as_ref().err().cloned();
        current.connection = opened.as_ref().ok().cloned();
        opened
    }

    /// Sends `count` commands at once. The error of a single command is its reply.
    pub(super) async fn send(
        &self,
        connection: &Arc<Connection>,
        commands: &Pipeline,
        count: usize,
    ) -> Result<Vec<Value>, StoreError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        // The task that reads the connection wakes all callers.
        let mut inner = connection.inner.clone();
        let asking = Asking(Some(&connection.silence));
        let replies = guarded_in_place(inner.req_packed_commands(commands, 0, count)).await;
        asking.answered();
        match replies {
            Ok(replies) => {
                // A primary became a replica: the host name may lead to another server by now.
                if replies.iter().any(is_no_primary) {
                    self.discard(connection);
                }
                if replies.len() == count { Ok(replies) } else { Err(malformed()) }
            }
            // No answer, or an unreadable one. Later answers on this connection are ignored.
            Err(error) => {
                self.discard(connection);
                Err(store_error(&error))
            }
        }
    }

    /// Sends the commands over the current connection.
    pub(super) async fn call(&self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, StoreError> {
        let connection = self.get().await?;
        self.send(&connection, commands, count).await
    }

    /// Fails if this server must be given no more grants, by an inspection that is recent enough.
    pub(super) async fn check_grants(&self, connection: &Arc<Connection>) -> Result<(), StoreError> {
        let every = self.watch.every();
        self.check_grants_since(connection, every).await
    }

    /// Inspects the server now. Fails if it does not answer, or must be given no more grants.
    pub(super) async fn inspect(&self) -> Result<(), StoreError> {
        let connection = self.get().await?;
        self.check_grants_since(&connection, Duration::ZERO).await
    }

    /// Fails if this server is a replica, by an inspection that is recent enough: it may lack what
    /// the primary has.
    pub(super) async fn check_reads(&self, connection: &Arc<Connection>) -> Result<(), StoreError> {
        let now = SystemClock.monotonic();
        if connection.lock().claim(now) {
            Box::pin(self.inspect_again(connection, now)).await?;
        }
        match connection.doubt() {
            Some(doubt @ Doubt::Replica) => {
                self.discard(connection);
                Err(doubt.error())
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn check_grants_since(
        &self,
        connection: &Arc<Connection>,
        every: Duration,
    ) -> Result<(), StoreError> {
        self.renew_inspection(connection, every).await?;
        let Some(doubt) = connection.doubt().or_else(|| self.watch.doubt()) else { return Ok(()) };
        if doubt == Doubt::Replica {
            self.discard(connection);
        }
        Err(doubt.error())
    }

    /// Inspects the server if the last inspection is older than this.
    async fn renew_inspection(
        &self,
        connection: &Arc<Connection>,
        every: Duration,
    ) -> Result<(), StoreError> {
        let now = SystemClock.monotonic();
        let is_over = connection.lock().is_over(now, every);
        // Boxed, since it is rare, as above.
        if is_over { Box::pin(self.inspect_again(connection, now)).await } else { Ok(()) }
    }

    async fn inspect_again(&self, connection: &Arc<Connection>, now: Duration) -> Result<(), StoreError> {
        let commands = inspection::commands(self.is_cluster);
        let replies = self.send(connection, &commands, commands.len()).await?;
        let report = ServerReport::parse(replies)?;
        if let Err(error) = self.check_node(report.node_id.as_deref()) {
            self.discard(connection);
            return Err(error);
        }
        if report.run_id != connection.run_id && report.run_id.is_some() {
            self.discard(connection);
            return Err(unavailable("another server answers on the same connection"));
        }
        *connection.lock() = LastInspection::new(now, self.watch.judge(&self.address, &report));
        Ok(())
    }

    /// Fails if the node has another id than that of the cluster's node at its address. One that
    /// tells none is not checked.
    fn check_node(&self, node_id: Option<&str>) -> Result<(), StoreError> {
        match (self.node_id.get(), node_id) {
            (Some(expected), Some(found)) if expected != found => {
                Err(unavailable("a node of another cluster, or one that was set up again, is at its address"))
            }
            _ => Ok(()),
        }
    }

    /// Drops the connection if it leads to another node than the one whose id became known.
    pub(super) fn recheck_node(&self) {
        let mut current = self.lock();
        let id = current.connection.as_ref().and_then(|connection| connection.node_id.as_deref());
        if self.check_node(id).is_err() {
            current.connection = None;
        }
    }

    /// Drops this connection as the current one, so that the next call opens another.
    fn discard(&self, connection: &Arc<Connection>) {
        let mut current = self.lock();
        if current.connection.as_ref().is_some_and(|held| Arc::ptr_eq(held, connection)) {
            current.connection = None;
        }
    }

    /// Opens a connection. One that is lost immediately does not fail the call yet: each attempt is
    /// made after the call started.
    async fn open(&self) -> Result<Result<Connection, StoreError>, RedisError> {
        for _ in 1..OPEN_ATTEMPTS {
            let opened = self.try_open().await;
            if !opened.as_ref().is_err_and(is_lost) {
                return opened;
            }
        }
        self.try_open().await
    }

    async fn try_open(&self) -> Result<Result<Connection, StoreError>, RedisError> {
        let mut inner = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let at = SystemClock.monotonic();
        let commands = inspection::commands(self.is_cluster);
        let replies = inner.req_packed_commands(&commands, 0, commands.len()).await?;
        let checked = |report: ServerReport| self.check_node(report.node_id.as_deref()).map(|()| report);
        Ok(ServerReport::parse(replies).and_then(checked).map(|report| Connection {
            inner,
            time: ServerTime::default(),
            grants: self.grants.of(report.run_id.as_deref()),
            compares: AtomicBool::new(report.compares),
            last_inspection: Mutex::new(LastInspection::new(at, self.watch.judge(&self.address, &report))),
            run_id: report.run_id,
            node_id: report.node_id,
            node: self.is_cluster.then(|| self.address.clone()),
            silence: Silence::default(),
        }))
    }

    /// Upper bound on the time to open a connection.
    fn limit(&self) -> Duration {
        let [connect, answer] = self.limits;
        connect.saturating_add(answer)
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Reads a redirect from the error of a node of a cluster.
    pub(super) fn redirect(&self, error: &RedisError) -> Option<Redirect> {
        Redirect::of(error, self.node.as_ref()?)
    }

    /// Returns a number that differs after each start of the server, or 0 if that is not known.
    pub(super) fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.run_id.as_ref().map_or(0, |run_id| {
            run_id.hash(&mut hasher);
            hasher.finish().max(1)
        })
    }

    /// Returns the reason to refuse grants that the last inspection found.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        self.lock().doubt.clone()
    }

    /// Lets the next call that relies on an inspection make another one.
    pub(super) fn inspect_soon(&self) {
        self.lock().is_due = true;
    }

    fn lock(&self) -> MutexGuard<'_, LastInspection> {
        self.last_inspection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Silence {
    /// Returns true if calls were dropped over a time of `limit` without any answer. One that was
    /// dropped alone says nothing: nothing may have been asked since its answer came.
    fn is_over(&self, limit: Duration) -> bool {
        let (first, last) = (self.first.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed));
        first != 0 && Duration::from_micros(last.saturating_sub(first)) >= limit
    }

    fn dropped(&self, now: Duration) {
        let now = now.as_micros() as u64 + 1;
        let _ = self.first.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
    }

    fn answered(&self) {
        if self.first.load(Ordering::Relaxed) != 0 {
            self.first.store(0, Ordering::Relaxed);
        }
    }
}

impl Asking<'_> {
    fn answered(mut self) {
        if let Some(silence) = self.0.take() {
            silence.answered();
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(silence) = self.0.take() {
            silence.dropped(SystemClock.monotonic());
        }
    }
}

impl LastInspection {
    fn new(at: Duration, doubt: Option<Doubt>) -> LastInspection {
        LastInspection { at, claimed: at, doubt, is_due: false }
    }

    /// Returns true if a read has to send another inspection. Reads that come before its answer
    /// rely on the one before.
    fn claim(&mut self, now: Duration) -> bool {
        let is_over = now.saturating_sub(self.at.max(self.claimed)) >= DOUBT;
        if is_over {
            self.claimed = now;
        }
        is_over
    }

    /// True if another inspection is due. A refusal is rechecked sooner, so that a repair is
    /// noticed.
    fn is_over(&self, now: Duration, every: Duration) -> bool {
        let every = if self.doubt.is_some() { every.min(DOUBT) } else { every };
        self.is_due || now.saturating_sub(self.at) >= every
    }
}

pub(super) fn configuration([connect, answer]: [Duration; 2]) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(connect)).set_response_timeout(Some(answer))
}

/// Bounds the time of opening a connection, and finds out why it fails.
pub(super) async fn timely<T>(
    client: &Client,
    config: &AsyncConnectionConfig,
    limit: Duration,
    open: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, StoreError> {
    match timeout(limit, open).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) if error.is_timeout() && is_tls(client) => Err(unavailable(NO_TLS_ANSWER)),
        Ok(Err(error)) => Err(diagnose(client, config, &error).await),
        Err(_) if is_tls(client) => Err(unavailable(NO_TLS_ANSWER)),
        Err(_) => Err(unavailable("no answer in time")),
    }
}

fn is_tls(client: &Client) -> bool {
    matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. })
}

fn is_no_primary(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown].iter().any(|kind| error.kind() == Some(*kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l3_only_calls_dropped_over_a_whole_timeout_without_an_answer_are_a_silence() {
        let (silence, limit) = (Silence::default(), Duration::from_secs(1));
        let at = Duration::from_millis;
        silence.dropped(at(5_000));
        assert!(!silence.is_over(limit), "dropped alone, however long ago");
        silence.dropped(at(5_999));
        assert!(!silence.is_over(limit));
        silence.dropped(at(6_000));
        assert!(silence.is_over(limit));
        silence.answered();
        assert!(!silence.is_over(limit));
        silence.dropped(at(7_000));
        assert!(!silence.is_over(limit), "it begins anew");
    }

    #[test]
    fn l1_one_read_a_second_inspects_and_the_others_do_not() {
        let at = Duration::from_millis;
        let mut last = LastInspection::new(at(0), None);
        assert!(!last.claim(at(999)));
        let claims = [1000, 1000, 1500, 1999, 2000].map(|now| last.claim(at(now)));
        assert_eq!(claims, [true, false, false, false, true]);
        assert!(last.is_over(at(2000), DOUBT), "a grant relies on answers only");
        assert!(!LastInspection::new(at(2000), None).claim(at(2500)));
    }
}
