//! The connections to the server: [`Connections`].

mod named;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Error, Notification, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

pub(super) use self::named::Named;
use super::backend_pid::backend_pid;
use super::error::{is_missing, store_error, unavailable, unusable};
use super::inspection::{Failure, ServerReport, Tables};
use super::schema::Names;
use crate::clock::{Clock, SystemClock};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::store_id::StoreId;
use crate::wake::guarded;

/// The pause after a failed attempt to connect: first and longest. Calls in between fail at once.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(250)];

/// The settings of all connections.
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) names: Names,
    pub(super) connect_timeout: Duration,
    pub(super) answer_timeout: Duration,
    /// The longest use of a connection: the next one inspects its server again.
    pub(super) recheck_every: Duration,
    /// The number of synchronous standbys that every write has to reach.
    pub(super) replicas: u8,
    /// True if nothing is ever written, so that a standby will do.
    pub(super) read_only: bool,
}

/// The purpose of a call. Reads have connections of their own, so that they are answered while
/// writes wait for a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Read,
    Write,
}

/// A pool of connections, each of which serves one call at a time.
///
/// A call that is dropped or times out goes on in a task: nothing is cancelled on the server, since
/// a cancelled wait for a standby counts as success there. Its connection is used again once the
/// server has answered, and counts until then, so the server is never given more connections than
/// the pool has.
pub(super) struct Connections {
    pub(super) settings: Settings,
    reads: Permits,
    writes: Permits,
    state: Mutex<State>,
    is_pooled: Arc<AtomicBool>,
    /// True from a cancelled wait for standbys until they were seen to have everything.
    is_behind: AtomicBool,
    /// The identity of the store and its durability, as of the first connection.
    expected: OnceLock<(StoreId, Durability)>,
}

/// The connections that one lane may use at a time.
struct Permits {
    semaphore: Arc<Semaphore>,
    /// The number of calls that the server has answered.
    answered: AtomicU64,
}

#[derive(Default)]
struct State {
    idle: VecDeque<Arc<Connection>>,
    /// The server of the last connection that was opened.
    incarnation: String,
    report: Option<ServerReport>,
    backoff: Option<Backoff>,
}

/// The state after a failed attempt to connect.
struct Backoff {
    until: Duration,
    pause: Duration,
    error: StoreError,
}

/// A connection, and everything assumed about the server behind it. The next connection may lead to
/// another server.
pub(super) struct Connection {
    pub(super) client: Client,
    /// True if the process that serves it is the one that was named when it was opened, which most
    /// poolers replace by an invention of theirs.
    is_direct: bool,
    /// True for all connections of the store once a name showed that a pooler is in between.
    is_pooled: Arc<AtomicBool>,
    named: [OnceCell<Statement>; Named::COUNT],
    pub(super) has_functions: bool,
    /// The reason to make no grants on this server.
    pub(super) doubt: Option<StoreError>,
    /// Set if the server gave up waiting for its standbys.
    unreplicated: Arc<AtomicBool>,
    opened: Duration,
    incarnation: String,
}

impl Connections {
    pub(super) fn new(settings: Settings, [reads, writes]: [usize; 2]) -> Connections {
        let [reads, writes] = [reads, writes]
            .map(|count| Permits { semaphore: Arc::new(Semaphore::new(count)), answered: AtomicU64::new(0) });
        Connections {
            settings,
            reads,
            writes,
            state: Mutex::default(),
            is_pooled: Arc::default(),
            is_behind: AtomicBool::new(false),
            expected: OnceLock::new(),
        }
    }

    /// Runs one call on a connection of its own, within the time limits.
    pub(super) async fn run<T, F, W>(self: &Arc<Self>, lane: Lane, work: W) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
        W: FnOnce(Arc<Connection>) -> F + Send + 'static,
    {
        // Another call's end wakes this one.
        let Some(permit) = guarded(self.permits(lane).acquire(self.settings.answer_timeout)).await else {
            return Err(
                unavailable("all connections wait for answers: a synchronous standby may be gone").into()
            );
        };
        let pool = Arc::clone(self);
        let call = async move {
            let connection = pool.take().await?;
            let answer = work(Arc::clone(&connection)).await;
            let is_replicated = pool.is_replicated(&connection, answer.is_ok()).await;
            pool.permits(lane).note(&answer);
            pool.finish(connection, &answer);
            drop(permit);
            match answer {
                Ok(_) if !is_replicated => {
                    Err(unavailable("it gave up waiting for its synchronous standbys").into())
                }
                answer => answer.map_err(CallError::Client),
            }
        };
        let Settings { connect_timeout, answer_timeout, .. } = self.settings;
        let mut call = InFlight(Some(Box::pin(call)));
        call.answer(connect_timeout.saturating_add(answer_timeout)).await
    }

