//! Reading of the records on one server: [`Records`].

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::redis::{Client, Value, cmd, from_redis_value, pipe};

use super::address::Redirect;
use super::connection::{Connection, Connections};
use super::error::{NO_CLUSTER, is_forbidden, malformed, store_error, unusable};
use super::shard::Settings;
use super::value::{found, time};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::Snapshot;

/// Records read in one round trip. They can be long.
pub(super) const READ_AT_ONCE: usize = 64;

/// The connections to one server, and the records under a prefix there.
pub(super) struct Records {
    /// Used in turn; at least one.
    lanes: Vec<Connections>,
    turn: AtomicUsize,
    pub(super) settings: Arc<Settings>,
}

/// The result of reading one record.
pub(super) enum Read {
    Found(Snapshot),
    /// Another node serves the key.
    Elsewhere(Redirect),
}

/// The names that one `SCAN` found.
pub(super) struct Names {
    pub(super) now: Stamp,
    /// The position of the next `SCAN`; 0 at the end.
    pub(super) next: u64,
    /// Without duplicates.
    pub(super) ids: Vec<RecordId>,
}

impl Records {
    pub(super) fn new(lanes: Vec<Connections>, settings: &Arc<Settings>) -> Records {
        Records { lanes, turn: AtomicUsize::new(0), settings: Arc::clone(settings) }
    }

    /// Returns the connection whose turn it is.
    pub(super) fn connections(&self) -> &Connections {
        match &*self.lanes {
            [only] => only,
            lanes => &lanes[self.turn.fetch_add(1, Ordering::Relaxed) % lanes.len()],
        }
    }

    /// Returns the client with which they are opened.
    pub(super) fn client(&self) -> &Client {
        self.lanes[0].client()
    }

    /// Returns all of them.
    pub(super) fn lanes(&self) -> &[Connections] {
        &self.lanes
    }

    /// Returns the key name of a record.
    pub(super) fn key(&self, id: &RecordId) -> Vec<u8> {
        self.settings.key(id)
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
            Read::Found(found) => found,
            Read::Elsewhere(_) => absent.clone(),
        };
        let reads = read(connections, &connection, &self.settings, ids, false).await?;
        Ok(reads.into_iter().map(|read| read.map(wake)).collect())
    }

    /// Reads the record under each of the ids, in one round trip per few dozen. With replicas to
    /// wait for, these have all that was found.
    pub(super) async fn read(
        &self,
        ids: &[RecordId],
        is_asking: bool,
    ) -> Result<Vec<Result<Read, StoreError>>, StoreError> {
        let connections = self.connections();
        let connection = connections.get().await?;
        let mut reads = Vec::with_capacity(ids.len());
        for ids in ids.chunks(READ_AT_ONCE) {
            reads.append(&mut read(connections, &connection, &self.settings, ids, is_asking).await?);
        }
        let is_found = |read: &Result<Read, StoreError>| {
            matches!(read, Ok(Read::Found(Snapshot { record: Some(_), .. })))
        };
        if let Some(replication) = &self.settings.replication
            && let Some((id, _)) = ids.iter().zip(&reads).find(|(_, read)| is_found(read))
        {
            replication.confirm_reads(connections, &connection, &self.settings, id, is_asking).await?;
        }
        Ok(reads)
    }

    /// Sends one `SCAN`, which may visit so many names.
    pub(super) async fn names(&self, cursor: u64, count: usize) -> Result<Names, StoreError> {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern(&self.settings.prefix)).arg("COUNT").arg(count);
        let mut commands = pipe();
        commands.cmd("TIME").add_command(scan);
        let replies = self.connections().call(&commands, 2).await?;
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
        Ok(Names { now: time(Some(now))?, next, ids })
    }
}

/// Reads in one round trip. Does not use `MGET`, which reports a key that is not a string as
/// absent.
async fn read(
    connections: &Connections,
    connection: &Arc<Connection>,
    settings: &Settings,
    ids: &[RecordId],
    is_asking: bool,
) -> Result<Vec<Result<Read, StoreError>>, StoreError> {
    // The time is read first, so that it is never later than the records it is compared with: no
    // lease appears expired too early.
    let mut commands = pipe();
    commands.cmd("TIME");
    for id in ids {
        if is_asking {
            commands.cmd("ASKING");
        }
        commands.cmd("GET").arg(settings.key(id));
    }
    let mut replies = connections.send(connection, &commands, commands.len()).await?.into_iter();
    let now = time(replies.next())?;
    let replies = replies.skip(usize::from(is_asking)).step_by(1 + usize::from(is_asking));
    let read = |(id, reply): (&RecordId, Value)| match reply.extract_error() {
        Ok(value) => found(id, now, Ok(value)).map(Read::Found),
        Err(error) => match connection.redirect(&error) {
            Some(redirect) => Ok(Read::Elsewhere(redirect)),
            // No cluster was asked for, so it will not do to wait until it is up.
            None if !settings.is_cluster && error.code() == Some("CLUSTERDOWN") => Err(unusable(NO_CLUSTER)),
            None => found(id, now, Err(error)).map(Read::Found),
        },
    };
    Ok(ids.iter().zip(replies).map(read).collect())
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
