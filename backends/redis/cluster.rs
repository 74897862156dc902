//! The nodes of a cluster and the slots that they serve: [`Cluster`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Client, Pipeline, Value, from_redis_value};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::address::Address;
use super::connection::ask;
use super::error::{says, store_error, unavailable, unusable};
use super::flight::{Flight, Refreshed};
use super::shard::{Connector, Settings, Shard};
use super::slots::{Layout, SLOTS, slot};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::observe;

/// Time after which the layout is asked for without a reason.
const EVERY: Duration = Duration::from_secs(10);
/// Most nodes that one refresh asks.
const ASK_AT_MOST: usize = 12;
/// The mark of a slot that no node serves.
const NONE: u16 = u16::MAX;

/// The primaries of a cluster, each with the slots that it serves.
pub(super) struct Cluster {
    seeds: Vec<Client>,
    connector: Connector,
    settings: Arc<Settings>,
    state: Mutex<State>,
    flight: Flight,
}

#[derive(Default)]
struct State {
    map: Map,
    /// All shards in use, also those that serve no slot yet.
    shards: BTreeMap<Address, Arc<Shard>>,
    /// The addresses that redirects named since the last refresh.
    named: BTreeSet<Address>,
    replicas: Vec<Address>,
}

/// The assignment of slots.
#[derive(Default)]
struct Map {
    primaries: Vec<Arc<Shard>>,
    /// For each slot, the index of its primary, or [`NONE`].
    slots: Vec<u16>,
}

impl Cluster {
    /// Asks the seeds for the layout of their cluster.
    ///
    /// # Errors
    /// If none of them answers as a node of a cluster, or some slots are served by no node.
    pub(super) async fn connect(
        seeds: Vec<Client>,
        settings: &Arc<Settings>,
    ) -> Result<Arc<Cluster>, StoreError> {
        let Some(first) = seeds.first().cloned() else { return Err(unusable("no URL of a node was given")) };
        let (connector, settings) = (Connector(first), Arc::clone(settings));
        let (state, flight) = (Mutex::default(), Flight::default());
        let cluster = Arc::new(Cluster { seeds, connector, settings, state, flight });
        let layout = cluster.ask().await?;
        let missing = SLOTS - layout.covered().min(SLOTS);
        if missing > 0 {
            return Err(unavailable(format!(
                "no node of the cluster serves {missing} of its {SLOTS} slots: assign them, or start their nodes"
            )));
        }
        cluster.install(&layout)?;
        Ok(cluster)
    }

    /// Returns the shard that serves a record.
    pub(super) fn shard(self: &Arc<Cluster>, id: &RecordId) -> Result<Arc<Shard>, StoreError> {
        let slot = slot(&self.settings.key(id));
        let shard = self.lock().map.shard(slot);
        shard.ok_or_else(|| {
            self.refresh_soon();
            unavailable("no node of the cluster serves the slot of this key at present")
        })
    }

    /// Returns the shard at an address that a node named.
    pub(super) fn shard_at(&self, address: &Address) -> Result<Arc<Shard>, StoreError> {
        let mut state = self.lock();
        state.named.insert(address.clone());
        self.get_or_make(&mut state, address)
    }

