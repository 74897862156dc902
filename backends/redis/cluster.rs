//! The nodes of a cluster and the slots that they serve: [`Cluster`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Client, Pipeline, Value, from_redis_value};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::address::Address;
use super::error::{says, store_error, unavailable, unusable};
use super::flight::{Flight, Refreshed};
use super::line::Line;
use super::shard::{Connector, Settings, Shard};
use super::slots::{Layout, Ranges, SLOTS, slot};
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
    lines: Mutex<BTreeMap<Address, Arc<Line>>>,
    /// Grows with each refresh, so that each asks other nodes first.
    turn: AtomicUsize,
    flight: Flight,
}

/// The state of a cluster's slots, by which a listing knows whether it missed any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    /// The hash of the assignment of slots.
    pub(super) map: u64,
    /// The hash of the slots on their way and of the number of keys that each still has where it
    /// was; 0 if there are none.
    pub(super) open: u64,
}

#[derive(Default)]
struct State {
    map: Map,
    /// All shards in use, also those that serve no slot yet.
    shards: BTreeMap<Address, Arc<Shard>>,
    /// The addresses that redirects named since the last refresh.
    named: BTreeSet<Address>,
    replicas: Vec<Address>,
    /// The nodes that did not answer when they were asked last.
    failed: BTreeSet<Address>,
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
        let (state, lines, turn, flight) =
            (Mutex::default(), Mutex::default(), AtomicUsize::new(0), Flight::default());
        let cluster = Arc::new(Cluster { seeds, connector, settings, state, lines, turn, flight });
        let layout = cluster.ask(usize::MAX).await?;
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
        if !self.flight.was_within(MOVED_EVERY) {
            self.refresh_soon();
        }
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

