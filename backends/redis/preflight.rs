//! What is looked at when a store connects: whether this server can be trusted with records at all, and how far.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ::redis::{Client, Cmd, ConnectionAddr, FromRedisValue, RedisError, Value, cmd, from_redis_value};

use super::line::Line;
use super::link::Link;
use super::refusal::{is_forbidden, meaning, nonsense, unusable};
use super::script::{OneScript, Scripts};
use crate::error::StoreError;
use crate::policy::Durability;

/// What a [`RedisStore`](super::RedisStore) found about its server that an operator should know. It works all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// There is no append-only file: a restart of the server loses records, and what they recorded is done again.
    NoAppendOnlyFile,
    /// `appendfsync everysec`: a power cut loses the last seconds. While the disk is so slow that a sync takes over a
    /// second, the server puts off writing to its file too, and `kill -9` can lose as much.
    SyncedEverySecond,
    /// `maxmemory-policy` evicts, although nothing is evicted while `maxmemory` is 0. Set it to `noeviction`: once
    /// somebody sets a limit, the server drops records, and what they recorded is done again.
    EvictionPolicy,
    /// `CONFIG` and `INFO` are forbidden: whether the server evicts records is not known. It must not.
    EvictionUnverified,
    /// `CONFIG`, or `INFO` too, is forbidden: what a restart loses is not known, and the least was assumed unless
    /// [`assume_durability`](super::RedisStoreBuilder::assume_durability) says more.
    DurabilityUnverified,
    /// `HELLO` is forbidden: whether this is a primary is not known.
    RoleUnverified,
    /// `CLIENT TRACKING` is forbidden: whoever waits for a record looks at it again and again.
    ChangesUnannounced,
    /// The password and every response cross a network in the clear.
    PlainTcp,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Warning::NoAppendOnlyFile => "no append-only file: a restart of the server loses records",
            Warning::SyncedEverySecond => "appendfsync everysec: a power cut loses the last seconds",
            Warning::EvictionPolicy => {
                "maxmemory-policy is not noeviction: with a limit, records would be evicted"
            }
            Warning::EvictionUnverified => {
                "CONFIG and INFO are forbidden: whether records are evicted is not known"
            }
            Warning::DurabilityUnverified => "CONFIG is forbidden: what a restart loses is not known",
            Warning::RoleUnverified => "HELLO is forbidden: whether this is a primary is not known",
            Warning::ChangesUnannounced => {
                "CLIENT TRACKING is forbidden: whoever waits has to look again and again"
            }
            Warning::PlainTcp => {
                "plain TCP to another machine: passwords and responses can be read on the way"
            }
        })
    }
}

/// What the preflight came to.
pub(super) struct Findings {
    pub(super) durability: Durability,
    /// Whether the server can compare and set by itself: `SET .. IFEQ`.
    pub(super) compares: bool,
    pub(super) warnings: Vec<Warning>,
}

/// Looks at the server and leaves the scripts in its cache.
pub(super) async fn inspect(
    client: &Client,
    link: &Link,
    limits: [Duration; 2],
    scripts: &Scripts,
    assumed: Option<Durability>,
) -> Result<Findings, StoreError> {
    let mut warnings = Vec::new();
    if is_exposed(client.get_connection_info().addr()) {
        warnings.push(Warning::PlainTcp);
    }
    let compares = role(link, &mut warnings).await?;
    let settings = Settings::read(link).await?;
    settings.check_eviction(&mut warnings)?;
    let durability = settings.durability(assumed, &mut warnings);
    for script in scripts.all() {
        load(link, script).await?;
    }
    // What else goes wrong with a connection of its own is no reason not to use the store.
    if Line::open(client, limits).await.is_err_and(|error| is_forbidden(&error)) {
        warnings.push(Warning::ChangesUnannounced);
    }
    Ok(Findings { durability, compares, warnings })
}

/// Whether what is sent there can be read by others on the way.
fn is_exposed(address: &ConnectionAddr) -> bool {
    let ConnectionAddr::Tcp(host, _) = address else { return false };
    let loopback = host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.is_loopback());
    !loopback
}

