//! The role and settings that a server reports: [`ServerReport`].

use std::collections::HashMap;

use ::redis::{FromRedisValue, Pipeline, Value, from_redis_value, pipe};

use super::error::{is_forbidden, malformed, store_error};
use crate::error::StoreError;

/// Longest time, in seconds, since a replica in step last reported. It does so each second.
const MOST_SILENCE: u64 = 5;

/// Builds the commands of an inspection, for one round trip. Commands forbidden to this user are
/// answered with an error, which does not prevent using the server. A node of a cluster is also
/// asked for its id.
pub(super) fn commands(is_cluster: bool) -> Pipeline {
    let mut commands = pipe();
    // Reports the role and the mode, and unlike `ROLE` and `INFO` is not among the `@dangerous`
    // commands.
    commands.cmd("HELLO");
    commands.cmd("CONFIG").arg("GET");
    commands.arg("maxmemory").arg("maxmemory-policy").arg("appendonly").arg("appendfsync");
    commands.cmd("INFO").arg("server").arg("memory").arg("persistence").arg("stats");
    commands.arg("replication");
    if is_cluster {
        commands.cmd("CLUSTER").arg("MYID");
    }
    commands
}

/// The answers of a server; `None` where this user may not ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerReport {
    pub(super) role: Option<Role>,
    /// True if the server supports compare-and-set natively: `SET .. IFEQ`.
    pub(super) compares: bool,
    /// `maxmemory` and `maxmemory-policy`.
    pub(super) memory: Option<(u64, String)>,
    pub(super) append_only: Option<bool>,
    pub(super) sync: Option<String>,
    /// Changes with each start of the server.
    pub(super) run_id: Option<String>,
    /// Keys evicted since the server started or its statistics were reset.
    pub(super) evicted: Option<u64>,
    /// The replicas that are in step.
    pub(super) replicas: Option<Replicas>,
    /// The id of a node of a cluster.
    pub(super) node_id: Option<String>,
}

/// The replicas of a primary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Replicas {
    pub(super) online: usize,
    /// The most bytes that one of them is behind.
    pub(super) lag: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    Replica,
    /// A node of a cluster.
    Cluster {
        is_primary: bool,
    },
    Sentinel,
}

impl ServerReport {
    pub(super) fn parse(replies: Vec<Value>) -> Result<ServerReport, StoreError> {
        let mut replies = replies.into_iter();
        let [Some(hello), Some(config), Some(info)] = [(); 3].map(|()| replies.next()) else {
            return Err(malformed());
        };
        let mut report = ServerReport::default();
        // Of no account where this user may not ask, or no cluster is there.
        let node_id = replies.next().and_then(|reply| from_redis_value(reply.extract_error().ok()?).ok());
        report.node_id = node_id.filter(|id: &String| !id.is_empty());
        if let Some(hello) = told::<HashMap<String, Value>>(hello)? {
            report.role = Some(role(&hello));
            report.compares = compares(text(&hello, "server"), text(&hello, "version"));
        }
        let info = told::<String>(info)?.unwrap_or_default();
        let lines = info.lines().filter_map(|line| line.split_once(':'));
        let info: HashMap<_, _> =
            lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        report.run_id = info.get("run_id").cloned();
        report.evicted = number(&info, "evicted_keys");
        report.replicas = replicas(&info);
        match told::<HashMap<String, String>>(config)? {
            Some(config) => {
                report.settings(&config, ["maxmemory-policy", "appendonly"], "yes");
                report.sync = config.get("appendfsync").cloned();
            }
            None => report.settings(&info, ["maxmemory_policy", "aof_enabled"], "1"),
        }
        Ok(report)
    }

    fn settings(&mut self, found: &HashMap<String, String>, [policy, append_only]: [&str; 2], yes: &str) {
        self.memory = number(found, "maxmemory").zip(found.get(policy).cloned());
        self.append_only = found.get(append_only).map(|found| found == yes);
    }
}

/// Returns the server's answer, or `None` if this user may not ask.
fn told<T: FromRedisValue>(reply: Value) -> Result<Option<T>, StoreError> {
    match reply.extract_error() {
        Ok(reply) => from_redis_value(reply).map(Some).map_err(|_| malformed()),
        Err(error) if is_forbidden(&error) => Ok(None),
        Err(error) => Err(store_error(&error)),
    }
}

/// Reads the lines of replicas, such as
/// `slave0:ip=10.0.0.2,port=6379,state=online,offset=28,lag=0`. One that was cut off stays online
/// for a minute, but reports no more.
fn replicas(info: &HashMap<String, String>) -> Option<Replicas> {
    let known: usize = info.get("connected_slaves")?.parse().ok()?;
    let end = number(info, "master_repl_offset").unwrap_or(0);
    let mut replicas = Replicas::default();
    for line in (0..known).filter_map(|number| info.get(&format!("slave{number}"))) {
        let field =
            |name: &str| line.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let silence = field("lag").and_then(|lag| lag.parse::<u64>().ok());
        if field("state") == Some("online") && silence.is_none_or(|silence| silence <= MOST_SILENCE) {
            let offset = field("offset").and_then(|offset| offset.parse().ok()).unwrap_or(0);
            replicas.online += 1;
            replicas.lag = replicas.lag.max(end.saturating_sub(offset));
        }
    }
    Some(replicas)
}

fn number(found: &HashMap<String, String>, name: &str) -> Option<u64> {
    found.get(name)?.parse().ok()
}

fn text<'a>(hello: &'a HashMap<String, Value>, field: &str) -> &'a str {
    match hello.get(field) {
        Some(Value::BulkString(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
        Some(Value::SimpleString(text)) => text,
        _ => "",
    }
}

fn role(hello: &HashMap<String, Value>) -> Role {
    match (text(hello, "mode"), text(hello, "role")) {
        ("cluster", role) => Role::Cluster { is_primary: role == "master" },
        ("sentinel", _) => Role::Sentinel,
        (_, "master") => Role::Primary,
        _ => Role::Replica,
    }
}

/// True if a server of this kind and version knows `SET .. IFEQ`.
fn compares(server: &str, version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match server {
        "valkey" => version >= (8, 1),
        "redis" => version >= (8, 4),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_reports_no_more_is_not_in_step() {
        let told = |lines: &[&str]| {
            let mut info = HashMap::from([("connected_slaves".to_owned(), lines.len().to_string())]);
            info.insert("master_repl_offset".to_owned(), "100".to_owned());
            info.extend(
                lines.iter().zip(0..).map(|(line, number)| (format!("slave{number}"), (*line).to_owned())),
            );
            replicas(&info).unwrap()
        };
        let line = |state, lag| format!("ip=10.0.0.2,port=6379,state={state},offset=90,lag={lag}");
        let [fresh, silent, syncing] = [line("online", 5), line("online", 6), line("wait_bgsave", 0)];
        assert_eq!(told(&[&fresh, &silent, &syncing]), Replicas { online: 1, lag: 10 });
        assert_eq!(told(&["ip=10.0.0.2,port=6379,state=online,offset=100"]), Replicas { online: 1, lag: 0 });
    }
}