    /// Finds out how the slots are assigned, and which are on their way.
    pub(super) async fn rest(&self) -> Result<Rest, StoreError> {
        self.install(&self.ask(ASK_AT_MOST).await?)?;
        let (map, shards) = self.shards();
        let mut hasher = DefaultHasher::new();
        let mut is_open = false;
        for shard in shards {
            for (slot, keys) in open_slots(&shard).await? {
                is_open = true;
                (&shard.address, slot, keys).hash(&mut hasher);
            }
        }
        Ok(Rest { map, open: if is_open { hasher.finish() } else { 0 } })
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

    /// Asks so many known nodes for the layout. The answer that most of them agree on counts, so
    /// that a node that was cut off is outvoted. One that belongs to no cluster yet has no vote.
    async fn ask(&self, at_most: usize) -> Result<Layout, StoreError> {
        let nodes = self.nodes(at_most);
        let count = nodes.len();
        let mut answers: FuturesUnordered<_> =
            nodes.into_iter().map(|(address, line)| layout(line, address, self.settings.limits)).collect();
        let (mut votes, mut failure) = (Votes::default(), None);
        while let Some((node, answer)) = answers.next().await {
            let mut state = self.lock();
            match answer {
                Ok((id, layout)) => {
                    state.failed.remove(&node);
                    if votes.add(id, layout) * 2 > count {
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
        match (votes.best(), failure) {
            (Some(layout), _) => Ok(layout),
            (None, Some(StoreError::Unavailable { detail, .. })) => Err(unavailable(format!(
                "none of {count} nodes of the cluster answered; one of them: {detail}"
            ))),
            (None, Some(error)) => Err(error),
            (None, None) => Err(unavailable("no node of the cluster is known")),
        }
    }

    /// Returns so many of the known nodes, other ones each time: primaries, replicas and seeds, and
    /// last those that did not answer.
    fn nodes(&self, at_most: usize) -> Vec<(Address, Arc<Line>)> {
        let seeds: BTreeMap<_, _> =
            self.seeds.iter().map(|seed| (Address::of(seed.get_connection_info().addr()), seed)).collect();
        let (known, failed) = {
            let state = self.lock();
            let known = state.shards.keys().chain(&state.replicas).chain(seeds.keys()).cloned();
            (known.collect::<BTreeSet<_>>(), state.failed.clone())
        };
        let order =
            in_turn(known.iter().cloned().collect(), &failed, self.turn.fetch_add(1, Ordering::Relaxed));
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|address, _| known.contains(address));
        let line = |address: Address| {
            if let Some(line) = lines.get(&address) {
                return Some((address, Arc::clone(line)));
            }
            let seed = seeds.get(&address).map(|&seed| seed.clone());
            let line = Arc::new(Line::new(seed.or_else(|| self.connector.client(&address).ok())?));
            lines.insert(address.clone(), Arc::clone(&line));
            Some((address, line))
        };
        order.into_iter().take(at_most).filter_map(line).collect()
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

    async fn refresh(&self) -> bool {
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

/// The layouts that nodes told.
#[derive(Default)]
struct Votes(HashMap<Ranges, (HashSet<String>, BTreeSet<Address>)>);

impl Votes {
    /// Counts the layout of a node, and returns the number of nodes that agree with it. Replicas
    /// are of no account, and a node under two names votes once.
    fn add(&mut self, node: String, layout: Layout) -> usize {
        if layout.covered() == 0 {
            return 0;
        }
        let (voters, replicas) = self.0.entry(layout.ranges).or_default();
        voters.insert(node);
        replicas.extend(layout.replicas);
        voters.len()
    }

    fn best(self) -> Option<Layout> {
        let layouts = self.0.into_iter();
        let counted = layouts.map(|(ranges, (voters, replicas))| (voters.len(), Layout { ranges, replicas }));
        let best = counted.max_by_key(|(votes, layout)| (*votes, layout.covered()))?;
        Some(best.1)
    }
}

/// Orders nodes so that each comes first in its turn, and those that failed come last.
fn in_turn(mut nodes: Vec<Address>, failed: &BTreeSet<Address>, turn: usize) -> Vec<Address> {
    if !nodes.is_empty() {
        let first = turn.wrapping_mul(ASK_AT_MOST) % nodes.len();
        nodes.rotate_left(first);
    }
    nodes.sort_by_key(|node| failed.contains(node));
    nodes
}

/// Asks one node for the layout, and for its id.
async fn layout(
    line: Arc<Line>,
    node: Address,
    limits: [Duration; 2],
) -> (Address, Result<(String, Layout), StoreError>) {
    let mut slots = Pipeline::new();
    slots.cmd("CLUSTER").arg("SLOTS");
    // Not all users may ask for it.
    slots.cmd("CLUSTER").arg("MYID");
    let replies = line.ask(limits, &slots, 2).await.map_err(|error| at(&node, error));
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

/// Returns the slots of a node that are on their way, each with the number of keys that it still
/// has there: keys leave it one after the other. Where the user may not ask for the first, only
/// slots that arrived are noticed; without the second, not keys that move while a listing runs.
async fn open_slots(shard: &Shard) -> Result<Vec<(String, i64)>, StoreError> {
    let mut nodes = Pipeline::new();
    nodes.cmd("CLUSTER").arg("NODES");
    let reply = shard.records.connections().call(&nodes, 1).await?.pop();
    let text = reply.and_then(|reply| from_redis_value::<String>(reply.extract_error().ok()?).ok());
    let open = on_their_way(&text.unwrap_or_default());
    let mut counts = Pipeline::new();
    for (slot, _) in &open {
        counts.cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot);
    }
    let replies = shard.records.connections().call(&counts, open.len()).await?;
    let count = |reply: Value| from_redis_value(reply.extract_error().ok()?).ok();
    let counts = replies.into_iter().map(|reply| count(reply).unwrap_or(-1));
    Ok(open.into_iter().map(|(_, text)| text).zip(counts).collect())
}

/// Reads the slots on their way from the reply to `CLUSTER NODES`, each with its whole text: a node
/// lists its own in brackets, as in `[93->-id]` and `[77-<-id]`.
fn on_their_way(nodes: &str) -> Vec<(u16, String)> {
    let own = nodes.lines().find(|line| line.contains("myself")).unwrap_or_default();
    let slot = |text: &str| {
        let number = text.strip_prefix('[')?.split('-').next()?;
        Some((number.parse().ok()?, text.to_owned()))
    };
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
        Layout { ranges, replicas: [Address::new(replica, 1)].into() }
    }

    #[test]
    fn nodes_that_differ_on_replicas_only_agree_and_each_votes_once() {
        let mut votes = Votes::default();
        assert_eq!(votes.add("n1".to_owned(), layout("old", "x")), 1);
        assert_eq!(votes.add("n1".to_owned(), layout("old", "x")), 1, "under another name");
        assert_eq!(votes.add("n2".to_owned(), layout("new", "x")), 1);
        assert_eq!(votes.add("n3".to_owned(), layout("new", "y")), 2);
        assert_eq!(votes.add("n4".to_owned(), Layout::default()), 0);
        let best = votes.best().unwrap();
        assert_eq!(best.ranges, layout("new", "x").ranges);
        assert_eq!(best.replicas.len(), 2);
        assert_eq!(Votes::default().best(), None);
    }

    #[test]
    fn every_node_is_asked_in_its_turn_and_those_that_failed_last() {
        let nodes: Vec<_> = (0..40).map(|number| Address::new("n", number)).collect();
        let failed = BTreeSet::from([nodes[0].clone(), nodes[13].clone()]);
        let mut asked = BTreeSet::new();
        for turn in 0..10 {
            let order = in_turn(nodes.clone(), &failed, turn);
            assert_eq!(order.len(), 40);
            assert!(order[38..].iter().all(|node| failed.contains(node)));
            asked.extend(order.into_iter().take(ASK_AT_MOST));
        }
        assert_eq!(asked.len(), 38);
        let all_failed: BTreeSet<_> = nodes.iter().cloned().collect();
        assert_eq!(in_turn(nodes, &all_failed, 1).len(), 40);
    }

    #[test]
    fn slots_on_their_way_are_read_from_the_own_line() {
        let nodes = "a 10.0.0.2:1@2 master - 0 0 2 connected 5461-10922\n\
                     b 10.0.0.1:1@2 myself,master - 0 0 1 connected 0-5460 [93->-a] [77-<-a]\n";
        let found = on_their_way(nodes);
        assert_eq!(found, [(93, "[93->-a]".to_owned()), (77, "[77-<-a]".to_owned())]);
        assert_eq!(on_their_way(""), []);
    }
}
