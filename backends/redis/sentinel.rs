//! The primary that sentinels name: [`Sentinels`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ::redis::{Client, Pipeline, Value, from_redis_value};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use self::round::{Asked, Named, Primary, Round, Told};
use super::address::Address;
use super::cluster::at;
use super::error::{store_error, unavailable, unusable};
use super::flight::{Flight, Refreshed};
use super::shard::{Connector, Settings, Shard};
use super::topology_connection::TopologyConnection;
use crate::backends::shared::runtime::leave;
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::observe;

mod round;

/// Time after which the sentinels are asked without a reason.
const EVERY: Duration = Duration::from_secs(1);
/// Most sentinels that are learned from others.
const MOST: usize = 16;
/// Time that an answer may come after the one before, once most sentinels have answered.
const GRACE: Duration = Duration::from_millis(100);

/// The sentinels of a service, and the shard at the primary that they name.
pub(super) struct Sentinels {
    service: Arc<str>,
    /// The login and TLS of sentinels.
    template: Connector,
    connector: Connector,
    settings: Arc<Settings>,
    state: Mutex<State>,
    flight: Flight,
}

struct State {
    shard: Option<Arc<Shard>>,
    /// The primary, with the latest failover of which any sentinel ever told.
    primary: Option<Primary>,
    /// The primary of an earlier failover on which all sentinels agree since this moment.
    earlier: Option<(Primary, Duration)>,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    address: Address,
    connection: Arc<TopologyConnection>,
    /// Its own name for itself, which it keeps when its address changes.
    id: Option<String>,
    /// True if it told an id before.
    has_told: bool,
    /// True if the application named it.
    is_seed: bool,
    /// The task that listens to its announcements.
    listener: Option<AbortHandle>,
}

