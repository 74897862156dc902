//! The Redis store: [`RedisStore`].

mod address;
mod batch;
mod builder;
mod cluster;
mod connection;
mod error;
mod flight;
mod grant_cache;
mod health;
mod inspection;
mod item;
mod lanes;
mod listener;
mod pipeline;
mod reads;
mod records;
mod replication;
mod routing;
mod row;
mod script;
mod sentinel;
mod shard;
mod slots;
mod time;
mod topology;
mod topology_connection;
mod tracking;
mod value;
mod warning;
mod watch;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Client, ConnectionAddr};
use async_trait::async_trait;

pub use self::builder::RedisStoreBuilder;
use self::error::{BACKEND, malformed, unusable};
pub use self::health::{Health, NodeHealth, TopologyKind};
use self::item::{Expected, Item, ItemReply};
use self::shard::Settings;
use self::topology::Topology;
pub use self::warning::Warning;
use crate::durability::Durability;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::process::Process;
use crate::record::{Record, Stamp};
use crate::store::{Cursor, Page, Snapshot, Store, Swap, SwapRequest};
use crate::store_id::StoreId;

/// Records in Redis (7.0 or later) or Valkey, shared by every process that connects to it: one
/// server ([`connect`](RedisStore::connect)), the primary that sentinels name
/// ([`sentinel`](RedisStore::sentinel)), or a cluster ([`cluster`](RedisStore::cluster)).
/// `docs/REDIS.md` of the repository says how to run each, and what a failover loses.
///
/// Needs a tokio runtime. Clones share one multiplexed connection to each server (two with
/// [`replicated`](RedisStoreBuilder::replicated)). After it is lost, the next call opens another.
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
/// # Stored format
///
/// Each key is one string. Its name is `nevertwice:` ([`prefix`](RedisStoreBuilder::prefix))
/// followed by the 32 bytes of the [`RecordId`], raw: in hex they would cost another 32 bytes of
/// memory per record. Its value is an 8-byte stamp followed by the [encoded](Record::encode)
/// record. From a shell: `(printf nevertwice:; printf HEX | xxd -r -p) | redis-cli -x GET`.
///
/// Every write compares and writes in one step on the server. A begin is a `SET .. NX GET`. A
/// replacement is a `SET .. IFEQ` where the server supports it (Valkey 8.1, Redis 8.4) and this
/// store wrote the value being replaced. Everything else is a short script. Concurrent calls share
/// one pipeline and one script call, and no call waits for others to arrive.
///
/// Stamps come from the server's clock. The script reads it directly. For the other commands the
/// store follows it: it asks for the time about twice a second, along with other commands, and
/// stamps with the latest time that it can be by now. Only the server's clock itself decides that a
/// deadline has passed and that another caller may act.
///
/// The server removes a record by itself, [`clock_slack`](RedisStoreBuilder::clock_slack) after the
/// record expires (a finished one up to an eighth later, because it may keep the end of its grant),
/// so [`purge`](Store::purge) has nothing to do. A removed record leaves its stamp behind for that
/// long.
///
/// # Server requirements
///
/// * A primary with `maxmemory-policy noeviction`. Over `maxmemory`, begins are refused with
///   [`StoreError::Full`]; duplicates are still answered, and operations in progress can be
///   finished.
/// * Durability as the application needs: see [`durability`](Store::durability). Without an
///   append-only file nothing survives ([`Durability::Memory`]); `appendfsync always` is
///   [`Durability::Power`]; the other settings are [`Durability::Process`] (`everysec` only while
///   the disk keeps up: [`Warning::SyncedEverySecond`]). A failover to a replica loses whatever was
///   not replicated yet, with any setting.
/// * A correct clock, corrected only by slewing. A clock set back prolongs leases by as much, and
///   repeats no fence as long as it is set back by no more than `clock_slack`. A clock set forward
///   ends leases and retention early.
///
/// # Changes of the server
///
/// The server is inspected when the store connects, on every later connection before anything else
/// is sent over it, before a begin that finds the last inspection older than
/// [`recheck_every`](RedisStoreBuilder::recheck_every) (30 s), and with reads once a second.
/// Everything assumed about the server behind a connection, its clock above all, ends with that
/// connection; which grants it holds is remembered until the server is started again.
///
/// An unusable server is refused when connecting. One that becomes unusable later gets **no more
/// grants**:
///
/// | the server is now | a begin is refused with | until |
/// |---|---|---|
/// | evicting: a `maxmemory-policy` and a `maxmemory` | [`StoreError::Unusable`] | it is `noeviction` again |
/// | less durable than when the store connected | `Unusable` | it is as durable again |
/// | without an append-only file, of a `replicated` store that does not accept that | `Unusable` | it has one |
/// | one that has evicted keys: `evicted_keys` has grown, or is not 0 on another server | `Unusable` | an operator calls [`accept_evictions`](RedisStore::accept_evictions), or the process is restarted |
/// | a replica | [`StoreError::Unavailable`], which the engine repeats on new connections | it, or the server behind the name, is a primary |
/// | a primary with fewer replicas in step than [`replicated`](RedisStoreBuilder::replicated) asks for | `Unavailable` | enough of them are in step |
/// | a cluster node (of a store that expects none) or a sentinel | `Unusable` | another server answers |
///
/// Leases are still renewed, marked and finished, and duplicates are answered if their record
/// still exists; a replica does neither, once it is noticed: a read may still reach one that became
/// a replica within the last second. While grants are refused, a begin inspects the server
/// again once the last inspection is a second old, so no restart is needed after a repair. A
/// repair does not bring back evicted records, so an operator has to deal with those first.
///
/// One window remains: a server that starts to evict under an open connection can drop records
/// until the next inspection, and their keys are then granted again. The growth of `evicted_keys`
/// shows this afterwards. There is no such window if the server always stays at `noeviction`, or if
/// no user may call `CONFIG`. After `FLUSHALL`, the loss of a data file, or the promotion of a
/// replica that lacks records, the server looks like one that never had those records.
///
/// # Permissions
///
/// The user needs `+evalsha +script|load +get +set +time` on the keys under the prefix
/// (`~nevertwice:*`), and `+select` for a database other than 0. With `+hello +config|get +info` as
/// well, nothing is left [unverified](Warning). Settings that the user may not read are not
/// checked, and count as the weakest possible for the
/// [durability](RedisStoreBuilder::assume_durability). Optional:
///
/// * `+client|tracking`, so that the server announces changes to waiters. Without it,
///   [waiters](Store::changed) poll ([`Warning::ChangesUnannounced`]).
/// * `+scan` for an operator who [lists](Store::scan) the records.
/// * `+cluster|slots +asking` in a cluster, with `+cluster|myid` so that nodes of other clusters at
///   its addresses are told apart (for listings also `+cluster|nodes +cluster|countkeysinslot`),
///   `+wait` for [`replicated`](RedisStoreBuilder::replicated). On
///   sentinels: `+sentinel|master +sentinel|sentinels +subscribe`, and `&*`; with
///   `+sentinel|get-master-addr-by-name` a failover is known sooner.
///
/// # Waiters
///
/// All waiters of a store share one extra connection to each server, over which that announces
/// changes (`CLIENT TRACKING`, on RESP3). It reads each record that has a waiter, and is closed
/// some 10 s after the last waiter leaves. Records without waiters cost nothing. The server
/// announces key names regardless of the database, so stores with the same prefix in two databases
/// cause spurious wake-ups in each other.
#[derive(Clone)]
pub struct RedisStore(Arc<Inner>);

