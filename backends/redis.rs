//! The Redis store: [`RedisStore`].

mod batch;
mod builder;
mod connection;
mod courier;
mod diagnosis;
mod grants;
mod inspection;
#[cfg_attr(all(test, nevertwice_shuttle), allow(dead_code))] // what only the real listener asks for
mod line;
#[cfg(not(all(test, nevertwice_shuttle)))]
mod listener;
#[cfg(all(test, nevertwice_shuttle))]
#[path = "redis/schedules.rs"]
mod listener;
mod records;
mod refusal;
mod runtime;
mod script;
mod time;
mod trip;
#[cfg_attr(all(test, nevertwice_shuttle), allow(dead_code))] // what only the real listener asks for
mod waiters;
mod warning;
mod watch;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use async_trait::async_trait;

pub use self::builder::RedisStoreBuilder;
use self::courier::{Carrier, Courier};
use self::records::Records;
use self::refusal::{BACKEND, again, nonsense, unusable};
use self::script::{Answer, Expected, Item, Scripts};
use self::waiters::Waiters;
pub use self::warning::Warning;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::policy::Durability;
use crate::process::Process;
use crate::record::{Record, Stamp};
use crate::store::{Cursor, Page, Snapshot, Store, Swap, SwapRequest};
use crate::store_id::StoreId;

/// Records in a Redis (7.0 or later) or Valkey server, shared by every process that connects to it.
///
/// Needs a tokio runtime. Clones share one multiplexed connection, after whose loss the next call opens another.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use nevertwice::{Durability, Engine, RedisStore};
/// let store = RedisStore::connect("redis://payments:secret@127.0.0.1:6379").await?;
/// for warning in store.warnings() {
///     eprintln!("redis: {warning}");
/// }
/// let engine = Engine::builder(store).require(Durability::Process).build()?;
/// # Ok(())
/// # }
/// ```
///
/// # What is stored
///
/// One string for each key: `nevertwice:` ([`prefix`](RedisStoreBuilder::prefix)) and the 32 bytes of the
/// [`RecordId`], raw, since in hex they would cost another 32 bytes of memory for each record; behind it 8 bytes of
/// stamp and the [encoded](Record::encode) record. From a shell:
/// `(printf nevertwice:; printf HEX | xxd -r -p) | redis-cli -x GET`.
///
/// Every write compares and writes in one step on the server: a begin by `SET .. NX GET`, a replacement by `SET .. IFEQ`
/// where the server has that (Valkey 8.1, Redis 8.4) and this store wrote what is replaced, everything else by a short
/// script. Concurrent calls go together, in one pipeline and one call of the script, and no call waits for others to come.
///
/// The server's clock gives the stamps: the script reads it, and for what goes without, the store follows it. It asks for the
/// time about twice a second along with other commands, and gives the latest time that it may be by now. That something is
/// over, so that somebody else may act, is only ever said by the server's clock itself.
///
/// The server removes a record by itself, [`clock_slack`](RedisStoreBuilder::clock_slack) after the time when it stops to
/// count (a finished one up to an eighth later: it may keep the end of its grant), so [`purge`](Store::purge) has nothing to do. A record that was removed leaves its stamp behind for that long.
///
/// # What the server must be
///
/// * A primary with `maxmemory-policy noeviction`, on its own: clusters are not supported yet. Over `maxmemory` begins are
///   refused with [`StoreError::Full`]; duplicates are still answered, and what is under way can be finished.
/// * As [durable](Store::durability) as the application needs: nothing survives without an append-only file
///   ([`Durability::Memory`]), [`Durability::Power`] is `appendfsync always`, the others are [`Durability::Process`]
///   (`everysec` only while the disk keeps up: [`Warning::SyncedEverySecond`]). A failover to a replica loses what was
///   not replicated yet, whatever the setting.
/// * Set to the right time, and kept there by slewing. A clock that is set back prolongs leases by as much, and up to
///   `clock_slack` repeats no fence. One that is set forward ends leases, and what is kept, early.
///
/// # A server that changes
///
/// The server is inspected when the store connects, on every later connection before anything else is sent over it, and before
/// a begin that finds the last inspection older than [`recheck_every`](RedisStoreBuilder::recheck_every) (30 s). Whatever was
/// believed of the server behind one connection, its clock above all, ends with that connection.
///
/// A server that must not be used is refused when connecting. One that becomes so later is given **no more grants**:
///
/// | what it became | a begin is refused with | until |
/// |---|---|---|
/// | evicting: a `maxmemory-policy` and a `maxmemory` | [`StoreError::Unusable`] | it is `noeviction` again |
/// | less durable than when the store connected | `Unusable` | it is as durable again |
/// | one that has evicted keys: `evicted_keys` has grown, or is not 0 on another server | `Unusable` | an operator calls [`accept_evictions`](RedisStore::accept_evictions), or the process starts anew |
/// | a replica | [`StoreError::Unavailable`], which the engine repeats on new connections | it, or the server behind the name, is a primary |
/// | a cluster's node, a sentinel | `Unusable` | another server answers |
///
/// Leases are still renewed, marked and finished, and duplicates are answered where their record is still there. A server in
/// doubt is inspected again every second in which a begin comes, so no restart is needed once it is repaired. Records that
/// were evicted do not come back by repairing it, which is why somebody has to look at those first.
///
/// What remains: a server that starts to evict under an open connection can, until the next inspection, drop records whose keys
/// are then granted again. The growth of `evicted_keys` shows it afterwards. Who keeps the server at `noeviction`, or takes
/// `CONFIG` away from everybody, has no such window. `FLUSHALL`, a file that was removed, and a replica that was promoted without
/// all records look like a server without these records.
///
/// The user needs `+evalsha +script|load +get +set +time` on the keys under the prefix (`~nevertwice:*`); in another database
/// than 0 `+select`. With `+hello +config|get +info` on top nothing is left [unverified](Warning); what the user may not ask is
/// not checked, and counts as the least it can be for the [durability](RedisStoreBuilder::assume_durability). What else is good to
/// have:
///
/// * `+client|tracking`, so that who waits for a record is told when it changes. Without, [waiters](Store::changed) look
///   again and again ([`Warning::ChangesUnannounced`]).
/// * `+scan` for an operator who [lists](Store::scan) the records.
///
/// # Who waits
///
/// All waiters of a store share one more connection, over which the server tells of changes (`CLIENT TRACKING`, on RESP3). It
/// reads each record that somebody waits for, and is closed some 10 s after the last waiter. What nobody waits for costs
/// nothing. The server tells by name, of all databases: stores with the same prefix in two databases wake each other for
/// nothing.
#[derive(Clone)]
pub struct RedisStore(Arc<Inner>);