    /// Returns true if the standbys have all that an answer may rest on. After a wait for them was
    /// cancelled, the server shows records that they lack. Then a write of its own, which they get
    /// after everything before it, confirms each answer until one was.
    async fn is_replicated(&self, connection: &Connection, confirm: bool) -> bool {
        const CONFIRM: &str = "SELECT pg_logical_emit_message(true, 'nevertwice', '')";
        if self.settings.replicas == 0 {
            return true;
        }
        let was_cancelled = || connection.unreplicated.load(Ordering::SeqCst);
        if was_cancelled() {
            self.is_behind.store(true, Ordering::SeqCst);
            return false;
        }
        if !confirm || !self.is_behind.load(Ordering::SeqCst) {
            return true;
        }
        let confirmed = connection.client.batch_execute(CONFIRM).await.is_ok() && !was_cancelled();
        if confirmed {
            self.is_behind.store(false, Ordering::SeqCst);
        }
        confirmed
    }

    /// Opens a connection for another use than the pool's, with the notifications that arrive on
    /// it.
    pub(super) async fn open_listener(
        &self,
    ) -> Result<(Connection, UnboundedReceiver<Notification>), StoreError> {
        let (sender, notifications) = unbounded_channel();
        Ok((self.open(Some(sender)).await?, notifications))
    }

    /// Opens the first connection, which decides what the store is. Returns true if the functions
    /// are there.
    pub(super) async fn open_first(&self) -> Result<bool, StoreError> {
        let connection = self.open(None).await?;
        let has_functions = connection.has_functions;
        self.put(Arc::new(connection));
        Ok(has_functions)
    }

    /// Returns the durability as of the last connection.
    pub(super) fn durability(&self) -> Durability {
        let found = self.lock().report.as_ref().map(|report| self.level(report));
        found.or(self.expected.get().map(|(_, level)| *level)).unwrap_or(Durability::Memory)
    }

    /// Returns true if the last connection led to a standby.
    pub(super) fn is_standby(&self) -> bool {
        self.lock().report.as_ref().is_some_and(|report| report.is_standby)
    }

    pub(super) fn identity(&self) -> Option<StoreId> {
        self.expected.get().map(|(identity, _)| *identity)
    }

    fn permits(&self, lane: Lane) -> &Permits {
        match lane {
            Lane::Read => &self.reads,
            Lane::Write => &self.writes,
        }
    }

    /// Takes an idle connection, or opens one.
    async fn take(&self) -> Result<Arc<Connection>, StoreError> {
        let now = SystemClock.monotonic();
        {
            let mut state = self.lock();
            while let Some(connection) = state.idle.pop_back() {
                if self.is_usable(&state, &connection, now) {
                    return Ok(connection);
                }
            }
            if let Some(backoff) = state.backoff.as_ref().filter(|backoff| now < backoff.until) {
                return Err(backoff.error.clone());
            }
        }
        let opened = self.open(None).await.map(Arc::new);
        let mut state = self.lock();
        match &opened {
            Ok(_) => state.backoff = None,
            Err(error) => {
                let pause = state.backoff.as_ref().map_or(PAUSES[0], |last| (last.pause * 2).min(PAUSES[1]));
                let until = SystemClock.monotonic() + pause;
                state.backoff = Some(Backoff { until, pause, error: error.clone() });
            }
        }
        opened
    }

    /// Returns a connection to the pool if it can be used again.
    fn finish<T>(&self, connection: Arc<Connection>, answer: &Result<T, Error>) {
        let is_usable = match answer {
            Ok(_) => true,
            Err(error) if is_missing(error) => {
                // A migration changed what every connection found: all are inspected again.
                self.lock().incarnation.clear();
                false
            }
            Err(error) => error.code().is_some() && !is_gone(error),
        };
        if is_usable {
            self.put(connection);
        }
    }

    fn put(&self, connection: Arc<Connection>) {
        let now = SystemClock.monotonic();
        let mut state = self.lock();
        if self.is_usable(&state, &connection, now) {
            state.idle.push_back(connection);
        }
    }

    fn is_usable(&self, state: &State, connection: &Connection, now: Duration) -> bool {
        !connection.client.is_closed()
            && connection.incarnation == state.incarnation
            && now.saturating_sub(connection.opened) < self.settings.recheck_every
            && !connection.unreplicated.load(Ordering::Relaxed)
    }

    async fn open(
        &self,
        notifications: Option<UnboundedSender<Notification>>,
    ) -> Result<Connection, StoreError> {
        let (connection, report) = self.dial(notifications).await?;
        let Some(Tables { identity, .. }) = report.tables else {
            return Err(unusable("its tables are gone: restore them, or start again with new ones"));
        };
        let level = self.level(&report);
        let (expected, promised) = self.expected.get_or_init(|| (identity, level));
        if identity != *expected {
            return Err(unusable(
                "another store answers at the same address, such as a restored copy: restart, to use it as it is",
            ));
        }
        let doubt = (!level.satisfies(*promised)).then(|| {
            unusable(format!("it is less durable than when the store connected: {level}, not {promised}"))
        });
        let mut state = self.lock();
        state.incarnation.clone_from(&report.incarnation);
        state.report = Some(report);
        Ok(Connection { doubt, ..connection })
    }

