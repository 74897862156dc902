//! A store that only reads its file: [`SqliteReader`].
//!
//! A connection creates the log and its index where there are none, even if it only reads. So the
//! files decide how it is opened:
//!
//! * There are pages in the log: with locks, and without writing to the index (`readonly_shm`).
//! * There are none: as a file that does not change (`immutable`). If it does change, or the log,
//!   the read is repeated on another connection.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags};

use super::anchor::{self, Start};
use super::connection::Connector;
use super::error::{Error, Result};
use super::file::{FileId, beside};
use super::rows::{Table, blob, decode, is_due_early};
use super::{BACKEND, NAME, schema};
use crate::clock::{Clock, SystemClock, Timeline};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::store::{Cursor, Page, Purge, Snapshot, Store, Swap, SwapRequest};
use crate::store_id::StoreId;

/// The number of times that a read is repeated because the files changed meanwhile.
const TRIES: usize = 20;
/// The time within which a file system may not tell two changes apart.
const TICK: Duration = Duration::from_millis(20);
/// The length of a log without a single page, in bytes.
const LOG_HEADER: u64 = 32;
const READ_ONLY: &str = "it was opened for reading only";

/// A store in a SQLite file, for reading only: opened by
/// [`SqliteStoreBuilder::open_read_only`](super::SqliteStoreBuilder::open_read_only).
///
/// It is for operators' tools. It changes nothing, in the file or beside it, and needs no right to
/// write. The file may be in use meanwhile. Every write fails with [`StoreError::Unusable`].
#[derive(Clone)]
pub struct SqliteReader(Arc<Inner>);

struct Inner {
    connector: Connector,
    table: Table,
    timeline: Timeline,
    identity: StoreId,
    open: Mutex<Option<(Files, Connection)>>,
}

/// The files as they were when a connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    /// The database and the index of its log, which has pages.
    Logged(FileId, FileId),
    /// The database, without a log that has pages: its id, length and time of change.
    Alone(FileId, u64, Option<SystemTime>),
}

impl SqliteReader {
    pub(super) fn open(
        connector: Connector,
        table: Table,
        clock: Arc<dyn Clock>,
        start: Start,
    ) -> Result<SqliteReader> {
        let found = steady(&connector, &mut None, |db| {
            if !schema::is_there(db, &table.name)? {
                return Err(Error::unusable(format!(
                    "{} has no table {}: there is no store in it",
                    connector.path().display(),
                    table.name
                )));
            }
            Ok((anchor::timeline(db, &table, Arc::clone(&clock), start)?, table.identity(db)?))
        });
        let (timeline, identity) = found?;
        Ok(SqliteReader(Arc::new(Inner { connector, table, timeline, identity, open: Mutex::default() })))
    }

    /// Checks the whole file and returns the faults found: SQLite's `integrity_check`, and for each
    /// row of the store that its record can be read, that its index entry says the same as the
    /// record about evidence, and that it is not due before the record's deadline. No fault names a
    /// key. Reads the file once or twice, so it takes long on a large one.
    ///
    /// # Errors
    /// As for [`load`](Store::load).
    pub fn check(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.read(|db| {
            let mut faults: Vec<String> = db
                .prepare("PRAGMA main.integrity_check")?
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            faults.retain(|fault| fault != "ok");
            faults.extend(self.rows_at_fault(db)?);
            Ok(faults)
        })?)
    }

    fn rows_at_fault(&self, db: &Connection) -> Result<Vec<String>> {
        let Inner { table, .. } = &*self.0;
        let mut faults = Vec::new();
        let sql = format!("SELECT id, stamp, due, record FROM main.\"{}\" ORDER BY seq", table.name);
        let mut statement = db.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, stamp, due, bytes) = (blob(row, 0)?, row.get(1)?, row.get::<_, i64>(2)?, blob(row, 3)?);
            let Ok(id) = <[u8; 32]>::try_from(id.as_ref()).map(RecordId::from_bytes) else {
                faults.push("a row has an id that is not one of 32 bytes".to_owned());
                continue;
            };
            match decode(&id, stamp, &bytes) {
                Err(error) => faults.push(format!("{id}: {error}")),
                Ok(record) if record.is_evidence() != (due < 0) => {
                    faults.push(format!("{id}: its column `due` and its record disagree about evidence"));
                }
                Ok(record) if is_due_early(due, &record) => {
                    faults.push(format!("{id}: its column `due` is before the record's deadline"));
                }
                Ok(_) => {}
            }
        }
        Ok(faults)
    }

    fn read<T>(&self, read: impl Fn(&Connection) -> Result<T>) -> Result<T> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        steady(&self.0.connector, &mut open, read)
    }
}

