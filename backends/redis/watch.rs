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
/// Longest time between two readings that are compared: clocks drift.
const COMPARED: Duration = Duration::from_secs(600);

/// Judges each inspection of a server by the level of the first one.
#[derive(Debug)]
pub(super) struct ServerWatch {
    demands: Demands,
    findings: Mutex<Findings>,
}

/// The settings of a store that its servers are judged by.
#[derive(Debug, Clone, Default)]
pub(super) struct Demands {
    pub(super) assumed: Option<Durability>,
    /// Grants rely on inspections no older than this.
    pub(super) every: Duration,
    pub(super) is_cluster: bool,
    /// The number of replicas that each primary needs.
    pub(super) replicas: Option<u8>,
    /// True if primaries may have no append-only file, although replicas are waited for.
    pub(super) accepts_no_file: bool,
    /// True if nothing is granted: only servers without records are refused.
    pub(super) is_read_only: bool,
}

#[derive(Debug)]
struct Findings {
    /// The weakest level that the first inspections found. On a weaker one no grants are given.
    promised: Option<Durability>,
    /// True once the first inspections are over.
    is_settled: bool,
    nodes: BTreeMap<Address, Node>,
    /// The last reading of each server's clock, and when it was taken on the monotonic clock.
    clocks: BTreeMap<Address, (Stamp, Duration)>,
    /// The last reading of any.
    last_clock: Option<(Stamp, Duration)>,
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
    is_replica: bool,
}

/// A reason to give a server no more grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
    Replica,
    Cluster,
    Sentinel,
    TooFewReplicas { online: usize, needed: u8 },
    NoAppendOnlyFile,
    Evicts { limit: u64, policy: String },
    HasEvicted,
    LessDurable { promised: Durability, durability: Durability, is_verified: bool },
}

impl ServerWatch {
    /// Creates a watch that has seen no server.
    pub(super) fn new(demands: Demands) -> ServerWatch {
        let findings = Findings {
            promised: None,
            is_settled: false,
            nodes: BTreeMap::new(),
            clocks: BTreeMap::new(),
            last_clock: None,
            has_clock_jumped: false,
            evicted: HashMap::new(),
            has_evicted: false,
        };
        ServerWatch { demands, findings: Mutex::new(findings) }
    }

    /// Ends the first inspections: their weakest level is the promise from now on.
    pub(super) fn settle(&self) {
        self.lock().is_settled = true;
    }

    /// Forgets the nodes that are not primaries any more.
    pub(super) fn retain(&self, is_primary: impl Fn(&Address) -> bool) {
        let mut findings = self.lock();
        findings.nodes.retain(|address, _| is_primary(address));
        findings.clocks.retain(|address, _| is_primary(address));
    }

    /// Compares a precise reading of a server's clock with the one before. The first of a server is
    /// compared with that of another one.
    pub(super) fn clock(&self, node: &Address, server: Stamp, at: Duration) {
        let mut findings = self.lock();
        let own = findings.clocks.insert(node.clone(), (server, at));
        let last = findings.last_clock.replace((server, at));
        if let Some((before, then)) = own.or(last).filter(|(_, then)| at.saturating_sub(*then) < COMPARED) {
            let expected = before.after(at.saturating_sub(then));
            findings.has_clock_jumped |= expected.since(server).max(server.since(expected)) > JUMP;
        }
    }

    pub(super) fn every(&self) -> Duration {
        self.demands.every
    }

    /// Records an inspection. Returns the fault that it shows, except for evictions, which
    /// [`doubt`](ServerWatch::doubt) reports.
    pub(super) fn judge(&self, node: &Address, inspection: &ServerReport) -> Option<Doubt> {
        let mut warnings = Vec::new();
        let role = self.role(inspection, &mut warnings);
        let replicas = if role.is_none() { self.replicas(inspection, &mut warnings) } else { None };
        let no_file = self.file(inspection);
        let eviction = eviction(inspection, &mut warnings);
        let durability = durability(inspection, self.demands.assumed, &mut warnings);
        if self.demands.is_read_only {
            // Its faults are not refused, since its records can be read.
            let found = [&role, &eviction].into_iter().flatten();
            warnings.extend(found.filter_map(Doubt::warning));
        }
        let is_replica = role == Some(Doubt::Replica);
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
        findings
            .nodes
            .insert(node.clone(), Node { durability, warnings, replicas: inspection.replicas, is_replica });
        let less = Doubt::LessDurable { promised, durability, is_verified };
        let less = (!durability.satisfies(promised)).then_some(less);
        let found = role.or(eviction).or(no_file).or(less).or(replicas);
        found.filter(|doubt| !self.demands.is_read_only || !doubt.is_readable())
    }

    /// Replicas copy a primary that restarts empty before they notice that it was gone.
    fn file(&self, inspection: &ServerReport) -> Option<Doubt> {
        let is_logged = matches!(self.demands.assumed, Some(Durability::Replicated(_)));
        let needs_file = self.demands.replicas.is_some() && !self.demands.accepts_no_file && !is_logged;
        (needs_file && inspection.append_only == Some(false)).then_some(Doubt::NoAppendOnlyFile)
    }