impl Sentinel {
    fn new(address: Address, client: Client, id: Option<String>, is_seed: bool) -> Sentinel {
        let connection = Arc::new(TopologyConnection::new(client));
        Sentinel { address, connection, id, has_told: false, is_seed, listener: None }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

impl Sentinels {
    /// Asks the sentinels for the primary. `node` is a client with the login of the data nodes; its
    /// address is not used.
    ///
    /// # Errors
    /// If none of them answers, or none knows the service.
    pub(super) async fn connect(
        sentinels: Vec<Client>,
        service: String,
        node: Client,
        settings: &Arc<Settings>,
    ) -> Result<Arc<Sentinels>, StoreError> {
        let Some(template) = sentinels.first().cloned().map(Connector) else {
            return Err(unusable("no URL of a sentinel was given"));
        };
        let seed = |client: Client| {
            let address = Address::of(client.get_connection_info().addr());
            Sentinel::new(address, client, None, true)
        };
        let sentinels = sentinels.into_iter().map(seed).collect();
        let state = State { shard: None, primary: None, earlier: None, sentinels };
        let sentinels = Arc::new(Sentinels {
            service: service.into(),
            template,
            connector: Connector(node),
            settings: Arc::clone(settings),
            state: Mutex::new(state),
            flight: Flight::default(),
        });
        sentinels.resolve().await?;
        Flight::watch(&sentinels);
        sentinels.listen();
        Ok(sentinels)
    }

    /// Returns the shard at the present primary.
    ///
    /// # Panics
    /// Never: [`connect`](Sentinels::connect) has found one.
    #[allow(clippy::expect_used)]
    pub(super) fn shard(self: &Arc<Sentinels>) -> Arc<Shard> {
        Flight::watch(self);
        self.lock().shard.clone().expect("`connect` returns only once there is a primary")
    }

    pub(super) fn shards(self: &Arc<Sentinels>) -> (u64, Vec<Arc<Shard>>) {
        let shard = self.shard();
        // FNV-1a.
        let hash = shard.address.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (hash, vec![shard])
    }

    pub(super) fn refresh_soon(self: &Arc<Sentinels>) {
        Flight::start(self);
        self.listen();
    }

    /// Asks all sentinels, and takes the primary of the latest failover that any of them knows.
    async fn resolve(&self) -> Result<(), StoreError> {
        let sentinels: Vec<_> = {
            let state = self.lock();
            let asked = |known: &Sentinel| Asked {
                address: known.address.clone(),
                id: known.id.clone(),
                has_told: known.has_told,
                is_seed: known.is_seed,
            };
            state.sentinels.iter().map(|known| (asked(known), Arc::clone(&known.connection))).collect()
        };
        let seeds = sentinels.iter().filter(|(asked, _)| asked.is_seed).count();
        let ids = sentinels.iter().filter_map(|(asked, _)| asked.id.clone()).collect();
        let mut round = Round::of(sentinels.len(), seeds, ids);
        let ask = |(asked, connection)| {
            ask_sentinel(connection, asked, Arc::clone(&self.service), self.settings.limits)
        };
        let mut answers: FuturesUnordered<_> = sentinels.into_iter().map(ask).collect();
        loop {
            // Sentinels that are gone are not waited for once most have answered.
            let answer = if round.has_majority() {
                timeout(GRACE, answers.next()).await.unwrap_or(None)
            } else {
                answers.next().await
            };
            match answer {
                Some((asked, Ok(told))) => round.add(asked, told),
                Some((_, Err(error))) => round.fail(error),
                None => break,
            }
        }
        // The others are heard to the end, so that their connections are there for the next time.
        leave(async move { while answers.next().await.is_some() {} });
        let followed = self.follow(&mut round);
        self.learn(&round);
        followed
    }

    /// Remembers other sentinels, so that the service outlives the ones that were named first, and
    /// forgets those of them that no sentinel names any more.
    fn learn(&self, round: &Round) {
        let mut state = self.lock();
        // The id of a learned one is that under which others name it.
        for known in state.sentinels.iter_mut().filter(|known| known.is_seed) {
            let told = round.id_of(&known.address);
            known.has_told |= told.is_some();
            known.id = told.or(known.id.take());
        }
        for Named { address, id } in round.named() {
            let by_address = state.sentinels.iter().position(|known| known.address == *address);
            let by_id = state.sentinels.iter().position(|known| id.is_some() && known.id == *id);
            match (by_address, by_id) {
                (Some(place), _) if id.is_some() => {
                    let known = &mut state.sentinels[place];
                    if !known.is_seed || round.id_of(address).is_none() {
                        known.id.clone_from(id);
                    }
                }
                (Some(_), _) => {}
                // The application named it otherwise.
                (None, Some(place)) if state.sentinels[place].is_seed => {}
                (None, place) => {
                    let Ok(client) = self.template.client(address) else { continue };
                    let sentinel = Sentinel::new(address.clone(), client, id.clone(), false);
                    let learned = state.sentinels.iter().filter(|known| !known.is_seed).count();
                    match place {
                        Some(place) => state.sentinels[place] = sentinel,
                        None if learned < MOST => state.sentinels.push(sentinel),
                        None => {}
                    }
                }
            }
        }
        if round.has_majority() {
            state.sentinels.retain(|known| known.is_seed || round.knows(&known.address));
        }
    }

    /// Makes the server that the sentinels name the primary. All that was assumed about the one
    /// before ends with its shard, and its waiters ask again.
    fn follow(&self, round: &mut Round) -> Result<(), StoreError> {
        let mut state = self.lock();
        let now = SystemClock.monotonic();
        let (known, earlier) = (state.primary.clone(), state.earlier.clone());
        let (primary, earlier) = round.verdict(known.as_ref(), earlier, now)?;
        state.earlier = earlier;
        if state.shard.as_ref().is_some_and(|shard| shard.address == primary.address) {
            let address = primary.address.clone();
            state.primary = Some(primary);
            drop(state);
            // An inspection of the one before may have ended late.
            self.settings.watch.retain(|known| *known == address);
            return Ok(());
        }
        let shard = Shard::new(&self.connector.client(&primary.address)?, &self.settings);
        let before = state.shard.replace(shard);
        let address = primary.address.clone();
        state.primary = Some(primary);
        drop(state);
        if let Some(before) = before {
            observe::redis_failovers(1);
            self.settings.watch.retain(|known| *known == address);
            before.waiters.wake_all();
        }
        Ok(())
    }

    /// Listens to the announcements of every sentinel to which no task listens.
    fn listen(self: &Arc<Sentinels>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut state = self.lock();
        for sentinel in &mut state.sentinels {
            if sentinel.listener.as_ref().is_none_or(AbortHandle::is_finished) {
                let client = sentinel.connection.client().clone();
                let listening = listen(client, Arc::downgrade(self), self.settings.limits[0]);
                sentinel.listener = Some(runtime.spawn(listening).abort_handle());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refreshed for Sentinels {
    fn flight(&self) -> &Flight {
        &self.flight
    }

    fn every(&self) -> Duration {
        EVERY
    }

    fn limit(&self) -> Duration {
        self.settings.opening()
    }

    async fn refresh(self: &Arc<Sentinels>) -> bool {
        observe::redis_refreshed();
        // Otherwise the primary stays the one that was found last.
        let is_ok = self.resolve().await.is_ok();
        self.listen();
        is_ok
    }
}

/// Refreshes whenever the sentinel announces another primary, until the connection is lost and for
/// as long as the store exists. It connects again after a while.
async fn listen(client: Client, sentinels: Weak<Sentinels>, limit: Duration) {
    while sentinels.strong_count() > 0 {
        let subscribe = async {
            let mut messages = client.get_async_pubsub().await.ok()?;
            messages.subscribe("+switch-master").await.ok()?;
            Some(messages)
        };
        if let Ok(Some(mut messages)) = timeout(limit, subscribe).await {
            let mut messages = messages.on_message();
            while messages.next().await.is_some() {
                let Some(sentinels) = sentinels.upgrade() else { return };
                sentinels.refresh_soon();
            }
        }
        sleep(EVERY).await;
    }
}

/// Asks one sentinel for the primary of the service.
async fn ask_sentinel(
    connection: Arc<TopologyConnection>,
    sentinel: Asked,
    service: Arc<str>,
    limits: [Duration; 2],
) -> (Asked, Result<Told, StoreError>) {
    let mut commands = Pipeline::new();
    commands.cmd("SENTINEL").arg("MASTER").arg(&*service);
    commands.cmd("SENTINEL").arg("SENTINELS").arg(&*service);
    // During a failover only this names the promoted server, and not all users may ask.
    commands.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&*service);
    commands.cmd("SENTINEL").arg("MYID");
    let replies = connection.ask(limits, &commands, 4).await.map_err(|error| at(&sentinel.address, error));
    let told = replies.and_then(|replies| told(replies, &sentinel.address, &service));
    (sentinel, told)
}

fn told(replies: Vec<Value>, sentinel: &Address, service: &str) -> Result<Told, StoreError> {
    let mut replies = replies.into_iter().map(Value::extract_error);
    let primary = replies.next().unwrap_or(Ok(Value::Nil)).map_err(|error| {
        let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
        if detail.contains("no such master") {
            unusable(format!("{sentinel} knows no service {service:?}: check its name (sentinel monitor)"))
        } else if detail.contains("unknown command") {
            unusable(format!("{sentinel} is not a sentinel: use RedisStore::connect, or its sentinels' port"))
        } else {
            at(sentinel, store_error(&error))
        }
    })?;
    let fields = |value| from_redis_value::<HashMap<String, String>>(value).ok();
    let address = |fields: &HashMap<String, String>| {
        Some(Address::announced(fields.get("ip")?, fields.get("port")?.parse().ok()?, sentinel))
    };
    let garbled = || unavailable(format!("{sentinel} gave no address of the primary"));
    let primary = fields(primary).ok_or_else(garbled)?;
    let epoch = primary.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let named = |fields: HashMap<String, String>| {
        Some(Named {
            address: address(&fields)?,
            id: fields.get("runid").filter(|id| !id.is_empty()).cloned(),
        })
    };
    let others = match replies.next() {
        Some(Ok(Value::Array(others))) => {
            others.into_iter().filter_map(|other| named(fields(other)?)).collect()
        }
        _ => Vec::new(),
    };
    let present = replies.next().and_then(|reply| from_redis_value::<(String, u16)>(reply.ok()?).ok());
    let present = present.map(|(host, port)| Address::announced(&host, port, sentinel));
    let id = replies.next().and_then(|reply| from_redis_value::<String>(reply.ok()?).ok());
    let address = present.or_else(|| address(&primary)).ok_or_else(garbled)?;
    Ok(Told { primary: Primary { epoch, address }, id, others })
}
