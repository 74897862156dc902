//! The nodes of a cluster and the slots that they serve: [`Cluster`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Client, Pipeline, Value, from_redis_value};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::address::Address;
use super::error::{says, store_error, unavailable, unusable};
use super::flight::{Flight, Refreshed, SETTLED};
use super::shard::{Connector, Settings, Shard};
use super::slots::{Layout, NodeIds, Ranges, SLOTS, slot};
use super::topology_connection::TopologyConnection;
use crate::backends::shared::runtime::leave;
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::observe;

/// Time after which the layout is asked for without a reason.
const EVERY: Duration = Duration::from_secs(10);
/// Least time between two refreshes because of `MOVED`, which also says where its slot is: slots
/// that move one after the other cause one each.
const MOVED_EVERY: Duration = Duration::from_secs(1);
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
    /// The connections over which nodes are asked for the layout.
    connections: Mutex<BTreeMap<Address, Arc<TopologyConnection>>>,
    /// Grows with each refresh, so that each asks other nodes first.
    turn: AtomicUsize,
    flight: Flight,
}

/// The state of a cluster's slots, by which a listing knows whether it missed any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    /// The hash of the assignment of slots.
    pub(super) map: u64,
    /// The hash of the slots that leave a node and of the number of keys that each still has there;
    /// 0 if there are none. What arrives counts for nothing, since every record that a listing can
    /// miss left a node meanwhile, and callers write into slots that arrive.
    pub(super) open: u64,
}

#[derive(Default)]
struct State {
    map: Arc<Map>,
    /// All shards in use, also those that serve no slot yet.
    shards: BTreeMap<Address, Arc<Shard>>,
    /// The addresses that redirects named since the last refresh.
    named: BTreeSet<Address>,
    replicas: Vec<Address>,
    /// The ids of the nodes of the last layout.
    ids: NodeIds,
    /// The nodes that did not answer when they were asked last.
    failed: BTreeSet<Address>,
    /// The layout of the cluster as it seems to be set up again, and since when most seeds tell it.
    again: Option<(LayoutKey, Duration)>,
}

/// Returns the layout once most seeds have told it, and no known node another one, for a while.
fn settled(
    before: &mut Option<(LayoutKey, Duration)>,
    again: Option<LayoutKey>,
    now: Duration,
) -> Option<LayoutKey> {
    let same = before.take().filter(|(key, _)| Some(key) == again.as_ref());
    let (key, since) = same.or_else(|| Some((again?, now)))?;
    *before = Some((key.clone(), since));
    (now.saturating_sub(since) >= SETTLED).then_some(key)
}