    /// Connects and inspects the server.
    pub(super) async fn dial(
        &self,
        notifications: Option<UnboundedSender<Notification>>,
    ) -> Result<(Connection, ServerReport), StoreError> {
        let Settings { config, tls, names, connect_timeout, answer_timeout, replicas, read_only, .. } =
            &self.settings;
        let opened = SystemClock.monotonic();
        // The time limit of the client is for each address.
        let connected = timeout(*connect_timeout, config.connect(tls.clone())).await;
        let (client, mut connection) = match connected {
            Ok(connected) => connected.map_err(|error| store_error(&error))?,
            Err(_) => return Err(unavailable("no connection in time: check the address and the firewall")),
        };
        let unreplicated = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&unreplicated);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = &message {
                    // A wait for standbys that was cancelled is reported as success otherwise.
                    // Texts are translated, and its code is that of any warning.
                    if notice.file().is_some_and(|file| file.contains("syncrep")) {
                        seen.store(true, Ordering::SeqCst);
                    }
                } else if let (AsyncMessage::Notification(notification), Some(sender)) =
                    (message, &notifications)
                {
                    let _ = sender.send(notification);
                }
            }
        });
        let inspection = async {
            let report = ServerReport::ask(&client, names, *read_only).await?;
            if *replicas > 0 && report.hides_warnings {
                return Err(Failure::Refused(unusable(
                    "it hides the warning that a wait for standbys was cancelled: set client_min_messages to \
                     'warning' or lower",
                )));
            }
            Ok(report)
        };
        let report = match timeout(*answer_timeout, inspection).await {
            Ok(Ok(report)) => report,
            Ok(Err(Failure::Client(error))) => return Err(store_error(&error)),
            Ok(Err(Failure::Refused(error))) => return Err(error),
            Err(_) => return Err(unavailable("no answer in time")),
        };
        let connection = Connection {
            is_direct: backend_pid(&client).await == Some(report.backend_pid),
            is_pooled: Arc::clone(&self.is_pooled),
            named: Default::default(),
            client,
            has_functions: report.tables.is_some_and(|tables| tables.has_functions),
            doubt: None,
            unreplicated,
            opened,
            incarnation: report.incarnation.clone(),
        };
        Ok((connection, report))
    }

    /// The durability that the store reports for this server.
    fn level(&self, report: &ServerReport) -> Durability {
        match self.settings.replicas {
            wanted if wanted > 0 && report.replicas >= wanted && report.durability == Durability::Power => {
                Durability::Replicated(wanted)
            }
            _ => report.durability,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permits {
    /// Waits for its turn. Gives up once the server has answered no call for `limit`: many callers
    /// may wait for longer while it is only slow.
    async fn acquire(&self, limit: Duration) -> Option<OwnedSemaphorePermit> {
        let mut permit = pin!(Arc::clone(&self.semaphore).acquire_owned());
        loop {
            let before = self.answered.load(Ordering::Relaxed);
            match timeout(limit, permit.as_mut()).await {
                Ok(permit) => return permit.ok(),
                Err(_) if self.answered.load(Ordering::Relaxed) != before => {}
                Err(_) => return None,
            }
        }
    }

    fn note<T>(&self, answer: &Result<T, Error>) {
        if answer.as_ref().map_or_else(|error| error.code().is_some(), |_| true) {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// True if the server is stopping, or read-only: the primary became a standby, and the name may
/// lead to another server.
pub(super) fn is_gone(error: &Error) -> bool {
    error
        .code()
        .is_some_and(|code| *code == SqlState::READ_ONLY_SQL_TRANSACTION || code.code().starts_with("57P"))
}

/// The reason why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The error of the server or the client, which decides what may have happened.
    Client(Error),
    Store(StoreError),
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> CallError {
        CallError::Store(error)
    }
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> StoreError {
        match error {
            CallError::Client(error) => store_error(&error),
            CallError::Store(error) => error,
        }
    }
}

type BoxedCall<T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send>>;

/// A call that was started. Dropped before its answer, it goes on in a task.
struct InFlight<T: Send + 'static>(Option<BoxedCall<T>>);

impl<T: Send + 'static> InFlight<T> {
    async fn answer(&mut self, limit: Duration) -> Result<T, CallError> {
        let Some(call) = &mut self.0 else { return Err(unavailable("it was answered before").into()) };
        // The task that reads the connection wakes this one.
        let Ok(answer) = guarded(timeout(limit, call)).await else {
            return Err(unavailable("no answer in time").into());
        };
        self.0 = None;
        answer
    }
}

impl<T: Send + 'static> Drop for InFlight<T> {
    fn drop(&mut self) {
        if let (Some(call), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { drop(call.await) });
        }
    }
}