    /// Assigns the slot to the node at this address.
    pub(super) fn moved(self: &Arc<Cluster>, slot: u16, address: &Address) -> Result<Arc<Shard>, StoreError> {
        let mut state = self.lock();
        state.named.insert(address.clone());
        let shard = self.get_or_make(&mut state, address)?;
        let before = state.map.shard(slot);
        state.map.assign(slot, &shard);
        drop(state);
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &shard)) {
            before.waiters.wake_all();
        }
        self.refresh_soon();
        Ok(shard)
    }

    /// Returns the primaries in a fixed order, and a hash of the assignment of slots.
    pub(super) fn shards(&self) -> (u64, Vec<Arc<Shard>>) {
        let state = self.lock();
        let mut serving: Vec<_> =
            state.shards.values().filter(|shard| state.map.serves(shard)).cloned().collect();
        serving.sort_by(|a, b| a.address.cmp(&b.address));
        (state.map.hash(), serving)
    }

    /// Returns the number of slots that no known node serves.
    pub(super) fn unserved_slots(&self) -> usize {
        let state = self.lock();
        SLOTS - state.map.slots.iter().filter(|&&owner| owner != NONE).count().min(SLOTS)
    }

    /// True if the assignment of slots still is the one of this hash, and no slot is on its way.
    pub(super) async fn is_at_rest(&self, map: u64) -> Result<bool, StoreError> {
        self.install(&self.ask().await?)?;
        let (present, shards) = self.shards();
        if present != map {
            return Ok(false);
        }
        let mut nodes = Pipeline::new();
        nodes.cmd("CLUSTER").arg("NODES");
        for shard in shards {
            let reply = shard.records.connections().call(&nodes, 1).await?.pop();
            // Where the user may not ask, only slots that arrived are noticed.
            let text = reply.and_then(|reply| reply.extract_error().ok()).map(from_redis_value::<String>);
            // A node lists its own slots on the way in brackets.
            if text.is_some_and(|text| text.is_ok_and(|text| text.contains(" ["))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn refresh_soon(self: &Arc<Cluster>) {
        Flight::start(self);
    }

    fn get_or_make(&self, state: &mut State, address: &Address) -> Result<Arc<Shard>, StoreError> {
        if let Some(shard) = state.shards.get(address) {
            return Ok(Arc::clone(shard));
        }
        let shard = Shard::new(&self.connector.client(address)?, &self.settings);
        state.shards.insert(address.clone(), Arc::clone(&shard));
        Ok(shard)
    }

    /// Asks known nodes for the layout. The answer that most of them agree on counts, so that a
    /// node that was cut off is outvoted. One that belongs to no cluster yet has no vote.
    async fn ask(&self) -> Result<Layout, StoreError> {
        let nodes = self.nodes();
        let count = nodes.len();
        let mut answers: FuturesUnordered<_> = nodes
            .into_iter()
            .map(|(address, client)| layout(client, address, self.settings.limits))
            .collect();
        let (mut votes, mut failure) = (HashMap::<Layout, usize>::new(), None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(layout) => {
                    let is_empty = layout.covered() == 0;
                    let votes_of_it = votes.entry(layout).or_default();
                    *votes_of_it += 1;
                    if *votes_of_it * 2 > count && !is_empty {
                        break;
                    }
                }
                // An error that will stay says more.
                Err(error) if failure.as_ref().is_none_or(StoreError::is_transient) => failure = Some(error),
                Err(_) => {}
            }
        }
        let rank = |(layout, votes): &(Layout, usize)| {
            let covered = layout.covered();
            (covered > 0, *votes, covered)
        };
        let best = votes.into_iter().max_by_key(rank);
        match (best, failure) {
            (Some((layout, _)), _) => Ok(layout),
            (None, Some(StoreError::Unavailable { detail, .. })) => Err(unavailable(format!(
                "none of {count} nodes of the cluster answered; one of them: {detail}"
            ))),
            (None, Some(error)) => Err(error),
            (None, None) => Err(unavailable("no node of the cluster is known")),
        }
    }

    fn nodes(&self) -> Vec<(Address, Client)> {
        let seeds =
            self.seeds.iter().map(|seed| (Address::of(seed.get_connection_info().addr()), seed.clone()));
        let state = self.lock();
        let known = state.shards.keys().chain(&state.replicas);
        let known = known.filter_map(|address| Some((address.clone(), self.connector.client(address).ok()?)));
        let mut nodes = Vec::new();
        for (address, client) in known.chain(seeds) {
            if nodes.len() < ASK_AT_MOST && !nodes.iter().any(|(known, _)| *known == address) {
                nodes.push((address, client));
            }
        }
        nodes
    }

    /// Applies a layout. Waiters on a shard that lost a slot end, and ask again.
    fn install(&self, layout: &Layout) -> Result<(), StoreError> {
        let mut state = self.lock();
        let mut map = Map::default();
        for (first, last, address) in &layout.ranges {
            let shard = self.get_or_make(&mut state, address)?;
            (*first..=*last).for_each(|slot| map.assign(slot, &shard));
        }
        let before = std::mem::replace(&mut state.map, map);
        state.replicas = layout.replicas.iter().cloned().collect();
        let named = std::mem::take(&mut state.named);
        let changed = before.losers(&state.map);
        let gone = |shard: &Arc<Shard>| !state.map.serves(shard);
        let failed_over =
            before.primaries.iter().filter(|&shard| before.serves(shard) && gone(shard)).count();
        observe::redis_failovers(failed_over);
        let primaries: BTreeSet<Address> = layout.primaries().into_keys().collect();
        let kept = |address: &Address| primaries.contains(address) || named.contains(address);
        let (used, unused) =
            std::mem::take(&mut state.shards).into_iter().partition::<BTreeMap<_, _>, _>(|(at, _)| kept(at));
        state.shards = used;
        drop(state);
        self.settings.watch.retain(|address| kept(address));
        // A woken waiter may call back, so the lock is released first.
        changed.iter().chain(unused.values()).for_each(|shard| shard.waiters.wake_all());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refreshed for Cluster {
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
        // Otherwise the next call that finds no node asks again.
        if let Ok(layout) = self.ask().await {
            let _ = self.install(&layout);
        }
    }
}

impl Map {
    fn shard(&self, slot: u16) -> Option<Arc<Shard>> {
        let index = *self.slots.get(usize::from(slot))?;
        self.primaries.get(usize::from(index)).cloned()
    }

    fn assign(&mut self, slot: u16, shard: &Arc<Shard>) {
        let known = self.primaries.iter().position(|known| Arc::ptr_eq(known, shard));
        let index = known.unwrap_or_else(|| {
            self.primaries.push(Arc::clone(shard));
            self.primaries.len() - 1
        });
        self.slots.resize(SLOTS, NONE);
        if let Some(owner) = self.slots.get_mut(usize::from(slot)) {
            *owner = u16::try_from(index).unwrap_or(NONE);
        }
    }

    fn serves(&self, shard: &Arc<Shard>) -> bool {
        let index = self.primaries.iter().position(|known| Arc::ptr_eq(known, shard));
        index.is_some_and(|index| self.slots.iter().any(|&owner| usize::from(owner) == index))
    }

    /// Returns the shards that serve a slot here and not there.
    fn losers(&self, later: &Map) -> Vec<Arc<Shard>> {
        let mut losers: Vec<Arc<Shard>> = Vec::new();
        for slot in 0..SLOTS as u16 {
            let Some(before) = self.shard(slot) else { continue };
            let stays = later.shard(slot).is_some_and(|shard| Arc::ptr_eq(&shard, &before));
            if !stays && !losers.iter().any(|known| Arc::ptr_eq(known, &before)) {
                losers.push(before);
            }
        }
        losers
    }

    fn hash(&self) -> u64 {
        // Its keys are fixed, so that another process gets the same.
        let mut hasher = DefaultHasher::new();
        for &owner in &self.slots {
            self.primaries.get(usize::from(owner)).map(|shard| &shard.address).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Asks one node for the layout.
async fn layout(client: Client, node: Address, limits: [Duration; 2]) -> Result<Layout, StoreError> {
    let mut slots = Pipeline::new();
    slots.cmd("CLUSTER").arg("SLOTS");
    let mut replies = ask(&client, limits, &slots, 1).await.map_err(|error| at(&node, error))?;
    let reply = replies.pop().unwrap_or(Value::Nil).extract_error().map_err(|error| {
        if says(&error, "cluster support disabled") {
            return unusable(format!("{node} is not a node of a cluster: use RedisStore::connect"));
        }
        if error.code() == Some("NOPERM") {
            return unusable("the user lacks a permission (NOPERM): a cluster needs +cluster|slots");
        }
        at(&node, store_error(&error))
    })?;
    Layout::parse(reply, &node).ok_or_else(|| unavailable(format!("{node} gave no layout of slots")))
}

/// Names the node in an error.
pub(super) fn at(node: &Address, error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable { detail, .. } => unavailable(format!("{node}: {detail}")),
        StoreError::Unusable { detail, .. } => unusable(format!("{node}: {detail}")),
        error @ (StoreError::Full { .. } | StoreError::Corrupt { .. }) => error,
    }
}