struct Inner {
    topology: Topology,
    settings: Arc<Settings>,
    identity: StoreId,
    /// Warnings that later inspections do not change.
    warnings: Vec<Warning>,
    read_only: bool,
    process: Process,
}

impl RedisStore {
    /// Connects to the server at `redis://[user[:password]@]host[:port][/db]` (or
    /// `redis+unix:///path`) with the default settings.
    ///
    /// # Errors
    /// As for [`RedisStoreBuilder::connect`].
    pub async fn connect(url: &str) -> Result<RedisStore, StoreError> {
        RedisStore::builder(url).connect().await
    }

    /// Starts to set up a store.
    pub fn builder(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder::server(url)
    }

    /// Starts to set up a store over an existing client.
    pub fn builder_with(client: Client) -> RedisStoreBuilder {
        RedisStoreBuilder::with_client(client)
    }

    /// Starts to set up a store on a cluster. The URLs are those of some nodes, which tell the
    /// others; login and TLS are those of the first.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use nevertwice::RedisStore;
    /// let seeds = ["redis://10.0.0.1:6379", "redis://10.0.0.2:6379"];
    /// let store = RedisStore::cluster(seeds).replicated(1).connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cluster<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> RedisStoreBuilder {
        RedisStoreBuilder::cluster(urls)
    }

    /// Starts to set up a store on the primary that sentinels name for `service`. The URLs are
    /// those of sentinels, with their own login; [`login`](RedisStoreBuilder::login) sets that of
    /// the servers.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use nevertwice::RedisStore;
    /// let sentinels = ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"];
    /// let store = RedisStore::sentinel(sentinels, "payments").replicated(1).connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn sentinel<U: AsRef<str>>(urls: impl IntoIterator<Item = U>, service: &str) -> RedisStoreBuilder {
        RedisStoreBuilder::sentinel(urls, service)
    }

    /// Refuses writes of a store that was opened for reading only, and calls that
    /// [`usable`](Self::usable) refuses.
    fn writable(&self) -> Result<(), StoreError> {
        if self.0.read_only {
            return Err(unusable("it was opened for reading only"));
        }
        self.usable()
    }

    /// Refuses calls that would hang or panic: outside of tokio, which the `redis` crate needs, and
    /// in a forked child, which shares its parent's connections.
    fn usable(&self) -> Result<(), StoreError> {
        if !self.0.process.is_current() {
            return Err(unusable("it was connected before this process was forked; connect after the fork"));
        }
        in_tokio()
    }

    /// Returns the warnings for the operator of this server, as of its last inspection.
    pub fn warnings(&self) -> Vec<Warning> {
        self.0.warnings()
    }

    /// Inspects the servers now, for a readiness probe. It takes a few times the timeouts of the
    /// builder at most, and reports failures rather than failing.
    pub async fn health(&self) -> Health {
        match self.usable() {
            Ok(()) => self.0.health().await,
            Err(error) => self.0.unusable(error),
        }
    }

    /// Allows grants again after the server evicted keys, once an operator has made sure that
    /// nothing is done twice.
    ///
    /// Begins stay refused while the server is still configured to evict. Stores in other processes
    /// are not informed.
    pub fn accept_evictions(&self) {
        self.0.settings.watch.accept_evictions();
    }
}

