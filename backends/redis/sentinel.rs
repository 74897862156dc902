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

use super::address::Address;
use super::cluster::at;
use super::connection::ask;
use super::error::{store_error, unavailable, unusable};
use super::flight::{Flight, Refreshed};
use super::shard::{Connector, Settings, Shard};
use crate::error::StoreError;
use crate::observe;

/// Time after which the sentinels are asked without a reason.
const EVERY: Duration = Duration::from_secs(1);
/// Most sentinels that are asked.
const MOST: usize = 16;

/// The sentinels of a service, and the shard at the primary that they name.
pub(super) struct Sentinels {
    service: String,
    /// The login and TLS of sentinels.
    template: Connector,
    connector: Connector,
    settings: Arc<Settings>,
    state: Mutex<State>,
    flight: Flight,
}

struct State {
    shard: Option<Arc<Shard>>,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    address: Address,
    client: Client,
    /// The task that listens to its announcements.
    listener: Option<AbortHandle>,
}

/// The answer of one sentinel.
struct Told {
    primary: Address,
    epoch: u64,
    /// The other sentinels that it knows.
    others: Vec<Address>,
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
        let known = |client: Client| {
            let address = Address::of(client.get_connection_info().addr());
            Sentinel { address, client, listener: None }
        };
        let state = State { shard: None, sentinels: sentinels.into_iter().map(known).collect() };
        let sentinels = Arc::new(Sentinels {
            service,
            template,
            connector: Connector(node),
            settings: Arc::clone(settings),
            state: Mutex::new(state),
            flight: Flight::default(),
        });
        sentinels.resolve().await?;
        Flight::watch(&sentinels, &Handle::current());
        sentinels.listen();
        Ok(sentinels)
    }

    /// Returns the shard at the present primary.
    ///
    /// # Panics
    /// Never: [`connect`](Sentinels::connect) has found one.
    #[allow(clippy::expect_used)]
    pub(super) fn shard(&self) -> Arc<Shard> {
        self.lock().shard.clone().expect("`connect` returns only once there is a primary")
    }

    pub(super) fn shards(&self) -> (u64, Vec<Arc<Shard>>) {
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
            state.sentinels.iter().map(|known| (known.address.clone(), known.client.clone())).collect()
        };
        let count = sentinels.len();
        let ask = |(address, client)| ask_sentinel(client, address, &self.service, self.settings.limits);
        let mut answers: FuturesUnordered<_> = sentinels.into_iter().map(ask).collect();
        let (mut told, mut failure, mut answered) = (HashMap::<(u64, Address), usize>::new(), None, 0_usize);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(found) => {
                    answered += 1;
                    *told.entry((found.epoch, found.primary)).or_default() += 1;
                    self.learn(found.others);
                    if answered * 2 > count {
                        break;
                    }
                }
                Err(error) if failure.as_ref().is_none_or(StoreError::is_transient) => failure = Some(error),
                Err(_) => {}
            }
        }
        let latest = told.into_iter().max_by_key(|((epoch, _), votes)| (*epoch, *votes));
        match (latest, failure) {
            (Some(((_, primary), _)), _) => self.install(&primary),
            (None, Some(StoreError::Unavailable { detail, .. })) => {
                Err(unavailable(format!("none of {count} sentinels answered; one of them: {detail}")))
            }
            (None, Some(error)) => Err(error),
            (None, None) => Err(unavailable("no sentinel is known")),
        }
    }

    /// Remembers other sentinels, so that the service outlives the ones that were named first.
    fn learn(&self, others: Vec<Address>) {
        let mut state = self.lock();
        for address in others {
            let is_new = !state.sentinels.iter().any(|known| known.address == address);
            if is_new
                && state.sentinels.len() < MOST
                && let Ok(client) = self.template.client(&address)
            {
                state.sentinels.push(Sentinel { address, client, listener: None });
            }
        }
    }

    /// Makes the server at this address the primary. All that was assumed about the one before ends
    /// with its shard, and its waiters ask again.
    fn install(&self, primary: &Address) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.shard.as_ref().is_some_and(|shard| shard.address == *primary) {
            return Ok(());
        }
        let shard = Shard::new(&self.connector.client(primary)?, &self.settings);
        let before = state.shard.replace(shard);
        drop(state);
        if let Some(before) = before {
            observe::redis_failovers(1);
            self.settings.watch.retain(|address| address == primary);
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
                let listening =
                    listen(sentinel.client.clone(), Arc::downgrade(self), self.settings.limits[0]);
                sentinel.listener = Some(runtime.spawn(listening).abort_handle());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.sentinels.iter().filter_map(|sentinel| sentinel.listener.as_ref()).for_each(AbortHandle::abort);
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
        let [connect, answer] = self.settings.limits;
        connect.saturating_add(answer)
    }

    async fn refresh(&self) {
        observe::redis_refreshed();
        // Otherwise the primary stays the one that was found last.
        let _ = self.resolve().await;
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
    client: Client,
    sentinel: Address,
    service: &str,
    limits: [Duration; 2],
) -> Result<Told, StoreError> {
    let mut commands = Pipeline::new();
    commands.cmd("SENTINEL").arg("MASTER").arg(service);
    commands.cmd("SENTINEL").arg("SENTINELS").arg(service);
    let replies = ask(&client, limits, &commands, 2).await.map_err(|error| at(&sentinel, error))?;
    told(replies, &sentinel, service)
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
    let others = match replies.next() {
        Some(Ok(Value::Array(others))) => {
            others.into_iter().filter_map(|other| address(&fields(other)?)).collect()
        }
        _ => Vec::new(),
    };
    Ok(Told { primary: address(&primary).ok_or_else(garbled)?, epoch, others })
}