struct Inner {
    records: Arc<Records>,
    waiters: Waiters,
    identity: StoreId,
    clock_slack: Duration,
    scripts: Scripts,
    courier: Courier<Inner>,
    /// How long it takes at most until a trip is over.
    patience: Duration,
    /// What no later inspection changes.
    warnings: Vec<Warning>,
    process: Process,
}

impl RedisStore {
    /// A store on the server at `redis://[user[:password]@]host[:port][/db]` (or `redis+unix:///path`), with the
    /// default settings.
    ///
    /// # Errors
    /// As for [`RedisStoreBuilder::connect`].
    pub async fn connect(url: &str) -> Result<RedisStore, StoreError> {
        RedisStore::builder(url).connect().await
    }

    /// Starts to set up a store.
    pub fn builder(url: &str) -> RedisStoreBuilder {
        // What was wrong with it is not said: it could quote a password.
        let detail = "the URL is not one of a Redis server, or asks for TLS, which the `redis` crate was built without";
        let without_delay = |info: ConnectionInfo| {
            let settings = info.tcp_settings().clone().set_nodelay(true);
            Client::open(info.set_tcp_settings(settings))
        };
        let client = url.into_connection_info().and_then(without_delay);
        RedisStoreBuilder::new(client.map_err(|_| unusable(detail)))
    }

    /// Starts to set up a store over a client of one's own, for TLS with certificates of one's own and the like.
    pub fn builder_with(client: Client) -> RedisStoreBuilder {
        RedisStoreBuilder::new(Ok(client))
    }

    /// Refuses where calls would hang or panic: outside of tokio, which the `redis` crate needs, and in a forked child, which
    /// shares its parent's connections.
    fn usable(&self) -> Result<(), StoreError> {
        if !self.0.process.is_current() {
            return Err(unusable("it was connected before this process was forked; connect after the fork"));
        }
        in_tokio()
    }

