//! The PostgreSQL store: [`PostgresStore`].

mod backend_pid;
mod builder;
mod connection;
mod error;
mod inspection;
mod listener;
mod loads;
mod migration;
mod notifier;
mod outbox;
mod purge;
mod reads;
mod row;
mod schema;
mod swap;
mod tls;
mod transaction;
mod warning;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;

/// The `rustls` whose settings [`PostgresStoreBuilder::tls`] takes.
pub use ::rustls;
/// The `tokio-postgres` that the store is built with.
pub use ::tokio_postgres;

pub use self::builder::PostgresStoreBuilder;
use self::connection::Connections;
use self::error::{BACKEND, unavailable, unusable};
use self::listener::PostgresListener;
use self::loads::Loads;
use self::notifier::Notifier;
pub use self::outbox::{PostgresOutbox, PostgresOutboxBuilder, outbox_schema};
use self::purge::Purges;
use self::reads::Reads;
pub use self::schema::{SCHEMA, SCHEMA_VERSION, schema};
use self::swap::{Answer, Item, MAX_BYTES, MAX_ITEMS, Swaps};
use self::transaction::Own;
pub use self::transaction::{
    OwnTransaction, TxLease, begin_in, begin_in_within, complete_in, fail_in, resume_in,
};
pub use self::warning::Warning;
use crate::backends::shared::batcher::{Batcher, Transport};
use crate::backends::shared::waiters::Waiters;
use crate::durability::Durability;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::process::Process;
use crate::record::Stamp;
use crate::store::{Cursor, Page, Purge, Snapshot, Store, Swap, SwapRequest};
use crate::store_id::StoreId;

/// Records in a table of a PostgreSQL server (13 or later), shared by every process that connects
/// to it.
///
/// Needs a tokio runtime. Clones share the connections. Lost ones are opened again by the calls
/// that need them.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use nevertwice::{Durability, Engine, PostgresStore};
/// let store = PostgresStore::connect("postgres://payments:secret@127.0.0.1/shop").await?;
/// for warning in store.warnings() {
///     eprintln!("postgres: {warning}");
/// }
/// let engine = Engine::builder(store).require(Durability::Power).build()?;
/// # Ok(())
/// # }
/// ```
///
/// # Tables
///
/// The store creates its [tables](SCHEMA) where there are none:
/// [`table`](PostgresStoreBuilder::table) names them. One row holds a key's stamp, its
/// [encoded](crate::store::Record::encode) record, and the columns that a purge needs. A removed
/// record leaves its row, with the stamp, until the next purge. Call
/// [`Engine::purge`](crate::Engine::purge) regularly: nothing is removed automatically.
///
/// Concurrent calls are sent together: two batches are under way at a time, each one call of a
/// function and one commit as a rule, and no call waits for others to arrive. Without the right to
/// call or create the functions, each swap is a statement of its own ([`Warning::NoFunctions`]). A
/// pooler that lends connections for one transaction each (PgBouncer) works: statements are named
/// only where none is in between; waiters then poll.
///
/// # Server requirements
///
/// * A primary. A standby and a server that is read-only are refused.
/// * Transactions of its role are READ COMMITTED by default.
/// * Durability as the application needs: see [`durability`](Store::durability). `fsync`,
///   `full_page_writes` and `synchronous_commit` on are [`Durability::Power`]. Without the first or
///   the second it is [`Durability::Process`]. With `synchronous_commit` off, or an unlogged table,
///   a crash of the server alone loses acknowledged writes ([`Durability::Memory`]).
///   [`replicas`](PostgresStoreBuilder::replicas) asks for [`Durability::Replicated`]. A failover
///   to an asynchronous standby loses what it did not have yet.
/// * A correct clock, corrected only by slewing. A clock set back prolongs leases by as much, and
///   repeats no fence. A clock set forward ends leases and retention early.
///
/// # Changes of the server
///
/// Each new connection inspects its server before anything else is sent over it, and none is used
/// for longer than [`recheck_every`](PostgresStoreBuilder::recheck_every). A server that is less
/// durable than when the store connected gets no more grants; duplicates are answered and leases
/// finished. A connection to a database with other tables, such as a copy that was restored,
/// is refused.
///
/// # Own transactions on the same key
///
/// A key that an open transaction of the application's holds cannot be read by others before it
/// ends. A call on such a key is repeated until its time limit; calls on other keys do not wait
/// for it.
#[derive(Clone)]
pub struct PostgresStore(Arc<Inner>);

struct Inner {
    waiters: Waiters<PostgresListener>,
    notifier: Notifier,
    swaps: Swaps,
    reads: Reads,
    loads: Arc<Loads>,
    purges: Purges,
    own: Own,
    connections: Arc<Connections>,
    identity: StoreId,
    batcher: Batcher<Inner>,
    /// Upper bound on the time that one delivery takes.
    delivery_limit: Duration,
    /// The last time at which a row was found locked, in milliseconds of the monotonic clock; 0:
    /// none was.
    locked_at: AtomicU64,
    warnings: Vec<Warning>,
    process: Process,
}

impl PostgresStore {
    /// Connects to the server at `postgres://[user[:password]@]host[:port]/database`, or at any
    /// other connection string of [`tokio_postgres::Config`], with the default settings.
    ///
    /// # Errors
    /// As for [`PostgresStoreBuilder::connect`].
    pub async fn connect(url: &str) -> Result<PostgresStore, StoreError> {
        PostgresStore::builder(url).connect().await
    }

