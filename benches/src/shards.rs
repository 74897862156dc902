//! `shards`: this crate on a cluster and behind sentinels, beside one server and beside the cluster
//! client of the `redis` crate, and the cost of waiting for a replica.

use std::path::Path;

use nevertwice::RedisStore;
use nevertwice::backends::redis::RedisStoreBuilder;
use serde::{Deserialize, Serialize};

use crate::compare::Rate;
use crate::hand::HandCluster;
use crate::measure::{Median, Plan, Runner};
use crate::nodes::{self, SERVICE};
use crate::ours::Ours;
use crate::server::Server;

/// The figure of one arrangement of servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sharded {
    pub(crate) store: String,
    pub(crate) side: String,
    pub(crate) c: usize,
    pub(crate) rate: Rate,
    /// The ratio of its operations per second to those of this crate on one server, round by round.
    pub(crate) ratio: Median,
    /// The same to the cluster client, where both run on the cluster.
    pub(crate) to_client: Option<Median>,
}

pub(crate) const ONE: &str = "one server";
pub(crate) const CLUSTER: &str = "cluster of 3";
pub(crate) const CLIENT: &str = "by hand, ClusterConnection";
pub(crate) const SENTINEL: &str = "sentinel";
pub(crate) const REPLICATED: &str = "sentinel, replicated(1)";

/// The servers that the sides run on.
pub(crate) struct Shards {
    one: Server,
    cluster: Server,
    watched: Server,
    sentinel: Server,
}

impl Shards {
    /// Starts all of them.
    pub(crate) fn start(binary: &Path) -> Result<Shards, String> {
        let watched = nodes::watched(binary)?;
        let sentinel = nodes::sentinel(binary, &watched)?;
        Ok(Shards { one: Server::start(binary)?, cluster: nodes::cluster(binary)?, watched, sentinel })
    }

    /// Takes one figure of each side.
    pub(crate) async fn measure(&self, store: &str, plan: &Plan) -> Vec<Sharded> {
        [&self.one, &self.cluster, &self.watched].into_iter().for_each(Server::flush);
        let sentinel = || RedisStore::sentinel([self.sentinel.url()], SERVICE);
        let [one, cluster, plain, replicated] = [
            ours(RedisStore::builder(self.one.url())).await,
            ours(RedisStore::cluster([self.cluster.url()])).await,
            ours(sentinel()).await,
            ours(sentinel().prefix("replicated:").replicated(1).accept_no_append_only_file()).await,
        ];
        let mut one = Runner::prepared(one, plan, Some(&self.one)).await;
        let mut cluster = Runner::prepared(cluster, plan, Some(&self.cluster)).await;
        let mut plain = Runner::prepared(plain, plan, Some(&self.watched)).await;
        let mut replicated = Runner::prepared(replicated, plan, Some(&self.watched)).await;
        let client = HandCluster::connect(self.cluster.url()).await;
        let mut client = Runner::prepared(client, plan, Some(&self.cluster)).await;
        for _ in 0..plan.rounds {
            one.run(plan, Some(&self.one)).await;
            cluster.run(plan, Some(&self.cluster)).await;
            client.run(plan, Some(&self.cluster)).await;
            plain.run(plan, Some(&self.watched)).await;
            replicated.run(plan, Some(&self.watched)).await;
        }
        let sides = [
            (ONE, &one.rounds),
            (CLUSTER, &cluster.rounds),
            (CLIENT, &client.rounds),
            (SENTINEL, &plain.rounds),
            (REPLICATED, &replicated.rounds),
        ];
        let figure = |(side, rounds): (&str, &Vec<_>)| Sharded {
            store: store.to_owned(),
            side: side.to_owned(),
            c: plan.callers,
            rate: Rate::of(rounds),
            ratio: Median::ratio(rounds, &one.rounds),
            to_client: (side == CLUSTER).then(|| Median::ratio(rounds, &client.rounds)),
        };
        sides.into_iter().map(figure).collect()
    }
}

async fn ours(builder: RedisStoreBuilder) -> Ours {
    Ours::new(builder.connect().await.expect("the servers answer"))
}
