//! A primary with replicas and sentinels, and a cluster, as the tests start them.

use std::collections::BTreeMap;

use nevertwice::RedisStore;
use nevertwice::backends::redis::RedisStoreBuilder;
use redis::Value;

use crate::nodes::{Network, Node, PORT, SENTINEL_PORT, until};

/// The name of the service that sentinels watch.
pub(crate) const SERVICE: &str = "payments";
const SLOTS: u16 = 16_384;

/// Data nodes of which some are primaries, and a way to connect to them.
pub(crate) struct Servers {
    pub(crate) network: Network,
    pub(crate) nodes: Vec<Node>,
    pub(crate) sentinels: Vec<Node>,
}

impl Servers {
    /// Starts a primary, two replicas and three sentinels.
    pub(crate) fn watched(options: &[&str]) -> Servers {
        Servers::watched_with(options, |_| Vec::new())
    }

    /// The same, with environment variables for each data node.
    pub(crate) fn watched_with(
        options: &[&str],
        variables: impl Fn(usize) -> Vec<(&'static str, String)>,
    ) -> Servers {
        let network = Network::new();
        let primary = network.ip(1);
        let nodes: Vec<_> = (0..3_u8)
            .map(|number| {
                let port = PORT.to_string();
                let replica = ["--replicaof", &primary, &port];
                let own = if number == 0 { &[][..] } else { &replica };
                let variables = variables(usize::from(number));
                let variables: Vec<_> =
                    variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
                Node::start_with(&network.ip(number + 1), &[options, own].concat(), &variables)
            })
            .collect();
        until("the replicas are in step", || online(&nodes[0]) == 2);
        let lines: Vec<_> = [
            format!("sentinel monitor {SERVICE} {primary} {PORT} 2"),
            format!("sentinel down-after-milliseconds {SERVICE} 1000"),
            format!("sentinel failover-timeout {SERVICE} 5000"),
            format!("sentinel parallel-syncs {SERVICE} 2"),
        ]
        .into();
        let sentinel = |number| {
            let source = format!("bind-source-addr {}", network.ip(number));
            Node::sentinel(&network.ip(number), &[&[source], &lines[..]].concat())
        };
        let sentinels: Vec<_> = (11..14).map(sentinel).collect();
        let knows = |node: &Node| count(node, "SENTINELS") == 2 && count(node, "REPLICAS") == 2;
        until("the sentinels know each other", || sentinels.iter().all(knows));
        Servers { network, nodes, sentinels }
    }

    /// Starts three primaries with one replica each.
    pub(crate) fn cluster(options: &[&str]) -> Servers {
        let network = Network::new();
        let own = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500"];
        let quick = ["--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no"];
        let options = [&own[..], &quick, options].concat();
        let nodes: Vec<_> = (1..7).map(|number| Node::start(&network.ip(number), &options)).collect();
        for (number, node) in nodes.iter().enumerate() {
            node.ask::<()>(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1));
            if number > 0 {
                node.ask::<()>(&format!("CLUSTER MEET {} {PORT}", nodes[0].ip));
            }
        }
        for (number, node) in nodes[..3].iter().enumerate() {
            let bound = |number: usize| SLOTS as usize * number / 3;
            node.ask::<()>(&format!("CLUSTER ADDSLOTSRANGE {} {}", bound(number), bound(number + 1) - 1));
        }
        let known = |node: &Node| node.ask::<String>("CLUSTER INFO").contains("cluster_known_nodes:6");
        until("the nodes know each other", || nodes.iter().all(known));
        for (number, node) in nodes[3..].iter().enumerate() {
            let primary: String = nodes[number].ask("CLUSTER MYID");
            until("the replica follows", || {
                node.try_ask::<()>(&format!("CLUSTER REPLICATE {primary}")).is_ok()
            });
        }
        let servers = Servers { network, nodes, sentinels: Vec::new() };
        servers.until_whole();
        servers
    }

    /// Waits until every node of the cluster is well and every primary has its replica.
    pub(crate) fn until_whole(&self) {
        let is_ok = |node: &Node| {
            node.try_ask::<String>("CLUSTER INFO").is_ok_and(|info| info.contains("cluster_state:ok"))
        };
        until("the cluster is whole", || {
            let primaries = self.nodes.iter().filter(|node| is_primary(node));
            self.nodes.iter().all(is_ok)
                && primaries.clone().count() == 3
                && primaries.clone().all(|node| online(node) == 1)
        });
    }