    /// Starts to set up a store.
    pub fn builder(url: &str) -> PostgresStoreBuilder {
        // The detail leaves out the parse error, which could quote a password.
        let config = url.parse().map_err(|_| unusable("the URL is not one of a PostgreSQL server"));
        PostgresStoreBuilder::new(config)
    }

    /// Starts to set up a store with the settings of a client.
    pub fn builder_with(config: tokio_postgres::Config) -> PostgresStoreBuilder {
        PostgresStoreBuilder::new(Ok(config))
    }

    /// Returns the warnings for the operator of this server.
    pub fn warnings(&self) -> Vec<Warning> {
        let standby = self.0.connections.is_standby().then_some(Warning::Standby);
        self.0.warnings.iter().copied().chain(standby).collect()
    }

    /// Refuses writes of a store that was opened for reading only, and calls that
    /// [`usable`](Self::usable) refuses.
    fn writable(&self) -> Result<(), StoreError> {
        if self.0.connections.settings.read_only {
            return Err(unusable(READ_ONLY));
        }
        self.usable()
    }

    /// Refuses calls that would hang or panic: outside of tokio, and in a forked child, which
    /// shares its parent's connections.
    fn usable(&self) -> Result<(), StoreError> {
        if !self.0.process.is_current() {
            return Err(unusable("it was connected before this process was forked; connect after the fork"));
        }
        in_tokio()
    }
}

impl Drop for PostgresStore {
    /// Leaves the parent's connections and tasks alone in a forked child.
    fn drop(&mut self) {
        if !self.0.process.is_current() {
            std::mem::forget(self.0.clone());
        }
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("durability", &self.durability())
            .field("warnings", &self.0.warnings)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.usable()?;
        self.0.loads.load(id).await
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.writable()?;
        self.0.swap(swap).await
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        if let Err(error) = self.writable() {
            return swaps.iter().map(|_| Err(error.clone())).collect();
        }
        self.0.swap_many(swaps).await
    }

    /// Waits on one connection that receives notifications for all waiters of the store and its
    /// clones, served by a task of the first waiter's runtime. Where notifications do not arrive,
    /// records are polled at least every 50 ms.
    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        self.usable()?;
        self.0.waiters.wait(id, stamp, within).await;
        Ok(())
    }

    /// Lists records by id. A page may hold fewer than `limit` records, or none, although others
    /// follow.
    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.usable()?;
        self.0.list(after, limit, false).await
    }

    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.usable()?;
        let mut page = self.0.list(after, limit, true).await?;
        page.records.retain(|(_, record)| record.is_evidence());
        Ok(page)
    }

    async fn purge(&self, limit: usize) -> Result<Purge, StoreError> {
        self.writable()?;
        self.0.purge(limit).await
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        self.writable()?;
        self.0.discard(id).await
    }

    /// Returns the level as of the last connection.
    fn durability(&self) -> Durability {
        self.0.connections.durability()
    }

    /// Returns true if the server keeps this level. One that waits for replicas syncs its own disk
    /// too.
    fn is_as_durable_as(&self, required: Durability) -> bool {
        let level = self.durability();
        let is_replicated = matches!(level, Durability::Replicated(_));
        level.satisfies(required) || (is_replicated && Durability::Power.satisfies(required))
    }

    /// Returns an identity that is derived from a random id in the tables and from the cluster,
    /// database and table. Replicas of the server share it. A restored dump, and a server that was
    /// upgraded, have another one:
    /// [`accept_tokens_from`](crate::EngineBuilder::accept_tokens_from) states the old one.
    fn identity(&self) -> StoreId {
        self.0.identity
    }

    fn name(&self) -> &'static str {
        BACKEND
    }
}

impl Inner {
    /// Wakes the waiters of the records that were changed, here and in other processes.
    fn announce(self: &Arc<Self>, items: &[Item], answers: &[Answer]) {
        // There is no waiter for a record that was not there.
        let changed = items.iter().zip(answers);
        let changed = changed
            .filter(|(item, answer)| item.expected.is_some() && matches!(answer, Ok(Some(Swap::Done(_)))));
        let ids: Vec<RecordId> = changed.map(|(item, _)| item.id).collect();
        for id in &ids {
            self.waiters.changed(id);
        }
        self.notifier.announce(self, ids.into_iter());
    }

    fn announce_one(self: &Arc<Self>, id: RecordId) {
        self.waiters.changed(&id);
        self.notifier.announce(self, std::iter::once(id));
    }
}

impl Transport for Inner {
    type Item = Item;
    type Answer = Option<Swap>;

    const MAX_ITEMS: usize = MAX_ITEMS;
    const MAX_BYTES: usize = MAX_BYTES;

    fn bytes(item: &Item) -> usize {
        item.bytes()
    }

    fn unanswered(detail: &'static str) -> StoreError {
        unavailable(detail)
    }

    fn batcher(&self) -> &Batcher<Inner> {
        &self.batcher
    }

    fn delivery_limit(&self) -> Duration {
        self.delivery_limit
    }

    async fn deliver(self: &Arc<Self>, items: Vec<Item>) -> Vec<Answer> {
        Inner::deliver(self, items).await
    }
}

/// The error of a write to a store that was opened for reading only.
const READ_ONLY: &str = "it was opened for reading only";

/// Refuses calls outside of tokio, where connecting panics.
fn in_tokio() -> Result<(), StoreError> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Ok(()),
        Err(_) => Err(unusable("it was called outside of a tokio runtime")),
    }
}
