//! Warnings for the operator of a server: [`Warning`].

use std::fmt;

/// A fact about a server that its operator should know. The [`RedisStore`](super::RedisStore) works
/// nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// There is no append-only file: a restart of the server loses records, and their operations
    /// are executed again.
    NoAppendOnlyFile,
    /// `appendfsync everysec`: a power cut loses the last seconds. While the disk is so slow that a
    /// sync takes over a second, the server also delays writing to its file, and `kill -9` can lose
    /// as much.
    SyncedEverySecond,
    /// `maxmemory-policy` evicts, although nothing is evicted while `maxmemory` is 0. Set it to
    /// `noeviction`: once a limit is set, the server drops records, and their operations are
    /// executed again.
    EvictionPolicy,
    /// `CONFIG` and `INFO` are forbidden: it is unknown whether the server evicts records. It must
    /// not.
    EvictionUnverified,
    /// `INFO` is forbidden: keys that the server evicts between two inspections would go unnoticed.
    EvictionsUnseen,
    /// The server has evicted keys since it was started (`evicted_keys` of `INFO`). If records were
    /// among them, their operations are executed again.
    KeysEvicted,
    /// `CONFIG`, or `INFO` too, is forbidden: the loss at a restart is unknown. The weakest level
    /// is assumed unless [`assume_durability`](super::RedisStoreBuilder::assume_durability) says
    /// more.
    DurabilityUnverified,
    /// `HELLO` is forbidden: it is unknown whether this is a primary.
    RoleUnverified,
    /// `CLIENT TRACKING` is forbidden: waiters poll their records.
    ChangesUnannounced,
    /// `INFO` is forbidden: it is unknown how many replicas are in step. Each write is still
    /// acknowledged only once enough of them confirmed it.
    ReplicasUnverified,
    /// A server's clock differed by over a second from the reading before, of that server or of
    /// another one: it was set, or the clocks of the servers differ. Leases may end early or late.
    ClockJumped,
    /// The server evicts: `maxmemory` and a `maxmemory-policy` that is not `noeviction` are set. It
    /// drops records, and their operations are executed again. Only a store that is opened for
    /// reading warns of it: others refuse the server.
    Evicts,
    /// The server is a replica: what is read may be late. Only a store that is opened for reading
    /// warns of it: others refuse the server.
    Replica,
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
            Warning::EvictionsUnseen => "INFO is forbidden: keys that the server evicts are not noticed",
            Warning::KeysEvicted => "keys were evicted since the server started: records may be among them",
            Warning::DurabilityUnverified => "CONFIG is forbidden: what a restart loses is not known",
            Warning::RoleUnverified => "HELLO is forbidden: whether this is a primary is not known",
            Warning::ChangesUnannounced => "CLIENT TRACKING is forbidden: waiters poll their records",
            Warning::ReplicasUnverified => "INFO is forbidden: how many replicas are in step is not known",
            Warning::ClockJumped => {
                "a server's clock jumped by over a second: it was set, or the servers' clocks differ"
            }
            Warning::Evicts => {
                "it evicts: records are dropped, and their operations executed again: set maxmemory-policy noeviction"
            }
            Warning::Replica => "it is a replica: what is read may be late",
            Warning::PlainTcp => {
                "plain TCP to another machine: passwords and responses can be read on the way"
            }
        })
    }
}
