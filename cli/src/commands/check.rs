//! `check`: the store and each of its records.

use clap::Args;
use nevertwice::backends::redis::{Health, NodeHealth, TopologyKind};
use nevertwice::{Durability, StoreError};
use serde::Serialize;

use super::fitness::Fitness;
use crate::args::Global;
use crate::failure::Failure;
use crate::output::{BAD, GOOD, Output, WARN, bytes, styled};
use crate::redact::redact;
use crate::session::{Access, Kind, Session};
use crate::walk::{NAMED, Unreadable, Walk};

/// Checks the store: of SQLite the whole file, and the records against their index; of Redis and
/// PostgreSQL the servers, their settings and their level of durability; of each, that every record
/// can be read. A fault ends in exit code 4: a record or server that cannot be read, a server that
/// evicts, a primary with fewer replicas in step than --replicas asks for. Warnings, such as that a
/// replica or standby is read, do not. Nothing is written: a server may yet refuse writes.
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
    /// The number of records that cannot be read.
    #[serde(skip)]
    unreadable: u64,
}

/// The servers of Redis.
#[derive(Debug, Serialize)]
struct Servers {
    topology: &'static str,
    nodes: Vec<Node>,
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
            unreadable: 0,
        };
        report.inspect(&session, global.replicas).await;
        if !self.settings_only
            && let Err(error) = report.read(&session).await
        {
            // What is known of the servers may say why.
            report.faults.push(redact(&format!("the records could not be read to their end: {error}")));
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
    /// Inspects the servers, which are to have this many replicas.
    async fn inspect(&mut self, session: &Session, replicas: u8) {
        if let Kind::Redis(store) = &session.kind {
            let servers = Servers::of(&store.health().await);
            let faults = servers.nodes.iter().filter_map(|node| Some((&node.address, node.fault.as_ref()?)));
            self.faults.extend(faults.map(|(address, fault)| format!("{address}: {fault}")));
            self.faults.extend(servers.nodes.iter().filter_map(|node| node.too_few(replicas)));
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
        (self.records, self.unreadable) = (Some(records), unreadable.count);
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
        if self.unreadable > 0 {
            output.line("a record that cannot be read is removed by `forget ID`: see the runbook")?;
        }
        if self.faults.is_empty() {
            output.line(&styled(GOOD, "no faults"))?;
        }
        Ok(())
    }
}

impl Node {
    /// Returns the fault of a primary that has fewer replicas in step than asked for. Unknown
    /// replicas are a warning of the store's.
    fn too_few(&self, needed: u8) -> Option<String> {
        let found = self.replicas.filter(|found| *found < usize::from(needed) && self.role == "primary")?;
        Some(format!("{}: {found} replicas are in step, and --replicas asks for {needed}", self.address))
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