/// The assignment of slots.
#[derive(Default, Clone)]
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
        let (state, connections, turn, flight) =
            (Mutex::default(), Mutex::default(), AtomicUsize::new(0), Flight::default());
        let cluster = Arc::new(Cluster { seeds, connector, settings, state, connections, turn, flight });
        let layout = cluster.ask(usize::MAX).await?;
        let missing = SLOTS - layout.covered().min(SLOTS);
        if missing > 0 {
            return Err(unavailable(format!(
                "no node of the cluster serves {missing} of its {SLOTS} slots: assign them, or start their nodes"
            )));
        }
        cluster.install(&layout)?;
        Flight::watch(&cluster);
        Ok(cluster)
    }

    /// Returns the shard that serves a record.
    pub(super) fn shard(self: &Arc<Cluster>, id: &RecordId) -> Result<Arc<Shard>, StoreError> {
        Flight::watch(self);
        let slot = self.slot(id);
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
        Arc::make_mut(&mut state.map).assign(slot, &shard);
        drop(state);
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &shard)) {
            before.waiters.wake_where(|id| self.slot(id) == slot);
        }
        if !self.flight.was_within(MOVED_EVERY) {
            self.refresh_soon();
        }
        Ok(shard)
    }

    /// Returns the primaries in a fixed order, and a hash of the assignment of slots.
    pub(super) fn shards(&self) -> (u64, Vec<Arc<Shard>>) {
        let map = self.map();
        (map.hash(), map.serving())
    }

    /// Returns the number of slots that no known node serves.
    pub(super) fn unserved_slots(&self) -> usize {
        SLOTS - self.map().slots.iter().filter(|&&owner| owner != NONE).count().min(SLOTS)
    }

    /// Finds out how the slots are assigned, and which are on their way.
    pub(super) async fn rest(&self) -> Result<Rest, StoreError> {
        self.install(&self.ask(ASK_AT_MOST).await?)?;
        let (map, shards) = self.shards();
        let mut hasher = DefaultHasher::new();
        let mut is_open = false;
        for shard in shards {
            for open in leaving_slots(&shard).await? {
                is_open = true;
                (&shard.address, open).hash(&mut hasher);
            }
        }
        Ok(Rest { map, open: if is_open { hasher.finish() } else { 0 } })
    }

    pub(super) fn refresh_soon(self: &Arc<Cluster>) {
        Flight::start(self);
    }

    fn get_or_make(&self, state: &mut State, address: &Address) -> Result<Arc<Shard>, StoreError> {
        let id = state.ids.get(address);
        let is_it = |shard: &&Arc<Shard>| id.is_none_or(|id| shard.is_node(id));
        if let Some(shard) = state.shards.get(address).filter(is_it) {
            return Ok(Arc::clone(shard));
        }
        let shard = Shard::new(&self.connector.client(address)?, &self.settings);
        if let Some(id) = id {
            shard.is_node(id);
        }
        state.shards.insert(address.clone(), Arc::clone(&shard));
        Ok(shard)
    }

    /// Asks so many known nodes for the layout. The answer that most of them agree on counts, so
    /// that a node that was cut off is outvoted. One that belongs to no cluster yet, or to another
    /// one, has no vote.
    async fn ask(&self, at_most: usize) -> Result<Layout, StoreError> {
        let nodes = self.nodes(at_most);
        let count = nodes.len();
        let mut answers: FuturesUnordered<_> = nodes
            .into_iter()
            .map(|(address, connection)| layout(connection, address, self.settings.limits))
            .collect();
        let (mut votes, mut failure) = (Votes::default(), None);
        let seeds: HashSet<_> =
            self.seeds.iter().map(|seed| Address::of(seed.get_connection_info().addr())).collect();
        while let Some((node, answer)) = answers.next().await {
            let mut state = self.lock();
            match answer {
                Ok((id, layout)) => {
                    state.failed.remove(&node);
                    // Another cluster's nodes say nothing as long as one of this one may answer.
                    let is_own =
                        state.ids.is_empty() || state.ids.values().any(|known| layout.has_node(known));
                    if votes.add(id, layout, seeds.contains(&node)) * 2 > count && is_own {
                        break;
                    }
                }
                Err(error) => {
                    state.failed.insert(node);
                    // An error that will stay says more.
                    if failure.as_ref().is_none_or(StoreError::is_transient) {
                        failure = Some(error);
                    }
                }
            }
        }
        // The others are heard to the end, so that their connections are there for the next time.
        leave(async move { while answers.next().await.is_some() {} });
        let map = self.map();
        let ids = self.lock().ids.clone();
        let again = votes.set_up_again(&ids, seeds.len());
        let settled = settled(&mut self.lock().again, again, SystemClock.monotonic());
        if !votes.0.is_empty() {
            failure = Some(unavailable("it tells the layout of another cluster"));
        }
        let votes = votes.of_cluster(&ids, count, settled.as_ref());
        match (votes.best(&ids, |layout| map.agreement(layout)), failure) {
            (Some(layout), _) => Ok(layout),
            (None, Some(StoreError::Unavailable { detail, .. })) => Err(unavailable(format!(
                "none of {count} nodes of the cluster answered; one of them: {detail}"
            ))),
            (None, Some(error)) => Err(error),
            (None, None) => Err(unavailable("no node of the cluster is known")),
        }
    }

    /// Returns so many of the known nodes, other ones each time: primaries, replicas and seeds.
    fn nodes(&self, at_most: usize) -> Vec<(Address, Arc<TopologyConnection>)> {
        let seeds: BTreeMap<_, _> =
            self.seeds.iter().map(|seed| (Address::of(seed.get_connection_info().addr()), seed)).collect();
        let (known, failed) = {
            let mut state = self.lock();
            let known = state.shards.keys().chain(&state.replicas).chain(seeds.keys()).cloned();
            let known: BTreeSet<_> = known.collect();
            state.failed.retain(|node| known.contains(node));
            (known, state.failed.clone())
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let nodes = in_turn(known.iter().cloned().collect(), &failed, turn, at_most);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|address, _| known.contains(address));
        let connection = |address: Address| {
            if let Some(connection) = connections.get(&address) {
                return Some((address, Arc::clone(connection)));
            }
            let seed = seeds.get(&address).map(|&seed| seed.clone());
            let connection =
                Arc::new(TopologyConnection::new(seed.or_else(|| self.connector.client(&address).ok())?));
            connections.insert(address.clone(), Arc::clone(&connection));
            Some((address, connection))
        };
        nodes.into_iter().filter_map(connection).collect()
    }

    /// Applies a layout. Waiters of slots that another shard serves from now on end, and ask again.
    fn install(&self, layout: &Layout) -> Result<(), StoreError> {
        let mut state = self.lock();
        let mut map = Map::default();
        state.ids.clone_from(&layout.ids);
        for (first, last, address) in &layout.ranges {
            let shard = self.get_or_make(&mut state, address)?;
            (*first..=*last).for_each(|slot| map.assign(slot, &shard));
        }
        let map = Arc::new(map);
        let before = std::mem::replace(&mut state.map, Arc::clone(&map));
        state.replicas = layout.replicas.iter().cloned().collect();
        let named = std::mem::take(&mut state.named);
        let primaries = layout.primaries();
        let kept = |address: &Address| primaries.contains(address) || named.contains(address);
        let (used, unused) =
            std::mem::take(&mut state.shards).into_iter().partition::<BTreeMap<_, _>, _>(|(at, _)| kept(at));
        state.shards = used;
        drop(state);
        // A woken waiter or a subscriber may call back, so the lock is released first.
        self.settings.watch.retain(|address| kept(address));
        observe::redis_failovers(before.serving().iter().filter(|shard| !map.serves(shard)).count());
        for shard in before.losers(&map) {
            let is_here = |slot| map.shard(slot).is_some_and(|serving| Arc::ptr_eq(&serving, &shard));
            shard.waiters.wake_where(|id| !is_here(self.slot(id)));
        }
        unused.values().for_each(|shard| shard.waiters.wake_all());
        Ok(())
    }

    fn slot(&self, id: &RecordId) -> u16 {
        slot(&self.settings.key(id))
    }

    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.lock().map)
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
        self.settings.opening()
    }

    async fn refresh(self: &Arc<Cluster>) -> bool {
        observe::redis_refreshed();
        // Otherwise the next call that finds no node asks again.
        match self.ask(ASK_AT_MOST).await {
            Ok(layout) => self.install(&layout).is_ok(),
            Err(_) => false,
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

    /// Returns the shards that serve a slot, in the order of their addresses.
    fn serving(&self) -> Vec<Arc<Shard>> {
        let mut serving: Vec<_> = self.primaries.iter().filter(|shard| self.serves(shard)).cloned().collect();
        serving.sort_by(|a, b| a.address.cmp(&b.address));
        serving
    }

    /// Returns the number of slots that the layout assigns as this map does.
    fn agreement(&self, layout: &Layout) -> usize {
        let agree = |(first, last, address): &(u16, u16, Address)| {
            (*first..=*last)
                .filter(|&slot| self.shard(slot).is_some_and(|shard| shard.address == *address))
                .count()
        };
        layout.ranges.iter().map(agree).sum()
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
        let (mut hasher, mut before) = (DefaultHasher::new(), None);
        for (slot, owner) in self.slots.iter().enumerate() {
            if before != Some(owner) {
                let primary = self.primaries.get(usize::from(*owner));
                (slot, primary.map(|shard| &shard.address)).hash(&mut hasher);
            }
            before = Some(owner);
        }
        hasher.finish()
    }
}

/// The layouts that nodes told, by slots and the ids of their primaries.
#[derive(Default)]
struct Votes(BTreeMap<LayoutKey, Vote>);

/// The slots of a layout, and the ids of its primaries.
type LayoutKey = (Ranges, NodeIds);

/// The nodes that told a layout, by their ids, and the rest of it.
#[derive(Default)]
struct Vote {
    voters: HashSet<String>,
    /// The number of addresses that told it, and of those of them that the application named.
    answers: usize,
    seeds: usize,
    replicas: BTreeSet<Address>,
    ids: NodeIds,
}

impl Votes {
    /// Counts the layout of a node, and returns the number of nodes that agree with it. Replicas
    /// are of no account, and a node under two names votes once.
    fn add(&mut self, node: String, layout: Layout, is_seed: bool) -> usize {
        if layout.covered() == 0 {
            return 0;
        }
        let key = (layout.ranges.clone(), layout.primary_ids());
        let vote = self.0.entry(key).or_default();
        vote.voters.insert(node);
        vote.answers += 1;
        vote.seeds += usize::from(is_seed);
        vote.replicas.extend(layout.replicas);
        vote.ids.extend(layout.ids);
        vote.voters.len()
    }

    /// Returns the layout that most of so many seeds tell, if no known node is in any. The cluster
    /// was set up again, at other addresses than the known ones.
    fn set_up_again(&self, known: &NodeIds, seeds: usize) -> Option<LayoutKey> {
        let is_own = |vote: &Vote| vote.ids.values().any(|id| known.values().any(|known| known == id));
        if known.is_empty() || self.0.values().any(is_own) {
            return None;
        }
        let by_seeds = self.0.iter().find(|(_, vote)| vote.seeds * 2 > seeds);
        by_seeds.map(|(key, _)| key.clone())
    }

    /// Leaves out the layouts of other clusters: they have none of the known nodes. If there is no
    /// other, the cluster was set up again, or the caller is cut off from it and reaches a node of
    /// another one at the address of one that is gone. So all addresses that were asked must tell
    /// it, or two nodes and half of those that were asked.
    /// A layout that was settled on counts too.
    fn of_cluster(mut self, known: &NodeIds, asked: usize, settled: Option<&LayoutKey>) -> Votes {
        let known: HashSet<_> = known.values().collect();
        let is_own = |vote: &Vote| vote.ids.values().any(|id| known.contains(id));
        if self.0.values().any(is_own) {
            self.0.retain(|_, vote| is_own(vote));
        } else if !known.is_empty() {
            let are_enough = |vote: &Vote| vote.voters.len() > 1 && vote.voters.len() * 2 >= asked;
            self.0.retain(|key, vote| vote.answers >= asked || are_enough(vote) || Some(key) == settled);
        }
        self
    }

    /// Returns the layout of most nodes; of several, the one that agrees with the present one most.
    fn best(self, known: &NodeIds, agreement: impl Fn(&Layout) -> usize) -> Option<Layout> {
        let layouts = self.0.into_iter();
        let counted = layouts.map(|((ranges, _), vote)| {
            // A service may tell other ids than its nodes do, and then none of them says anything.
            let is_known = |id: &String| known.values().any(|known| known == id);
            let is_told = vote.ids.values().any(|id| vote.voters.contains(id) || is_known(id));
            let ids = if is_told { vote.ids } else { NodeIds::new() };
            (vote.voters.len(), Layout { ranges, replicas: vote.replicas, ids })
        });
        let best = counted.max_by_key(|(votes, layout)| (*votes, layout.covered(), agreement(layout)))?;
        Some(best.1)
    }
}

/// Chooses so many nodes that each comes in its turn. Those that failed come last, but one of them
/// each time.
fn in_turn(mut nodes: Vec<Address>, failed: &BTreeSet<Address>, turn: usize, at_most: usize) -> Vec<Address> {
    if !nodes.is_empty() {
        let first = turn.wrapping_mul(at_most.min(nodes.len())) % nodes.len();
        nodes.rotate_left(first);
    }
    nodes.sort_by_key(|node| failed.contains(node));
    let again = nodes.iter().position(|node| failed.contains(node));
    if let Some(again) = again.filter(|&again| 0 < at_most && at_most <= again) {
        nodes.swap(at_most - 1, again);
    }
    nodes.truncate(at_most);
    nodes
}

/// Asks one node for the layout, and for its id.
async fn layout(
    connection: Arc<TopologyConnection>,
    node: Address,
    limits: [Duration; 2],
) -> (Address, Result<(String, Layout), StoreError>) {
    let mut slots = Pipeline::new();
    slots.cmd("CLUSTER").arg("SLOTS");
    // Not all users may ask for it.
    slots.cmd("CLUSTER").arg("MYID");
    let replies = connection.ask(limits, &slots, 2).await.map_err(|error| at(&node, error));
    let told = replies.and_then(|replies| told(replies, &node));
    (node, told)
}

fn told(replies: Vec<Value>, node: &Address) -> Result<(String, Layout), StoreError> {
    let mut replies = replies.into_iter().map(Value::extract_error);
    let reply = replies.next().unwrap_or(Ok(Value::Nil)).map_err(|error| {
        if says(&error, "cluster support disabled") {
            return unusable(format!("{node} is not a node of a cluster: use RedisStore::connect"));
        }
        if error.code() == Some("NOPERM") {
            return unusable("the user lacks a permission (NOPERM): a cluster needs +cluster|slots");
        }
        at(node, store_error(&error))
    })?;
    let id = replies.next().and_then(|reply| from_redis_value::<String>(reply.ok()?).ok());
    let layout = Layout::parse(reply, node);
    let layout = layout.ok_or_else(|| unavailable(format!("{node} gave no layout of slots")))?;
    Ok((id.unwrap_or_else(|| node.to_string()), layout))
}

/// Returns the slots that leave a node, each with the number of keys that it still has there: keys
/// leave it one after the other. Where the user may not ask for the first, only slots that arrived
/// are noticed; without the second, not keys that move while a listing runs.
async fn leaving_slots(shard: &Shard) -> Result<Vec<(u16, i64)>, StoreError> {
    let mut nodes = Pipeline::new();
    nodes.cmd("CLUSTER").arg("NODES");
    let reply = shard.records.connections().call(&nodes, 1).await?.pop();
    let text = reply.and_then(|reply| from_redis_value::<String>(reply.extract_error().ok()?).ok());
    let open = leaving(&text.unwrap_or_default());
    let mut counts = Pipeline::new();
    for slot in &open {
        counts.cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot);
    }
    let replies = shard.records.connections().call(&counts, open.len()).await?;
    let count = |reply: Value| from_redis_value(reply.extract_error().ok()?).ok();
    let counts = replies.into_iter().map(|reply| count(reply).unwrap_or(-1));
    Ok(open.into_iter().zip(counts).collect())
}