    fn role(&self, inspection: &ServerReport, warnings: &mut Vec<Warning>) -> Option<Doubt> {
        match inspection.role {
            Some(Role::Primary) => None,
            Some(Role::Cluster { is_primary: true }) if self.demands.is_cluster => None,
            Some(Role::Cluster { is_primary: false }) if self.demands.is_cluster => Some(Doubt::Replica),
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
        let needed = self.demands.replicas?;
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
        self.demands.replicas.map_or_else(|| self.of_disks(), Durability::Replicated)
    }

    /// True if this level is kept: by the replicas, or by the disk of the weakest node.
    pub(super) fn satisfies(&self, required: Durability) -> bool {
        match (self.demands.replicas, required) {
            (Some(_), Durability::Replicated(_)) => self.durability().satisfies(required),
            _ => self.of_disks().satisfies(required),
        }
    }

    fn of_disks(&self) -> Durability {
        let findings = self.lock();
        let levels = findings.nodes.values().map(|node| node.durability);
        let weaker = |a: Durability, b: Durability| if a.satisfies(b) { b } else { a };
        levels.reduce(weaker).or(self.demands.assumed).unwrap_or(Durability::Memory)
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

    /// Returns true if a node was a replica at its last inspection.
    pub(super) fn is_replica(&self, node: &Address) -> bool {
        self.lock().nodes.get(node).is_some_and(|node| node.is_replica)
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
    /// Returns true if the server's records can still be read.
    fn is_readable(&self) -> bool {
        !matches!(self, Doubt::Cluster | Doubt::Sentinel)
    }

    /// Returns the warning for an operator who only reads.
    fn warning(&self) -> Option<Warning> {
        match self {
            Doubt::Replica => Some(Warning::Replica),
            Doubt::Evicts { .. } => Some(Warning::Evicts),
            Doubt::Cluster
            | Doubt::Sentinel
            | Doubt::TooFewReplicas { .. }
            | Doubt::NoAppendOnlyFile
            | Doubt::HasEvicted
            | Doubt::LessDurable { .. } => None,
        }
    }

    /// Returns the error for a caller that wants to begin.
    pub(super) fn error(&self) -> StoreError {
        match self {
            // There is a primary, or soon will be: the next connection may lead there.
            Doubt::Replica | Doubt::TooFewReplicas { .. } => unavailable(self.detail()),
            Doubt::Cluster
            | Doubt::Sentinel
            | Doubt::NoAppendOnlyFile
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
            Doubt::NoAppendOnlyFile => {
                "it has no append-only file: if it restarts before a replica is promoted, the replicas copy the empty \
                 server, and all that was acknowledged is lost: set appendonly yes, or accept_no_append_only_file where \
                 nothing restarts it"
                    .to_owned()
            }
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
        let watch = ServerWatch::new(Demands::default());
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

    #[test]
    fn s9_replicas_of_a_server_without_a_file_are_no_durability() {
        let of = |append_only| {
            let replicas = Some(Replicas { online: 1, lag: 0 });
            ServerReport { append_only, replicas, ..inspection("a", 0) }
        };
        let watch = |accepts_no_file| {
            ServerWatch::new(Demands { replicas: Some(1), accepts_no_file, ..Demands::default() })
        };
        let strict = watch(false);
        assert_eq!(judge(&strict, &of(Some(false))), Some(Doubt::NoAppendOnlyFile));
        assert!(!strict.satisfies(Durability::Process) && !strict.satisfies(Durability::Power));
        // Where it is accepted, replicas are what they are, and the disk keeps nothing.
        let lax = watch(true);
        assert_eq!(judge(&lax, &of(Some(false))), None);
        assert_eq!(lax.durability(), Durability::Replicated(1));
        assert!(lax.satisfies(Durability::Replicated(1)) && !lax.satisfies(Durability::Replicated(2)));
        assert!(!lax.satisfies(Durability::Process));
        // A disk that is synced is still one, with replicas.
        let synced = watch(false);
        assert_eq!(judge(&synced, &of(Some(true))), None);
        assert!(synced.satisfies(Durability::Power) && synced.satisfies(Durability::Replicated(1)));
        // A server that may not be asked says nothing against it.
        assert_eq!(judge(&watch(false), &of(None)), None);
        let assumed = Some(Durability::Replicated(2));
        let logged = ServerWatch::new(Demands { assumed, replicas: Some(1), ..Demands::default() });
        assert_eq!(judge(&logged, &of(Some(false))), None);
    }

    #[test]
    fn a_clock_is_compared_with_itself_and_a_new_one_with_the_last() {
        let jumped = |readings: &[(&str, u64, u64)]| {
            let watch = watch(&inspection("a", 0));
            for (host, server, at) in readings {
                watch.clock(&Address::new(host, 1), Stamp(server * 1_000_000), Duration::from_secs(*at));
            }
            watch.warnings().contains(&Warning::ClockJumped)
        };
        assert!(!jumped(&[("a", 100, 0), ("a", 110, 10)]) && jumped(&[("a", 100, 0), ("a", 115, 10)]));
        // A promoted server, and one whose reading is so old that its clock may have drifted.
        assert!(jumped(&[("a", 100, 0), ("b", 70, 1)]) && !jumped(&[("a", 100, 0), ("a", 710, 600)]));
        assert!(!jumped(&[("a", 100, 0), ("b", 101, 1), ("a", 102, 2), ("b", 103, 3)]));
    }
}
