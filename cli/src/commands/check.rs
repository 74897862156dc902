//! `check`: the store and each of its records.

use clap::Args;
use nevertwice::backends::redis::{Health, NodeHealth, TopologyKind};
use nevertwice::{Durability, StoreError};
use serde::Serialize;

use super::fitness::Fitness;
use crate::args::Global;
use crate::failure::Failure;
use crate::output::{BAD, GOOD, Output, WARN, bytes, styled};
use crate::session::{Access, Kind, Session};
use crate::walk::{NAMED, Unreadable, Walk};

/// Checks the store: of SQLite the whole file, and the records against their index; of Redis and
/// PostgreSQL the servers, their settings and their level of durability; of each, that every record
/// can be read. A fault ends in exit code 4: a record that cannot be read, a server that evicts or
/// does not serve. Warnings, such as that a replica or standby is read, do not.
#[derive(Debug, Args)]
pub struct Check {
    /// Does not read the records
    #[arg(long)]
    settings_only: bool,
}

/// The result of a check.
#[derive(Debug, Serialize)]
struct Report {
    store: String,
    store_id: String,
    durability: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    servers: Option<Servers>,
    records: Option<u64>,
    faults: Vec<String>,
    warnings: Vec<String>,
}

/// The servers of Redis.
#[derive(Debug, Serialize)]
struct Servers {
    topology: &'static str,
    nodes: Vec<Node>,
    unserved_slots: usize,
}

/// A server of Redis.
#[derive(Debug, Serialize)]
struct Node {
    address: String,
    role: &'static str,
    /// Its replicas in step, and how far the last of them is behind.
    replicas: Option<usize>,
    replica_lag_bytes: Option<u64>,
    fault: Option<String>,
}

impl Check {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let session = Session::open(global, Access::Read).await?;
        let mut report = Report {
            store: session.store.name().to_owned(),
            store_id: session.engine.store_id().to_string(),
            durability: durability(&session),
            servers: None,
            records: None,
            faults: Vec::new(),
            warnings: Vec::new(),
        };
        report.inspect(&session).await;
        if !self.settings_only {
            report.read(&session).await?;
        }
        let output = Output { json: global.json };
        let written = match output.json {
            true => output.json(&report),
            false => report.show(output),
        };
        match report.faults.len() {
            0 => written,
            count => Err(Failure::Refused(format!("{count} faults were found"))),
        }
    }
}

impl Report {
    /// Inspects the servers.
    async fn inspect(&mut self, session: &Session) {
        if let Kind::Redis(store) = &session.kind {
            let servers = Servers::of(&store.health().await);
            let faults = servers.nodes.iter().filter_map(|node| Some((&node.address, node.fault.as_ref()?)));
            self.faults.extend(faults.map(|(address, fault)| format!("{address}: {fault}")));
            if servers.unserved_slots > 0 {
                self.faults.push(format!("{} slots are served by no node", servers.unserved_slots));
            }
            self.servers = Some(servers);
        }
        let fitness = Fitness::of(session);
        self.faults.extend(fitness.faults);
        self.warnings.extend(fitness.warnings);
    }

    async fn read(&mut self, session: &Session) -> Result<(), Failure> {
        if let Kind::SqliteReader(reader) = &session.kind {
            let reader = reader.clone();
            let checked = tokio::task::spawn_blocking(move || reader.check()).await;
            let checked =
                checked.map_err(|error| Failure::Refused(format!("the check ended early: {error}")))?;
            self.faults.extend(damage(checked)?);
            if !self.faults.is_empty() {
                // A damaged file may have no readable pages.
                return Ok(());
            }
        }
        let mut walk = Walk::all(session, "reading");
        let (mut records, mut unreadable) = (0, Unreadable::default());
        while let Some(step) = walk.next().await? {
            records += (step.found.len() + step.expired.len()) as u64;
            unreadable.add(step.unreadable);
        }
        self.faults.extend(unreadable.names().iter().map(|id| format!("{id}: the record cannot be read")));
        if unreadable.count > NAMED as u64 {
            self.faults
                .push(format!("{} records cannot be read, of which the first are named", unreadable.count));
        }
        self.records = Some(records);
        Ok(())
    }

    fn show(&self, output: Output) -> Result<(), Failure> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let rows = [
            ("store", self.store.clone()),
            ("id", self.store_id.clone()),
            ("an acknowledged write survives", or_dash(&self.durability)),
            ("records read", or_dash(&self.records.map(|count| count.to_string()))),
        ];
        output.table(&[], rows.map(|(name, value)| vec![name.to_owned(), value]).into())?;
        if let Some(servers) = &self.servers {
            servers.show(output)?;
        }
        for warning in &self.warnings {
            output.line(&format!("{}: {warning}", styled(WARN, "warning")))?;
        }
        for fault in &self.faults {
            output.line(&format!("{}: {fault}", styled(BAD, "fault")))?;
        }
        match self.faults.is_empty() {
            true => output.line(&styled(GOOD, "no faults")),
            false => output.line("a record that cannot be read is removed by `forget ID`: see the runbook"),
        }
    }
}

impl Servers {
    fn of(health: &Health) -> Servers {
        let node = |node: &NodeHealth| Node {
            address: node.address.clone(),
            role: if node.is_replica { "replica" } else { "primary" },
            replicas: node.replicas,
            replica_lag_bytes: node.replica_lag_bytes,
            fault: node.fault.as_ref().map(ToString::to_string),
        };
        Servers {
            topology: match health.topology {
                TopologyKind::Server => "one server",
                TopologyKind::Sentinel => "sentinels",
                TopologyKind::Cluster => "a cluster",
                _ => "other",
            },
            nodes: health.nodes.iter().map(node).collect(),
            unserved_slots: health.unserved_slots,
        }
    }

    fn show(&self, output: Output) -> Result<(), Failure> {
        output.line(&format!("servers: {}", self.topology))?;
        let or_dash = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
        let row = |node: &Node| {
            vec![
                node.address.clone(),
                node.role.to_owned(),
                or_dash(node.replicas.map(|count| count.to_string())),
                or_dash(node.replica_lag_bytes.map(bytes)),
            ]
        };
        output.table(
            &["server", "role", "replicas in step", "furthest behind"],
            self.nodes.iter().map(row).collect(),
        )
    }
}

/// Turns an error that says that the file is damaged into a fault.
fn damage(checked: Result<Vec<String>, StoreError>) -> Result<Vec<String>, Failure> {
    match checked {
        Ok(faults) => Ok(faults),
        Err(error) if error.is_transient() => Err(error.into()),
        Err(error) => Ok(vec![error.to_string()]),
    }
}

/// Returns the durability, which a SQLite file does not show: it is the writers' setting.
fn durability(session: &Session) -> Option<String> {
    let text = match session.store.durability() {
        _ if matches!(session.kind, Kind::SqliteReader(_)) => {
            "a power cut, unless the application chose otherwise"
        }
        Durability::Memory => "nothing: a restart of the server loses it",
        Durability::Process => "a killed server, not a power cut",
        Durability::Power => "a power cut",
        Durability::Replicated(replicas) => {
            return Some(format!("the loss of the primary: {replicas} replicas have it"));
        }
    };
    Some(text.to_owned())
}
