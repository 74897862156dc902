//! The Redis store: [`RedisStore`].

mod builder;
mod link;
mod preflight;
mod refusal;
mod script;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisError, Value, from_redis_value, pipe};
use async_trait::async_trait;

pub use self::builder::RedisStoreBuilder;
use self::link::Link;
pub use self::preflight::Warning;
use self::refusal::{corrupt, full, is_no_script, is_oom, is_wrong_type, meaning, nonsense, unusable};
use self::script::{Answer, Expected, Item, SwapScript, bytes, snapshot};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::policy::Durability;
use crate::record::{DecodeError, Record, Stamp};
use crate::store::{Snapshot, Store, Swap};

/// Records in a Redis (7.0 or later) or Valkey server, shared by every process that connects to it.
///
/// Needs a tokio runtime. Clones share one multiplexed connection, which reconnects by itself.
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
/// All writes go through one short script, which compares stamps, takes the server's time, and gives the next stamp. The server
/// removes a record by itself, [`clock_slack`](RedisStoreBuilder::clock_slack) after the time when it stops to count, so
/// [`purge`](Store::purge) has nothing to do. A record that was removed leaves its stamp behind for that long.
///
/// # What the server must be
///
/// * A primary with `maxmemory-policy noeviction`, on its own: clusters are not supported yet. Anything else is
///   refused when connecting, as far as the user may ask. Over `maxmemory` begins are refused with
///   [`StoreError::Full`]; duplicates are still answered, and what is under way can be finished.
/// * As [durable](Store::durability) as the application needs: nothing survives without an append-only file
///   ([`Durability::Memory`]), [`Durability::Power`] is `appendfsync always`, the others are [`Durability::Process`]
///   (`everysec` only while the disk keeps up: [`Warning::SyncedEverySecond`]). A failover to a replica loses what was
///   not replicated yet, whatever the setting.
/// * Set to the right time, and kept there by slewing. A clock that is set back prolongs leases by as much, and up to
///   `clock_slack` repeats no fence. One that is set forward ends leases, and what is kept, early.
///
/// All this is looked at once, when connecting. Whoever changes the server's settings later is not noticed.
///
/// The user needs `+evalsha +script|load +get +set +time` on the keys under the prefix (`~nevertwice:*`). With
/// `+hello +config|get` on top nothing is left [unverified](Warning).
#[derive(Clone)]
pub struct RedisStore(Arc<Inner>);

struct Inner {
    link: Link,
    prefix: Vec<u8>,
    clock_slack: Duration,
    refusable: SwapScript,
    always: SwapScript,
    durability: Durability,
    warnings: Vec<Warning>,
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

    /// What an operator should know about this server, as it was found when connecting.
    pub fn warnings(&self) -> &[Warning] {
        &self.0.warnings
    }

    fn key(&self, id: &RecordId) -> Vec<u8> {
        [&self.0.prefix, &id.as_bytes()[..]].concat()
    }

    /// Runs the script on the items. A server that lost it (a restart, a failover, `SCRIPT FLUSH`) has run nothing.
    async fn run(&self, script: &SwapScript, items: &[Item]) -> Result<Value, RedisError> {
        let (link, call) = (&self.0.link, script.call(items));
        match link.call(&call).await {
            Err(error) if is_no_script(&error) => {
                link.call(&script.load()).await?;
                link.call(&call).await
            }
            reply => reply,
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("durability", &self.0.durability)
            .field("warnings", &self.0.warnings)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        in_tokio()?;
        // The time comes first, so that it is never later than what it is held against: no lease looks over too early.
        let mut commands = pipe();
        commands.cmd("TIME").cmd("GET").arg(self.key(id));
        let replies = self.0.link.call_all(&commands, 2).await.map_err(|error| meaning(&error))?;
        let [time, value] = <[Value; 2]>::try_from(replies).map_err(|_| nonsense())?;
        let time = time.extract_error().map_err(|error| meaning(&error))?;
        let (seconds, micros): (u64, u64) = from_redis_value(time).map_err(|_| nonsense())?;
        let now = Stamp(seconds.saturating_mul(1_000_000).saturating_add(micros));
        match value.extract_error() {
            Ok(value) => snapshot(id, now, bytes(value)?),
            Err(error) if is_wrong_type(&error) => {
                Err(corrupt(id, DecodeError::Damaged { what: "not a string" }))
            }
            Err(error) => Err(meaning(&error)),
        }
    }

    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError> {
        in_tokio()?;
        let refusable = next.is_some_and(Record::may_be_refused);
        let script = if refusable { &self.0.refusable } else { &self.0.always };
        let item = Item {
            key: self.key(id),
            expected: Expected::from(expected),
            bytes: next.map_or_else(Vec::new, |next| next.encode(id, Stamp::ZERO)),
            keep: next.map_or(Duration::ZERO, Record::keep).saturating_add(self.0.clock_slack),
        };
        match self.run(script, &[item]).await {
            Ok(reply) => Answer::only(reply)?.into_swap(id),
            Err(error) if is_oom(&error) && refusable => self.swap_when_full(id, expected).await,
            Err(error) => Err(meaning(&error)),
        }
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        in_tokio()?;
        let item = Item {
            key: self.key(id),
            expected: Expected::Anything,
            bytes: Vec::new(),
            keep: self.0.clock_slack,
        };
        let reply = self.run(&self.0.always, &[item]).await.map_err(|error| meaning(&error))?;
        match Answer::only(reply)? {
            Answer::Done { existed, .. } => Ok(existed),
            Answer::Conflict { .. } => Err(nonsense()),
        }
    }

    fn durability(&self) -> Durability {
        self.0.durability
    }

    fn name(&self) -> &'static str {
        "redis"
    }
}

impl RedisStore {
    /// The answer to a swap that was refused for want of memory: a duplicate is still told what there is.
    async fn swap_when_full(&self, id: &RecordId, expected: Option<Stamp>) -> Result<Swap, StoreError> {
        let found = self.load(id).await?;
        if found.record.as_ref().map(|record| record.stamp) == expected {
            return Err(full());
        }
        Ok(Swap::Conflict(found))
    }
}

/// The `redis` crate panics outside of tokio.
fn in_tokio() -> Result<(), StoreError> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Ok(()),
        Err(_) => Err(unusable("it was called outside of a tokio runtime")),
    }
}