/// Calls `read` with a connection to files that did not change meanwhile.
fn steady<T>(
    connector: &Connector,
    open: &mut Option<(Files, Connection)>,
    read: impl Fn(&Connection) -> Result<T>,
) -> Result<T> {
    let mut last = None;
    for _ in 0..TRIES {
        let files = look(connector.path())?;
        if files.is_young() {
            // A change from now on might not show in the time of the last one.
            std::thread::sleep(TICK);
            continue;
        }
        let held = open.take().filter(|(seen, _)| *seen == files).map(|(_, db)| db);
        let answer = match held.map_or_else(|| connect(connector, files), Ok) {
            Ok(db) => {
                let answer = read(&db);
                // A connection to a file that does not change keeps its pages for ever.
                *open = matches!(files, Files::Logged(..)).then_some((files, db));
                answer
            }
            Err(error) => Err(error),
        };
        if look(connector.path())? == files {
            return answer;
        }
        *open = None;
        last = answer.err();
    }
    Err(last.unwrap_or_else(|| {
        Error::unavailable(
            "other processes open and close it all the time: try again, or while one has it open",
        )
    }))
}

impl Files {
    /// Returns true if the file changed so recently that another change may not show.
    fn is_young(&self) -> bool {
        let Files::Alone(_, _, Some(changed)) = self else { return false };
        let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        SystemClock.wall().checked_sub(changed).is_some_and(|age| age < TICK)
    }
}

fn look(path: &Path) -> Result<Files> {
    let refused = |error: std::io::Error| {
        Error::unusable(format!("there is no file that can be read at {}: {error}", path.display()))
    };
    let file = fs::metadata(path).map_err(refused)?;
    let real = fs::canonicalize(path).map_err(refused)?;
    let log = fs::metadata(beside(&real, "-wal")).map_or(0, |log| log.len());
    let index = fs::metadata(beside(&real, "-shm")).ok();
    match index {
        _ if log <= LOG_HEADER => Ok(Files::Alone(FileId::of(&file), file.len(), file.modified().ok())),
        Some(index) => Ok(Files::Logged(FileId::of(&file), FileId::of(&index))),
        None => Err(Error::unusable(format!(
            "{} has a log without its index (-shm), which cannot be read without making one: open it once with the \
             application, or copy both files and read the copy",
            path.display()
        ))),
    }
}

fn connect(connector: &Connector, files: Files) -> Result<Connection> {
    let mode = match files {
        Files::Logged(..) => "mode=ro&readonly_shm=1",
        Files::Alone(..) => "mode=ro&immutable=1",
    };
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = connector.connect_to(&uri(connector.path(), mode), flags)?;
    db.pragma_update(None, "query_only", true)?;
    Ok(db)
}

/// Returns SQLite's URI of a file. Only plain characters are left unescaped.
fn uri(path: &Path, mode: &str) -> PathBuf {
    #[cfg(unix)]
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
    #[cfg(not(unix))]
    let text = format!("/{}", path.to_string_lossy().replace('\\', "/"));
    #[cfg(not(unix))]
    let bytes = text.as_bytes();
    let mut uri = "file://".to_owned();
    for &byte in bytes {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b':' => uri.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => uri.push(byte.into()),
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    format!("{uri}?{mode}").into()
}

impl fmt::Debug for SqliteReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteReader")
            .field("path", &self.0.connector.path())
            .field("table", &self.0.table.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for SqliteReader {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        let Inner { table, timeline, .. } = &*self.0;
        Ok(self.read(|db| table.snapshot(db, id, timeline))?)
    }

    async fn swap(&self, _swap: &SwapRequest) -> Result<Swap, StoreError> {
        Err(StoreError::unusable(BACKEND, READ_ONLY))
    }

    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let Inner { table, timeline, .. } = &*self.0;
        Ok(self.read(|db| table.page(db, timeline, after, limit))?)
    }

    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let Inner { table, timeline, .. } = &*self.0;
        Ok(self.read(|db| table.evidence_page(db, timeline, after, limit))?)
    }

    fn finds_unsettled(&self) -> bool {
        true
    }

    async fn purge(&self, _limit: usize) -> Result<Purge, StoreError> {
        Err(StoreError::unusable(BACKEND, READ_ONLY))
    }

    async fn discard(&self, _id: &RecordId) -> Result<bool, StoreError> {
        Err(StoreError::unusable(BACKEND, READ_ONLY))
    }

    /// Returns `Power`, the default of the stores that write the file.
    fn durability(&self) -> Durability {
        Durability::Power
    }

    fn identity(&self) -> StoreId {
        self.0.identity
    }

    fn name(&self) -> &'static str {
        NAME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_any_path() {
        let uri = uri(Path::new("/a b/what?.db#1%"), "mode=ro");
        assert_eq!(uri, Path::new("file:///a%20b/what%3f.db%231%25?mode=ro"));
    }
}
