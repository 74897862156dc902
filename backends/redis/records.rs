//! Reading of the records on one server: [`Records`].

use std::collections::HashSet;
use std::sync::Arc;

use ::redis::{Client, Value, cmd, from_redis_value, pipe};

use super::address::Redirect;
use super::connection::{Connection, Connections};
use super::error::{NO_CLUSTER, is_forbidden, malformed, store_error, unusable};
use super::lanes::{Lane, Lanes};
use super::replication::rank_to_touch;
use super::shard::Settings;
use super::value::{found, next_reply, time};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::Snapshot;

/// Records read in one round trip. They can be long.
pub(super) const READ_AT_ONCE: usize = 64;

/// The connections to one server, and the records under a prefix there.
pub(super) struct Records {
    lanes: Lanes<Connections>,
    /// The one for reads that replicas must confirm, so that these neither wait for writes nor hold
    /// them back.
    reading: Option<Lanes<Connections>>,
    pub(super) settings: Arc<Settings>,
}

/// A record to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) id: RecordId,
    /// True if its slot is still on the way to the node.
    pub(super) is_asking: bool,
    /// True if a caller may act on there being no record.
    pub(super) is_absence_news: bool,
}

impl Wanted {
    pub(super) fn new(id: RecordId) -> Wanted {
        Wanted { id, is_asking: false, is_absence_news: true }
    }
}

/// The result of reading one record.
pub(super) enum Read {
    /// The record, and the length of the stored value.
    Found(Snapshot, usize),
    /// Another node serves the key.
    Elsewhere(Redirect),
}

/// The names that one `SCAN` found.
pub(super) struct Names {
    pub(super) now: Stamp,
    /// The position of the next `SCAN`; 0 at the end.
    pub(super) next: u64,
    /// The number of this start of the server, or 0 if it is not known.
    pub(super) server: u64,
    /// Without duplicates.
    pub(super) ids: Vec<RecordId>,
}

impl Records {
    pub(super) fn new(
        lanes: Lanes<Connections>,
        reading: Option<Lanes<Connections>>,
        settings: &Arc<Settings>,
    ) -> Records {
        Records { lanes, reading, settings: Arc::clone(settings) }
    }

    /// Returns the connection whose turn it is, for commands that no `WAIT` follows.
    pub(super) fn connections(&self) -> &Connections {
        self.lanes.next()
    }

