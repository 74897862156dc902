//! The fitness of a server for grants: [`ServerWatch`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Warning;
use super::address::Address;
use super::error::{NO_CLUSTER, unavailable, unusable};
use super::inspection::{Replicas, Role, ServerReport};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::record::Stamp;

/// Difference between two readings of a clock, beyond the time between them, that is worth a
/// warning.
const JUMP: Duration = Duration::from_secs(1);

/// Judges each inspection of a server by the level of the first one.
#[derive(Debug)]
pub(super) struct ServerWatch {
    assumed: Option<Durability>,
    every: Duration,
    is_cluster: bool,
    /// The number of replicas that each primary needs.
    replicas: Option<u8>,
    findings: Mutex<Findings>,
}

#[derive(Debug)]
struct Findings {
    /// The weakest level that the first inspections found. On a weaker one no grants are given.
    promised: Option<Durability>,
    /// True once the first inspections are over.
    is_settled: bool,
    nodes: BTreeMap<Address, Node>,
    /// The last reading of a server's clock, and when it was taken on the monotonic clock.
    clock: Option<(Stamp, Duration)>,
    has_clock_jumped: bool,
    /// For each start of a server, the number of keys it had evicted by its last inspection.
    evicted: HashMap<String, u64>,
    /// True if keys were evicted and no operator has accepted it.
    has_evicted: bool,
}

/// The result of the last inspection of a node.
#[derive(Debug, Clone)]
struct Node {
    durability: Durability,
    warnings: Vec<Warning>,
    replicas: Option<Replicas>,
}

/// A reason to give a server no more grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
    Replica,
    Cluster,
    Sentinel,
    TooFewReplicas { online: usize, needed: u8 },
    Evicts { limit: u64, policy: String },
    HasEvicted,
    LessDurable { promised: Durability, durability: Durability, is_verified: bool },
}

impl ServerWatch {
    /// Creates a watch under which grants rely on inspections no older than `every`.
    pub(super) fn new(
        assumed: Option<Durability>,
        every: Duration,
        is_cluster: bool,
        replicas: Option<u8>,
    ) -> ServerWatch {
        let findings = Findings {
            promised: None,
            is_settled: false,
            nodes: BTreeMap::new(),
            clock: None,
            has_clock_jumped: false,
            evicted: HashMap::new(),
            has_evicted: false,
        };
        ServerWatch { assumed, every, is_cluster, replicas, findings: Mutex::new(findings) }
    }

    /// Ends the first inspections: their weakest level is the promise from now on.
    pub(super) fn settle(&self) {
        self.lock().is_settled = true;
    }

    /// Forgets the nodes that are not primaries any more.
    pub(super) fn retain(&self, is_primary: impl Fn(&Address) -> bool) {
        self.lock().nodes.retain(|address, _| is_primary(address));
    }

    /// Compares a reading of a server's clock with the one before, possibly of another server.
    pub(super) fn clock(&self, server: Stamp, at: Duration) {
        let mut findings = self.lock();
        if let Some((before, then)) = findings.clock.replace((server, at)) {
            let expected = before.after(at.saturating_sub(then));
            findings.has_clock_jumped |= expected.since(server).max(server.since(expected)) > JUMP;
        }
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }

    /// Records an inspection. Returns the fault that it shows, except for evictions, which
    /// [`doubt`](ServerWatch::doubt) reports.
    pub(super) fn judge(&self, node: &Address, inspection: &ServerReport) -> Option<Doubt> {
        let mut warnings = Vec::new();
        let role = self.role(inspection, &mut warnings);
        let replicas = if role.is_none() { self.replicas(inspection, &mut warnings) } else { None };
        let eviction = eviction(inspection, &mut warnings);
        let durability = durability(inspection, self.assumed, &mut warnings);
        let mut findings = self.lock();
        // A replica's evictions count when it is promoted: only then are those records lost.
        if role.is_none() {
            findings.count_evicted(inspection, &mut warnings);
        }
        let promised = match findings.promised {
            Some(promised) if findings.is_settled || durability.satisfies(promised) => promised,
            Some(_) | None => *findings.promised.insert(durability),
        };
        let is_verified = !warnings.contains(&Warning::DurabilityUnverified);
        findings.nodes.insert(node.clone(), Node { durability, warnings, replicas: inspection.replicas });
        let less = || Doubt::LessDurable { promised, durability, is_verified };
        role.or(eviction).or_else(|| (!durability.satisfies(promised)).then(less)).or(replicas)
    }