impl Drop for RedisStore {
    /// Leaves the parent's connections and tasks alone in a forked child.
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
        self.0.load(id).await
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.writable()?;
        let reply = self.0.send(self.0.item(swap)).await;
        self.0.settle_one(swap, reply).await
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        if let Err(error) = self.writable() {
            return swaps.iter().map(|_| Err(error.clone())).collect();
        }
        self.0.swap_batch(swaps).await
    }

    /// Waits on one connection for each server, which receives changes for all waiters of the store
    /// and its clones, served by a task of the first waiter's runtime. Without that connection or
    /// the permission for it, records are polled at least every 100 ms.
    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        self.usable()?;
        self.0.wait(id, stamp, within).await?;
        Ok(())
    }

    /// Lists records by `SCAN`: a record that exists throughout is returned at least once. A page
    /// may hold more or fewer than `limit` records, and may be empty although others follow. Needs
    /// the permission `+scan`.
    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.usable()?;
        self.0.scan(after, limit).await
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        self.writable()?;
        let item = Item { expected: Expected::Anything, ..self.0.item(&SwapRequest::new(id, None, None)) };
        match self.0.send(item).await? {
            ItemReply::Done { existed, .. } => Ok(existed),
            ItemReply::Conflict { .. }
            | ItemReply::Seen { .. }
            | ItemReply::Refused(_)
            | ItemReply::Elsewhere(..) => Err(malformed()),
        }
    }

    /// Returns the level as of the last inspection of the server.
    fn durability(&self) -> Durability {
        self.0.settings.watch.durability()
    }

    /// Returns true if the disk of the weakest primary keeps this level, or, of
    /// [`Replicated`](Durability::Replicated), the replicas do.
    fn is_as_durable_as(&self, required: Durability) -> bool {
        self.0.settings.watch.satisfies(required)
    }

    /// Returns the id that [`store_id`] gives. It does not depend on the server, which a token may
    /// outlive.
    fn identity(&self) -> StoreId {
        self.0.identity
    }

    fn name(&self) -> &'static str {
        BACKEND
    }
}

impl Inner {
    fn warnings(&self) -> Vec<Warning> {
        let mut warnings = self.settings.watch.warnings();
        warnings.extend_from_slice(&self.warnings);
        warnings
    }

    /// Translates a swap into an [`Item`].
    fn item(&self, SwapRequest { id, expected, next }: &SwapRequest) -> Item {
        let next = next.as_deref();
        Item {
            id: *id,
            expected: Expected::from(*expected),
            bytes: next.map_or_else(Vec::new, |next| next.encode(id, Stamp::ZERO)),
            keep: next.map_or(Duration::ZERO, Record::keep).saturating_add(self.settings.clock_slack),
            refusable: next.is_some_and(Record::may_be_refused),
            grants: next.is_some_and(|next| next.lease().is_some()),
            is_asking: false,
            is_probe: false,
        }
    }
}

/// Returns the [identity](Store::identity) of a store in this database (0 where the URL names none)
/// under this [`prefix`](RedisStoreBuilder::prefix), on any server.
///
/// Used to accept tokens of a store that had another identity: after its records were moved to
/// another database or prefix, or when another one is used from now on.
///
/// ```
/// use nevertwice::backends::redis::store_id;
/// assert_ne!(store_id(0, "nevertwice:"), store_id(1, "nevertwice:"));
/// ```
pub fn store_id(database: i64, prefix: impl AsRef<str>) -> StoreId {
    StoreId::of(BACKEND, &[database.to_string().as_bytes(), prefix.as_ref().as_bytes()])
}

/// True if traffic to this address can be read on the way.
fn is_exposed(address: &ConnectionAddr) -> bool {
    let ConnectionAddr::Tcp(host, _) = address else { return false };
    let loopback = host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.is_loopback());
    !loopback
}

/// Refuses calls outside of tokio, where the `redis` crate panics.
fn in_tokio() -> Result<(), StoreError> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Ok(()),
        Err(_) => Err(unusable("it was called outside of a tokio runtime")),
    }
}