    /// Takes a connection for a pipeline.
    pub(super) async fn lane(&self) -> Result<Lane<'_, Connections>, StoreError> {
        self.lanes.take().await
    }

    /// Returns the client with which they are opened.
    pub(super) fn client(&self) -> &Client {
        self.lanes.all()[0].client()
    }

    /// Returns all of them.
    pub(super) fn lanes(&self) -> &[Connections] {
        self.lanes.all()
    }

    /// Returns all connections, also those for reads.
    pub(super) fn all_connections(&self) -> impl Iterator<Item = &Connections> {
        self.lanes.all().iter().chain(self.reading.iter().flat_map(Lanes::all))
    }

    /// Returns the id in a key name, if it is the name of a record.
    pub(super) fn id(&self, key: &[u8]) -> Option<RecordId> {
        let id = key.strip_prefix(self.settings.prefix.as_slice())?;
        Some(RecordId::from_bytes(id.try_into().ok()?))
    }

    /// Reads the record under each of the ids for waiters: one that another node serves counts as
    /// absent, which wakes its waiters.
    pub(super) async fn poll(
        &self,
        ids: &[RecordId],
    ) -> Result<Vec<Result<Snapshot, StoreError>>, StoreError> {
        let connections = self.connections();
        let connection = connections.get().await?;
        let absent = Snapshot { record: None, now: Stamp::ZERO };
        let wake = |read| match read {
            Read::Found(found, _) => found,
            Read::Elsewhere(_) => absent.clone(),
        };
        let wanted: Vec<_> = ids.iter().map(|&id| Wanted::new(id)).collect();
        let reads = read(connections, &connection, &self.settings, &wanted).await?;
        Ok(reads.into_iter().map(|read| read.map(wake)).collect())
    }

    /// Reads the records, in one round trip per few dozen. With replicas to wait for, these have
    /// all that was found, also that there is nothing.
    pub(super) async fn read(&self, wanted: &[Wanted]) -> Result<Vec<Result<Read, StoreError>>, StoreError> {
        let connections = self.reading.as_ref().unwrap_or(&self.lanes).take().await?;
        let connection = connections.get().await?;
        connections.check_reads(&connection).await?;
        let mut reads = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(READ_AT_ONCE) {
            reads.append(&mut read(&connections, &connection, &self.settings, wanted).await?);
        }
        let Some(replication) = &self.settings.replication else { return Ok(reads) };
        let length = |read: &Result<Read, StoreError>| match read {
            Ok(Read::Found(_, length)) => Some(*length),
            Ok(Read::Elsewhere(_)) | Err(_) => None,
        };
        let found = wanted.iter().zip(&reads).filter_map(|(wanted, read)| Some((length(read)?, wanted)));
        // Otherwise each begin that a full server refuses would write a tombstone.
        let found = found.filter(|(length, wanted)| *length > 0 || wanted.is_absence_news);
        if let Some((_, one)) = found.min_by_key(|(length, _)| rank_to_touch(*length)) {
            replication
                .confirm_reads(&connections, &connection, &self.settings, &one.id, one.is_asking)
                .await?;
        }
        Ok(reads)
    }

    /// Sends one `SCAN`, which may visit so many names.
    pub(super) async fn names(&self, cursor: u64, count: usize) -> Result<Names, StoreError> {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern(&self.settings.prefix)).arg("COUNT").arg(count);
        let mut commands = pipe();
        commands.cmd("TIME").add_command(scan);
        let connections = self.connections();
        let connection = connections.get().await?;
        connections.check_reads(&connection).await?;
        let replies = connections.send(&connection, &commands, 2).await?;
        let [now, names] = <[Value; 2]>::try_from(replies).map_err(|_| malformed())?;
        let names = names.extract_error().map_err(|error| {
            if is_forbidden(&error) {
                return unusable("listing the records requires +scan, which the user lacks");
            }
            store_error(&error)
        })?;
        let (next, names): (u64, Vec<Vec<u8>>) = from_redis_value(names).map_err(|_| malformed())?;
        let mut seen = HashSet::new();
        let ids = names.iter().filter_map(|name| self.id(name)).filter(|id| seen.insert(*id)).collect();
        Ok(Names { now: time(Some(now))?, next, server: connection.number(), ids })
    }
}

/// Reads in one round trip. Does not use `MGET`, which reports a key that is not a string as
/// absent.
async fn read(
    connections: &Connections,
    connection: &Arc<Connection>,
    settings: &Settings,
    wanted: &[Wanted],
) -> Result<Vec<Result<Read, StoreError>>, StoreError> {
    // The time is read first, so that it is never later than the records it is compared with: no
    // lease appears expired too early.
    let mut commands = pipe();
    commands.cmd("TIME");
    for Wanted { id, is_asking, .. } in wanted {
        if *is_asking {
            commands.cmd("ASKING");
        }
        commands.cmd("GET").arg(settings.key(id));
    }
    let mut replies = connections.send(connection, &commands, commands.len()).await?.into_iter();
    let now = time(replies.next())?;
    let mut replies = replies.map(Value::extract_error);
    let read = |Wanted { id, is_asking, .. }: &Wanted| match next_reply(&mut replies, *is_asking) {
        Ok(value) => {
            let value = value.unwrap_or(Value::Nil);
            let length = if let Value::BulkString(bytes) = &value { bytes.len() } else { 0 };
            found(id, now, Ok(value)).map(|found| Read::Found(found, length))
        }
        Err(error) => match connection.redirect(&error) {
            Some(redirect) => Ok(Read::Elsewhere(redirect)),
            // No cluster was asked for, so it will not do to wait until it is up.
            None if !settings.is_cluster && error.code() == Some("CLUSTERDOWN") => Err(unusable(NO_CLUSTER)),
            None => found(id, now, Err(error)).map(|found| Read::Found(found, 0)),
        },
    };
    Ok(wanted.iter().map(read).collect())
}

/// Returns the pattern that matches all names with this prefix.
fn pattern(prefix: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for &byte in prefix {
        if b"*?[]\\^-".contains(&byte) {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}
