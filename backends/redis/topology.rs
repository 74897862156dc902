//! The servers of a store and the records that each serves: [`Topology`].

use std::sync::Arc;

use super::address::Redirect;
use super::cluster::{Cluster, Rest};
use super::error::unavailable;
use super::sentinel::Sentinels;
use super::shard::Shard;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::observe;

/// Most redirects that one item follows. More of them mean that the nodes disagree.
pub(super) const HOPS: usize = 8;

/// The servers of a store.
pub(super) enum Topology {
    /// One server, behind one address.
    One(Arc<Shard>),
    /// The primary that sentinels name.
    Sentinels(Arc<Sentinels>),
    /// The primaries of a cluster.
    Cluster(Arc<Cluster>),
}

/// The shard to which an item is sent.
pub(super) struct Route {
    pub(super) shard: Arc<Shard>,
    /// True if the shard does not serve the item's slot yet, and is asked for this item only.
    pub(super) is_asking: bool,
}

impl Topology {
    /// Returns the shard that serves a record.
    pub(super) fn shard(&self, id: &RecordId) -> Result<Arc<Shard>, StoreError> {
        match self {
            Topology::One(shard) => Ok(Arc::clone(shard)),
            Topology::Sentinels(sentinels) => Ok(sentinels.shard()),
            Topology::Cluster(cluster) => cluster.shard(id),
        }
    }

    /// Returns all shards in a fixed order, and a number that differs for another assignment of
    /// records to them.
    pub(super) fn shards(&self) -> (u64, Vec<Arc<Shard>>) {
        match self {
            Topology::One(shard) => (0, vec![Arc::clone(shard)]),
            Topology::Sentinels(sentinels) => sentinels.shards(),
            Topology::Cluster(cluster) => cluster.shards(),
        }
    }

    /// Finds out how the records are assigned to shards, and which are on their way.
    pub(super) async fn rest(&self) -> Result<Rest, StoreError> {
        match self {
            Topology::One(_) | Topology::Sentinels(_) => Ok(Rest { map: self.shards().0, open: 0 }),
            Topology::Cluster(cluster) => cluster.rest().await,
        }
    }

    /// Returns the shard to which a redirect leads.
    pub(super) fn follow(&self, redirect: Redirect) -> Result<Route, StoreError> {
        let Topology::Cluster(cluster) = self else {
            return Err(unavailable("it answered with a redirect outside of a cluster"));
        };
        match redirect {
            Redirect::Moved { slot, to } => {
                observe::redis_redirect("moved");
                Ok(Route { shard: cluster.moved(slot, &to)?, is_asking: false })
            }
            Redirect::Ask { to } => {
                observe::redis_redirect("ask");
                Ok(Route { shard: cluster.shard_at(&to)?, is_asking: true })
            }
        }
    }

    /// Looks for changes in the background, after a server answered with this error or not at all.
    pub(super) fn suspect(&self, error: &StoreError) {
        if !error.is_transient() {
            return;
        }
        match self {
            Topology::One(_) => {}
            Topology::Sentinels(sentinels) => sentinels.refresh_soon(),
            Topology::Cluster(cluster) => cluster.refresh_soon(),
        }
    }
}