/// Reads the slots that leave a node from its reply to `CLUSTER NODES`: it lists its own that are
/// on their way in brackets, as in `[93->-id]` and `[77-<-id]`.
fn leaving(nodes: &str) -> Vec<u16> {
    let own = nodes.lines().find(|line| line.contains("myself")).unwrap_or_default();
    let slot = |text: &str| text.strip_prefix('[')?.split_once("->-")?.0.parse().ok();
    own.split_whitespace().filter_map(slot).collect()
}

/// Names the node in an error.
pub(super) fn at(node: &Address, error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable { detail, .. } => unavailable(format!("{node}: {detail}")),
        StoreError::Unusable { detail, .. } => unusable(format!("{node}: {detail}")),
        error @ (StoreError::Full { .. } | StoreError::Corrupt { .. }) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(primary: &str, replica: &str) -> Layout {
        let ranges = [(0, 16_383, Address::new(primary, 1))].into();
        Layout { ranges, replicas: [Address::new(replica, 1)].into(), ids: NodeIds::new() }
    }

    /// The same, with ids.
    fn named(primary: &str, id: &str) -> Layout {
        Layout { ids: [(Address::new(primary, 1), id.to_owned())].into(), ..layout(primary, "x") }
    }

    fn votes(told: &[(&str, &Layout)]) -> Votes {
        let mut votes = Votes::default();
        for (node, layout) in told {
            votes.add((*node).to_owned(), (*layout).clone(), false);
        }
        votes
    }

    #[test]
    fn s9_a_node_of_another_cluster_has_no_vote() {
        let (own, foreign) = (named("a", "n1"), named("b", "f1"));
        let mut moved = named("c", "n2");
        moved.ids.extend(own.ids.clone());
        let best = |told: &[(&str, &Layout)], asked| {
            let best = votes(told).of_cluster(&own.ids, asked, None).best(&own.ids, |_| 0);
            best.map(|layout| layout.ranges)
        };
        assert_eq!(best(&[("n1", &own), ("f1", &foreign), ("f2", &foreign)], 3), Some(own.ranges.clone()));
        assert_eq!(best(&[("n2", &moved), ("f1", &foreign)], 12), Some(moved.ranges.clone()));
        // The caller is cut off from all others.
        assert_eq!(best(&[("f1", &foreign)], 12), None);
        assert_eq!(best(&[("f1", &foreign)], 2), None);
        assert_eq!(best(&[("f1", &foreign), ("f2", &foreign)], 6), None);
        // All nodes were set up again.
        let again: Vec<_> = ["f1", "f2", "f3"].map(|node| (node, &foreign)).into();
        assert_eq!(best(&again, 6), Some(foreign.ranges.clone()));
        assert_eq!(best(&[("f1", &foreign)], 1), Some(foreign.ranges.clone()));
        assert_eq!(best(&[("f1", &foreign), ("f1", &foreign)], 2), Some(foreign.ranges.clone()));
    }

    #[test]
    fn a_cluster_that_was_set_up_again_elsewhere_is_followed_after_a_while() {
        let (own, again) = (named("a", "n1"), named("b", "m1"));
        let mut votes = Votes::default();
        // The seed is one name. The known addresses are dead.
        votes.add("m1".to_owned(), again.clone(), true);
        let mut before = None;
        let mut told =
            |seeds, at| settled(&mut before, votes.set_up_again(&own.ids, seeds), Duration::from_secs(at));
        assert_eq!(told(1, 100), None);
        assert_eq!(told(1, 129), None);
        let key = told(1, 130).unwrap();
        assert_eq!(told(3, 131), None, "one seed of three");
        assert_eq!(told(1, 132), None, "it begins anew");
        assert_eq!(votes.set_up_again(&NodeIds::new(), 1), None, "nothing was known");
        let best = votes.of_cluster(&own.ids, 4, Some(&key)).best(&own.ids, |_| 0);
        assert_eq!(best.unwrap().ranges, again.ranges);
        let mut with_own = Votes::default();
        with_own.add("m1".to_owned(), again, true);
        with_own.add("n1".to_owned(), own.clone(), false);
        assert_eq!(with_own.set_up_again(&own.ids, 1), None, "a known node answers");
    }

    #[test]
    fn ids_that_no_node_tells_of_itself_are_of_no_account() {
        let of_service = named("a", "made up");
        assert!(votes(&[("n1", &of_service)]).best(&NodeIds::new(), |_| 0).unwrap().ids.is_empty());
        assert_eq!(votes(&[("n1", &named("a", "n1"))]).best(&NodeIds::new(), |_| 0).unwrap().ids.len(), 1);
    }

    #[test]
    fn s9_the_shard_of_a_node_that_was_set_up_again_is_another_one() {
        let shard = Shard::new(&Client::open("redis://a:1").unwrap(), &Settings::for_tests(true));
        assert!(shard.is_node("n1") && shard.is_node("n1") && !shard.is_node("n2"));
    }

    #[test]
    fn nodes_that_differ_on_replicas_only_agree_and_each_votes_once() {
        let mut votes = Votes::default();
        assert_eq!(votes.add("n1".to_owned(), layout("old", "x"), false), 1);
        assert_eq!(votes.add("n1".to_owned(), layout("old", "x"), false), 1, "under another name");
        assert_eq!(votes.add("n2".to_owned(), layout("new", "x"), false), 1);
        assert_eq!(votes.add("n3".to_owned(), layout("new", "y"), false), 2);
        assert_eq!(votes.add("n4".to_owned(), Layout::default(), false), 0);
        let best = votes.best(&NodeIds::new(), |_| 0).unwrap();
        assert_eq!(best.ranges, layout("new", "x").ranges);
        assert_eq!(best.replicas.len(), 2);
        assert_eq!(Votes::default().best(&NodeIds::new(), |_| 0), None);
    }

    #[test]
    fn the_layout_stays_while_as_many_nodes_tell_it_as_another() {
        for present in ["a", "b"] {
            let mut votes = Votes::default();
            for (number, told) in ["a", "b", "b", "a"].into_iter().enumerate() {
                votes.add(format!("n{number}"), layout(told, "x"), false);
            }
            let agreement = |told: &Layout| usize::from(told.ranges == layout(present, "x").ranges);
            assert_eq!(votes.best(&NodeIds::new(), agreement).unwrap().ranges, layout(present, "x").ranges);
        }
    }

    #[test]
    fn every_node_is_asked_in_its_turn_and_those_that_failed_last() {
        let nodes: Vec<_> = (0..40).map(|number| Address::new("n", number)).collect();
        let failed = BTreeSet::from([nodes[0].clone(), nodes[13].clone()]);
        let mut asked = BTreeSet::new();
        for turn in 0..10 {
            let order = in_turn(nodes.clone(), &failed, turn, ASK_AT_MOST);
            assert_eq!(order.len(), ASK_AT_MOST);
            assert_eq!(order.iter().filter(|node| failed.contains(node)).count(), 1, "one may be back");
            asked.extend(order);
        }
        assert_eq!(asked.len(), 40);
        let order = in_turn(nodes.clone(), &failed, 1, usize::MAX);
        assert!(order.len() == 40 && order[38..].iter().all(|node| failed.contains(node)));
        let all_failed: BTreeSet<_> = nodes.iter().cloned().collect();
        assert_eq!(in_turn(nodes, &all_failed, 1, ASK_AT_MOST).len(), ASK_AT_MOST);
        assert_eq!(in_turn(Vec::new(), &all_failed, 1, ASK_AT_MOST), []);
    }

    /// An aborted move leaves the slot open on both sides, and each begin adds a key to the one
    /// that it arrives at.
    #[test]
    fn a_slot_that_arrives_changes_no_listing() {
        let nodes = "b 10.0.0.1:1@2 myself,master - 0 0 1 connected 0-5460 [77-<-a]\n";
        assert!(leaving(nodes).is_empty());
    }

    #[test]
    fn the_number_of_an_assignment_depends_on_each_slot() {
        let settings = Settings::for_tests(true);
        let shard = |host: &str| {
            let client = Client::open(format!("redis://{host}:1")).unwrap();
            Shard::new(&client, &settings)
        };
        let (a, b) = (shard("a"), shard("b"));
        let map = |owners: &[&Arc<Shard>]| {
            let mut map = Map::default();
            owners.iter().zip(0..).for_each(|(owner, slot)| map.assign(slot, owner));
            map
        };
        let (base, others) = (map(&[&a, &a, &b]), (shard("a"), shard("b")));
        assert_eq!(base.hash(), map(&[&others.0, &others.0, &others.1]).hash(), "of another process");
        for other in [map(&[&a, &b, &b]), map(&[&b, &b, &a]), map(&[&a, &a]), map(&[&a, &a, &b, &b])] {
            assert_ne!(base.hash(), other.hash());
        }
        assert_eq!(base.serving().len(), 2);
    }

    #[test]
    fn slots_that_leave_are_read_from_the_own_line() {
        let nodes = "a 10.0.0.2:1@2 master - 0 0 2 connected 5461-10922\n\
                     b 10.0.0.1:1@2 myself,master - 0 0 1 connected 0-5460 [93->-a] [77-<-a]\n";
        assert_eq!(leaving(nodes), [93]);
        assert!(leaving("").is_empty());
    }
}
