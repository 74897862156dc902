//! The state of a store's servers, for readiness probes: [`Health`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::connection::Connections;
use super::error::malformed;
use super::item::{Expected, Item, ItemReply};
use super::shard::Shard;
use super::topology::Topology;
use super::{Inner, Warning};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;

/// Ids that are tried until one is in a slot of a node, which has one slot in 16 384 at least.
const PROBES: u32 = 200_000;

/// The state of the servers of a [`RedisStore`](super::RedisStore), from
/// [`RedisStore::health`](super::RedisStore::health).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Health {
    /// The arrangement of the servers.
    pub topology: TopologyKind,
    /// The primaries.
    pub nodes: Vec<NodeHealth>,
    /// The number of slots of a cluster that no known node serves. Otherwise 0.
    pub unserved_slots: usize,
    /// The failures that acknowledged writes survive.
    pub durability: Durability,
    /// The warnings for the operator.
    pub warnings: Vec<Warning>,
}

/// The arrangement of a store's servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TopologyKind {
    /// One server, or a service behind one address.
    Server,
    /// The primary that sentinels name.
    Sentinel,
    /// The primaries of a cluster.
    Cluster,
}

/// The state of one primary.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NodeHealth {
    /// The host and port.
    pub address: String,
    /// The reason why it gives no grants at present, if there is one; of a store that is opened for
    /// reading, why it cannot be read.
    pub fault: Option<StoreError>,
    /// True if it is a replica, which only a store that is opened for reading works on.
    pub is_replica: bool,
    /// The number of replicas in step; `None` if `INFO` is forbidden.
    pub replicas: Option<usize>,
    /// The most bytes that one of them is behind; `None` if `INFO` is forbidden or there are none.
    pub replica_lag_bytes: Option<u64>,
}

impl Health {
    /// Returns true if begins of every key can be granted at present.
    pub fn is_ready(&self) -> bool {
        let is_well = |node: &NodeHealth| node.fault.is_none();
        self.unserved_slots == 0 && !self.nodes.is_empty() && self.nodes.iter().all(is_well)
    }
}

impl Inner {
    /// Reports that the store cannot be used here, for this reason.
    pub(super) fn unusable(&self, fault: StoreError) -> Health {
        let mut health = self.report(Vec::new());
        let (_, shards) = self.topology.shards();
        health.nodes.extend(shards.iter().map(|shard| NodeHealth {
            address: shard.address.to_string(),
            fault: Some(fault.clone()),
            is_replica: false,
            replicas: None,
            replica_lag_bytes: None,
        }));
        health
    }

    /// Inspects all primaries at the same time.
    pub(super) async fn health(&self) -> Health {
        let (_, shards) = self.topology.shards();
        let nodes = join_all(shards.iter().map(|shard| self.node_health(shard))).await;
        for fault in nodes.iter().filter_map(|node| node.fault.as_ref()) {
            self.topology.suspect(fault);
        }
        self.report(nodes)
    }

    fn report(&self, nodes: Vec<NodeHealth>) -> Health {
        let (topology, unserved_slots) = match &self.topology {
            Topology::One(_) => (TopologyKind::Server, 0),
            Topology::Sentinels(_) => (TopologyKind::Sentinel, 0),
            Topology::Cluster(cluster) => (TopologyKind::Cluster, cluster.unserved_slots()),
        };
        let durability = self.settings.watch.durability();
        Health { topology, nodes, unserved_slots, durability, warnings: self.warnings() }
    }

    async fn node_health(&self, shard: &Arc<Shard>) -> NodeHealth {
        let inspected = join_all(shard.records.lanes().iter().map(Connections::inspect)).await;
        let mut fault = inspected.into_iter().find_map(Result::err);
        // A store for reading may have no right to, and a replica refuses it.
        if fault.is_none() && !self.read_only {
            fault = self.try_begin(shard).await.err();
        }
        let replicas = shard.settings.watch.replicas_of(&shard.address).filter(|_| fault.is_none());
        NodeHealth {
            address: shard.address.to_string(),
            fault,
            is_replica: shard.settings.watch.is_replica(&shard.address),
            replicas: replicas.map(|replicas| replicas.online),
            replica_lag_bytes: replicas.filter(|replicas| replicas.online > 0).map(|replicas| replicas.lag),
        }
    }

    /// Sends what a begin sends, for a stamp that no record has, so that nothing is written. A
    /// server that loads its file, has no room or no disk, or is in a cluster that is down refuses
    /// it as it would refuse a begin.
    async fn try_begin(&self, shard: &Arc<Shard>) -> Result<(), StoreError> {
        let is_here =
            |id: &RecordId| matches!(self.topology.shard(id), Ok(serving) if Arc::ptr_eq(&serving, shard));
        // It may have lost its last slot just now.
        let Some(id) = (0..PROBES).map(probe).find(is_here) else { return Ok(()) };
        let item = Item {
            id,
            expected: Expected::Stamp(Stamp(1)),
            bytes: Vec::new(),
            keep: Duration::from_secs(1),
            refusable: true,
            grants: false,
            is_asking: false,
            is_probe: true,
        };
        match shard.deliver(vec![item]).await.pop().unwrap_or_else(|| Err(malformed()))? {
            ItemReply::Refused(why) => Err(why),
            // A slot that moved meanwhile is no fault.
            ItemReply::Done { .. }
            | ItemReply::Conflict { .. }
            | ItemReply::Seen { .. }
            | ItemReply::Elsewhere(..) => Ok(()),
        }
    }
}

/// Returns the id of no record, in one slot or another.
fn probe(number: u32) -> RecordId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    RecordId::from_bytes(bytes)
}