    /// Waits until all nodes of the cluster tell the same layout, and no slot is on its way.
    pub(crate) fn until_agreed(&self) {
        let told = |node: &Node| node.try_ask::<Value>("CLUSTER SLOTS").ok().map(owners);
        let is_at_rest =
            |node: &Node| node.try_ask::<String>("CLUSTER NODES").is_ok_and(|text| !text.contains(" ["));
        until("all nodes agree on the slots", || {
            let first = told(&self.nodes[0]);
            first.is_some() && self.nodes.iter().all(|node| is_at_rest(node) && told(node) == first)
        });
    }

    /// Waits until the primaries have as many replicas in step as at first.
    pub(crate) fn until_ready(&self) {
        if self.sentinels.is_empty() {
            return self.until_whole();
        }
        until("the replicas are in step", || online(&self.nodes[self.primary()]) == 2);
    }

    /// Starts to set up a store. The tests restart a primary only after its failover.
    pub(crate) fn store(&self) -> RedisStoreBuilder {
        let builder = if self.sentinels.is_empty() {
            RedisStore::cluster(self.nodes.iter().map(Node::url))
        } else {
            RedisStore::sentinel(self.sentinels.iter().map(Node::url), SERVICE)
        };
        builder.accept_no_append_only_file()
    }

    /// Returns the index of the primary that serves now: of the service, or of the first slots.
    pub(crate) fn primary(&self) -> usize {
        let ip = if self.sentinels.is_empty() {
            // A node that was cut off is outvoted.
            let told: Vec<_> = self.nodes.iter().filter_map(first_primary).collect();
            let votes = |ip: &String| told.iter().filter(|other| *other == ip).count();
            told.iter().max_by_key(|ip| votes(ip)).expect("a node answers").clone()
        } else {
            let ask = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {SERVICE}");
            let asked = self.sentinels.iter().find_map(|node| node.try_ask::<(String, String)>(&ask).ok());
            asked.expect("a sentinel answers").0
        };
        self.nodes.iter().position(|node| node.ip == ip).unwrap_or_else(|| panic!("{ip}"))
    }
}

/// Returns the primary of the first slots, as this node sees it.
fn first_primary(node: &Node) -> Option<String> {
    let ranges: Vec<(u16, u16, Value)> = node.try_ask::<Value>("CLUSTER SLOTS").ok().map(ranges)?;
    let (.., primary) = ranges.into_iter().find(|(first, ..)| *first == 0)?;
    let Value::Array(fields) = primary else { return None };
    redis::from_redis_value(fields.into_iter().next()?).ok()
}

/// The address of the primary of each slot.
fn owners(reply: Value) -> BTreeMap<u16, String> {
    let mut owners = BTreeMap::new();
    for (first, last, primary) in ranges(reply) {
        let Value::Array(fields) = primary else { continue };
        let ip: String = redis::from_redis_value(fields[0].clone()).unwrap();
        (first..=last).for_each(|slot| drop(owners.insert(slot, ip.clone())));
    }
    owners
}

/// The first slot, the last slot and the primary of each range.
fn ranges(reply: Value) -> Vec<(u16, u16, Value)> {
    let Value::Array(ranges) = reply else { return Vec::new() };
    let number = |value: &Value| redis::from_redis_value(value.clone()).unwrap();
    let range = |range: Value| {
        let Value::Array(fields) = range else { panic!("{range:?}") };
        (number(&fields[0]), number(&fields[1]), fields[2].clone())
    };
    ranges.into_iter().map(range).collect()
}

/// Returns the number of replicas that are in step with a node.
pub(crate) fn online(node: &Node) -> usize {
    node.try_ask::<String>("INFO replication").map_or(0, |info| info.matches("state=online").count())
}

pub(crate) fn is_primary(node: &Node) -> bool {
    node.try_ask::<String>("INFO replication").is_ok_and(|info| info.contains("role:master"))
}

/// True if it answers, as a replica.
pub(crate) fn is_replica(node: &Node) -> bool {
    node.try_ask::<String>("INFO replication").is_ok_and(|info| info.contains("role:slave"))
}

fn count(sentinel: &Node, what: &str) -> usize {
    sentinel.ask::<Vec<Value>>(&format!("SENTINEL {what} {SERVICE}")).len()
}

/// The URL of a sentinel at an address where there is none.
pub(crate) fn dead_sentinel(network: &Network) -> String {
    format!("redis://{}:{SENTINEL_PORT}", network.ip(99))
}