/// `HELLO` tells the role and the mode, and is not among the `@dangerous` commands as `ROLE` and `INFO` are. It tells
/// the version too: gives whether that one knows `SET .. IFEQ`.
async fn role(link: &Link, warnings: &mut Vec<Warning>) -> Result<bool, StoreError> {
    let Some(hello) = ask::<HashMap<String, Value>>(link, &cmd("HELLO")).await? else {
        warnings.push(Warning::RoleUnverified);
        return Ok(false);
    };
    let text = |field: &str| match hello.get(field) {
        Some(Value::BulkString(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
        Some(Value::SimpleString(text)) => text,
        _ => "",
    };
    let is = |field: &str, value: &str| text(field) == value;
    if is("mode", "cluster") {
        return Err(unusable("it is a node of a cluster, which this release does not support"));
    }
    if is("mode", "sentinel") {
        return Err(unusable("it is a sentinel: connect to the primary that it watches"));
    }
    if !is("role", "master") {
        return Err(unusable("it is a replica: connect to the primary"));
    }
    Ok(compares(text("server"), text("version")))
}

/// Whether a server of this kind and version knows `SET .. IFEQ`.
fn compares(server: &str, version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match server {
        "valkey" => version >= (8, 1),
        "redis" => version >= (8, 4),
        _ => false,
    }
}

/// What the server could be brought to tell about itself.
struct Settings {
    /// `maxmemory` and `maxmemory-policy`.
    memory: Option<(u64, String)>,
    append_only: Option<bool>,
    sync: Option<String>,
}

impl Settings {
    async fn read(link: &Link) -> Result<Settings, StoreError> {
        let mut config = cmd("CONFIG");
        config.arg("GET").arg("maxmemory").arg("maxmemory-policy").arg("appendonly").arg("appendfsync");
        if let Some(found) = ask::<HashMap<String, String>>(link, &config).await? {
            return Ok(Settings::of(&found, ["maxmemory-policy", "appendonly", "appendfsync"], "yes"));
        }
        let mut info = cmd("INFO");
        info.arg("memory").arg("persistence");
        let text = ask::<String>(link, &info).await?.unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let found = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Ok(Settings::of(&found, ["maxmemory_policy", "aof_enabled", ""], "1"))
    }

    fn of(found: &HashMap<String, String>, names: [&str; 3], yes: &str) -> Settings {
        let [policy, append_only, sync] = names;
        let limit = found.get("maxmemory").and_then(|limit| limit.parse().ok());
        Settings {
            memory: limit.zip(found.get(policy).cloned()),
            append_only: found.get(append_only).map(|found| found == yes),
            sync: found.get(sync).cloned(),
        }
    }

    fn check_eviction(&self, warnings: &mut Vec<Warning>) -> Result<(), StoreError> {
        match &self.memory {
            None => warnings.push(Warning::EvictionUnverified),
            Some((_, policy)) if policy == "noeviction" => {}
            Some((0, _)) => warnings.push(Warning::EvictionPolicy),
            Some((limit, policy)) => {
                let advice = "it would drop records and let what they recorded be done again: set noeviction";
                return Err(unusable(format!("maxmemory-policy {policy} with maxmemory {limit}: {advice}")));
            }
        }
        Ok(())
    }

    fn durability(&self, assumed: Option<Durability>, warnings: &mut Vec<Warning>) -> Durability {
        match (self.append_only, self.sync.as_deref()) {
            (Some(false), _) => {
                warnings.push(Warning::NoAppendOnlyFile);
                Durability::Memory
            }
            (Some(true), Some("always")) => Durability::Power,
            (Some(true), Some(sync)) => {
                if sync == "everysec" {
                    warnings.push(Warning::SyncedEverySecond);
                }
                Durability::Process
            }
            (append_only, _) => {
                warnings.push(Warning::DurabilityUnverified);
                let seen = if append_only.is_some() { Durability::Process } else { Durability::Memory };
                assumed.unwrap_or(seen)
            }
        }
    }
}

/// The server's answer, or `None` if this user may not ask.
async fn ask<T: FromRedisValue>(link: &Link, command: &Cmd) -> Result<Option<T>, StoreError> {
    match link.call(command).await {
        Ok(reply) => from_redis_value(reply).map(Some).map_err(|_| nonsense()),
        Err(error) if is_forbidden(&error) => Ok(None),
        Err(error) => Err(meaning(&error)),
    }
}

async fn load(link: &Link, script: &OneScript) -> Result<(), StoreError> {
    let is_old = |error: &RedisError| error.detail().is_some_and(|detail| detail.contains("compiling"));
    match link.call(&script.load()).await {
        Ok(_) => {}
        Err(error) if is_old(&error) => {
            return Err(unusable(
                "it does not know `#!lua` scripts: Redis 7.0 or Valkey is the oldest that does",
            ));
        }
        Err(error) => return Err(meaning(&error)),
    }
    // Finds out whether the user may run it.
    link.call(&script.call(0, 0)).await.map(|_| ()).map_err(|error| meaning(&error))
}