    /// What an operator should know about this server, as of its last inspection.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = self.0.records.connections.watch.warnings();
        warnings.extend_from_slice(&self.0.warnings);
        warnings
    }

    /// Lets begins be granted again after the server evicted keys: an operator has seen to it that nothing is done twice.
    ///
    /// While the server is still set up to evict, they stay refused. Stores of other processes are not told.
    pub fn accept_evictions(&self) {
        self.0.records.connections.watch.accept_evictions();
    }
}

impl Drop for RedisStore {
    /// A forked child leaves its parent's connections and tasks alone.
    fn drop(&mut self) {
        if !self.0.process.is_current() {
            std::mem::forget(self.0.clone());
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("durability", &self.durability())
            .field("warnings", &self.warnings())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.usable()?;
        self.0.records.load(id).await
    }

    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError> {
        self.usable()?;
        let answer = Courier::send(&self.0, self.0.item(id, expected, next)).await;
        if let Ok(Answer::Done { stamp, .. }) = answer {
            return Ok(Swap::Done(stamp));
        }
        self.0.settle(&[(*id, expected)], vec![answer]).await.pop().unwrap_or_else(|| Err(nonsense()))
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        if let Err(error) = self.usable() {
            return swaps.iter().map(|_| Err(again(&error))).collect();
        }
        self.0.swap_batch(swaps).await
    }

    /// One connection is told of changes for all waiters of the store and its clones, by a task of the first one's runtime.
    /// While there is none, or the user may not, records are looked at at least every 100 ms.
    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        self.usable()?;
        self.0.waiters.wait(id, stamp, within).await;
        Ok(())
    }

    /// `SCAN`'s promise: what is there all the time comes at least once. A page may hold more or fewer than `limit`, and none
    /// although others follow. Takes the permission `+scan`.
    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.usable()?;
        self.0.records.scan(after, limit).await
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        self.usable()?;
        let item = Item { expected: Expected::Anything, ..self.0.item(id, None, None) };
        match Courier::send(&self.0, item).await? {
            Answer::Done { existed, .. } => Ok(existed),
            Answer::Conflict { .. } | Answer::Seen { .. } | Answer::Refused(_) => Err(nonsense()),
        }
    }

    /// As of the last inspection of the server.
    fn durability(&self) -> Durability {
        self.0.records.connections.watch.durability()
    }

    /// The one of [`store_id`]: it survives the server, whose loss tokens may outlive.
    fn identity(&self) -> StoreId {
        self.0.identity
    }

    fn name(&self) -> &'static str {
        BACKEND
    }
}

impl Inner {
    /// What a swap is to the server.
    fn item(&self, id: &RecordId, expected: Option<Stamp>, next: Option<&Record>) -> Item {
        Item {
            id: *id,
            expected: Expected::from(expected),
            bytes: next.map_or_else(Vec::new, |next| next.encode(id, Stamp::ZERO)),
            keep: next.map_or(Duration::ZERO, Record::keep).saturating_add(self.clock_slack),
            refusable: next.is_some_and(Record::may_be_refused),
            grants: next.is_some_and(|next| next.lease().is_some()),
        }
    }
}

impl Carrier for Inner {
    fn courier(&self) -> &Courier<Inner> {
        &self.courier
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    async fn deliver(&self, items: &mut [Item]) -> Vec<Result<Answer, StoreError>> {
        Inner::deliver(self, items).await
    }
}

/// The [identity](Store::identity) of a store in this database (0 where the URL names none) under this
/// [`prefix`](RedisStoreBuilder::prefix), wherever its server is.
///
/// For tokens of a store that had another name: after records were moved to another database or prefix, or another one is
/// used from now on.
///
/// ```
/// use nevertwice::backends::redis::store_id;
/// assert_ne!(store_id(0, "nevertwice:"), store_id(1, "nevertwice:"));
/// ```
pub fn store_id(database: i64, prefix: impl AsRef<str>) -> StoreId {
    StoreId::of(BACKEND, &[database.to_string().as_bytes(), prefix.as_ref().as_bytes()])
}

/// Whether what is sent there can be read by others on the way.
fn is_exposed(address: &ConnectionAddr) -> bool {
    let ConnectionAddr::Tcp(host, _) = address else { return false };
    let loopback = host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.is_loopback());
    !loopback
}

/// The `redis` crate panics outside of tokio.
fn in_tokio() -> Result<(), StoreError> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Ok(()),
        Err(_) => Err(unusable("it was called outside of a tokio runtime")),
    }
}