    fn role(&self, inspection: &ServerReport, warnings: &mut Vec<Warning>) -> Option<Doubt> {
        match inspection.role {
            Some(Role::Primary) => None,
            Some(Role::Cluster { is_primary: true }) if self.is_cluster => None,
            Some(Role::Cluster { is_primary: false }) if self.is_cluster => Some(Doubt::Replica),
            Some(Role::Replica) => Some(Doubt::Replica),
            Some(Role::Cluster { .. }) => Some(Doubt::Cluster),
            Some(Role::Sentinel) => Some(Doubt::Sentinel),
            None => {
                warnings.push(Warning::RoleUnverified);
                None
            }
        }
    }

    fn replicas(&self, inspection: &ServerReport, warnings: &mut Vec<Warning>) -> Option<Doubt> {
        let needed = self.replicas?;
        let Some(Replicas { online, .. }) = inspection.replicas else {
            warnings.push(Warning::ReplicasUnverified);
            return None;
        };
        (online < usize::from(needed)).then_some(Doubt::TooFewReplicas { online, needed })
    }

    /// Returns the fault that no later inspection clears: keys were evicted.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        self.lock().has_evicted.then_some(Doubt::HasEvicted)
    }

    pub(super) fn accept_evictions(&self) {
        self.lock().has_evicted = false;
    }

    /// Returns the level as of the last inspections: that of the weakest node.
    pub(super) fn durability(&self) -> Durability {
        if let Some(replicas) = self.replicas {
            return Durability::Replicated(replicas);
        }
        let findings = self.lock();
        let levels = findings.nodes.values().map(|node| node.durability);
        let weaker = |a: Durability, b: Durability| if a.satisfies(b) { b } else { a };
        levels.reduce(weaker).or(self.assumed).unwrap_or(Durability::Memory)
    }

    /// Returns the warnings as of the last inspections of all nodes.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let findings = self.lock();
        let mut warnings = Vec::new();
        let jumped = findings.has_clock_jumped.then_some(Warning::ClockJumped);
        let found = findings.nodes.values().flat_map(|node| node.warnings.iter().copied()).chain(jumped);
        for warning in found {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        warnings
    }

    /// Returns the replicas of a node as of its last inspection.
    pub(super) fn replicas_of(&self, node: &Address) -> Option<Replicas> {
        self.lock().nodes.get(node)?.replicas
    }

    fn lock(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Findings {
    /// Counts evicted keys. Evictions before the first inspection only cause a warning: it is
    /// unknown when they happened, and to which keys.
    fn count_evicted(&mut self, inspection: &ServerReport, warnings: &mut Vec<Warning>) {
        let (Some(run_id), Some(count)) = (&inspection.run_id, inspection.evicted) else {
            // Without `INFO` alone, the policy is still known from `CONFIG`. Without both, the
            // missing policy has its own warning.
            if inspection.memory.is_some() {
                warnings.push(Warning::EvictionsUnseen);
            }
            return;
        };
        if count > 0 {
            warnings.push(Warning::KeysEvicted);
        }
        let before = match self.evicted.insert(run_id.clone(), count) {
            Some(before) if before <= count => before,
            None if !self.is_settled => count,
            // The server, or its statistics, started again since then.
            Some(_) | None => 0,
        };
        self.has_evicted |= count > before;
    }
}

impl Doubt {
    /// Returns the error for a caller that wants to begin.
    pub(super) fn error(&self) -> StoreError {
        match self {
            // There is a primary, or soon will be: the next connection may lead there.
            Doubt::Replica | Doubt::TooFewReplicas { .. } => unavailable(self.detail()),
            Doubt::Cluster
            | Doubt::Sentinel
            | Doubt::Evicts { .. }
            | Doubt::HasEvicted
            | Doubt::LessDurable { .. } => unusable(self.detail()),
        }
    }

    /// Describes the fault and its remedy.
    pub(super) fn detail(&self) -> String {
        let records = "it would drop records, and their operations would be executed again";
        match self {
            Doubt::Replica => "it is a replica: connect to the primary".to_owned(),
            Doubt::Cluster => NO_CLUSTER.to_owned(),
            Doubt::Sentinel => {
                "it is a sentinel: use RedisStore::sentinel, with the name of the service".to_owned()
            }
            Doubt::TooFewReplicas { online, needed } => format!(
                "{online} replicas are in step, and {needed} must confirm every write: start more, or ask for fewer"
            ),
            Doubt::Evicts { limit, policy } => {
                format!("maxmemory-policy {policy} with maxmemory {limit}: {records}: set noeviction")
            }
            Doubt::HasEvicted => {
                "it has evicted keys, and what records among them recorded would be done again: set \
                 maxmemory-policy noeviction, find out what is lost, then call accept_evictions or start anew"
                    .to_owned()
            }
            Doubt::LessDurable { promised, is_verified: false, .. } => format!(
                "its writes survived as {promised:?} says, and CONFIG or INFO, which would tell, are forbidden now: \
                 allow +config|get, or start anew with assume_durability"
            ),
            Doubt::LessDurable { promised, durability, is_verified: true } => format!(
                "its writes survived as {promised:?} says, and now only as {durability:?} says: set appendonly and \
                 appendfsync as they were, or start anew to accept it"
            ),
        }
    }
}

fn eviction(inspection: &ServerReport, warnings: &mut Vec<Warning>) -> Option<Doubt> {
    match &inspection.memory {
        None => warnings.push(Warning::EvictionUnverified),
        Some((_, policy)) if policy == "noeviction" => {}
        Some((0, _)) => warnings.push(Warning::EvictionPolicy),
        Some((limit, policy)) => return Some(Doubt::Evicts { limit: *limit, policy: policy.clone() }),
    }
    None
}

fn durability(
    inspection: &ServerReport,
    assumed: Option<Durability>,
    warnings: &mut Vec<Warning>,
) -> Durability {
    // A service that keeps a log of its own does so whatever its settings say.
    if let Some(assumed @ Durability::Replicated(_)) = assumed {
        return assumed;
    }
    match (inspection.append_only, inspection.sync.as_deref()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn inspection(run_id: &str, evicted: u64) -> ServerReport {
        ServerReport {
            role: Some(Role::Primary),
            memory: Some((0, "noeviction".to_owned())),
            append_only: Some(true),
            sync: Some("always".to_owned()),
            run_id: Some(run_id.to_owned()),
            evicted: Some(evicted),
            ..ServerReport::default()
        }
    }

    fn watch(first: &ServerReport) -> ServerWatch {
        let watch = ServerWatch::new(None, Duration::ZERO, false, None);
        assert_eq!((judge(&watch, first), watch.doubt()), (None, None));
        watch.settle();
        watch
    }

    fn judge(watch: &ServerWatch, inspection: &ServerReport) -> Option<Doubt> {
        watch.judge(&Address::new("server", 6379), inspection)
    }

    /// True if a watch that saw the first inspections notices evictions in the last one.
    fn is_noticed(seen: &[(&str, u64)], last: (&str, u64)) -> bool {
        let mut seen = seen.iter().map(|&(run_id, evicted)| inspection(run_id, evicted));
        let watch = watch(&seen.next().unwrap());
        for inspection in seen {
            judge(&watch, &inspection);
        }
        watch.accept_evictions();
        judge(&watch, &inspection(last.0, last.1));
        watch.doubt().is_some()
    }

    #[test]
    fn s2_keys_that_were_evicted_since_the_last_inspection_are_noticed() {
        assert!(is_noticed(&[("a", 0)], ("a", 1)) && is_noticed(&[("a", 5)], ("a", 6)));
        assert!(!is_noticed(&[("a", 0)], ("a", 0)) && !is_noticed(&[("a", 5)], ("a", 5)));
        // Another server, or the same one after a restart.
        assert!(is_noticed(&[("a", 5)], ("b", 1)) && !is_noticed(&[("a", 5)], ("b", 0)));
        assert!(!is_noticed(&[("a", 5), ("b", 0)], ("a", 5)), "back on the first");
        // Its statistics were reset in the meantime.
        assert!(is_noticed(&[("a", 5)], ("a", 3)) && !is_noticed(&[("a", 5)], ("a", 0)));
    }

    #[test]
    fn s2_what_a_replica_evicts_is_noticed_when_it_is_promoted() {
        let watch = watch(&inspection("a", 0));
        let replica = ServerReport { role: Some(Role::Replica), ..inspection("b", 2) };
        assert_eq!((judge(&watch, &replica), watch.doubt()), (Some(Doubt::Replica), None));
        assert_eq!((judge(&watch, &inspection("b", 2)), watch.doubt()), (None, Some(Doubt::HasEvicted)));
    }

    #[test]
    fn s9_the_promise_is_that_of_the_first_inspection() {
        let weak = |sync: &str| ServerReport { sync: Some(sync.to_owned()), ..inspection("a", 0) };
        let strict = watch(&inspection("a", 0));
        assert!(matches!(judge(&strict, &weak("everysec")), Some(Doubt::LessDurable { .. })));
        assert_eq!(strict.durability(), Durability::Process);
        let lax = watch(&weak("everysec"));
        assert_eq!(judge(&lax, &weak("always")), None);
        assert_eq!(lax.durability(), Durability::Power);
        assert_eq!(judge(&lax, &weak("no")), None, "as at first");
    }
}
