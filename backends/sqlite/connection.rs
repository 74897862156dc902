//! Connections to the file: [`Connector`].

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};

use super::error::{Error, Result};
use super::file::beside;
use super::held::{self, HeldFile};
use super::{Synchronous, log, path, schema};

/// The page cache of a connection, 8 MiB in SQLite's notation. A larger one is slower.
const CACHE: i64 = -8 * 1024;

/// The path of the file, and the settings of connections to it.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    path: PathBuf,
    busy_timeout: Duration,
}

impl Connector {
    /// Makes `path` absolute: readers are opened later, when the working directory may be another.
    pub(super) fn new(path: &Path, busy_timeout: Duration) -> Result<Connector> {
        path::check(path)?;
        let path =
            std::path::absolute(path).map_err(|error| Error::unusable(format!("bad path: {error}")))?;
        // SQLite stores milliseconds in 31 bits.
        Ok(Connector { path, busy_timeout: busy_timeout.min(Duration::from_millis(i32::MAX as u64)) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn busy_timeout(&self) -> Duration {
        self.busy_timeout
    }

    /// Opens the writing connection, and creates the tables if there are none. Also returns the
    /// file that was at the path just before it was opened.
    pub(super) fn open_writer(
        &self,
        table: &str,
        synchronous: Synchronous,
    ) -> Result<(Connection, HeldFile)> {
        let file = create_private(&self.path)?;
        let db = self.connect()?;
        // Nothing is written before the file is known to be one that may be written to.
        let has_tables = schema::is_there(&db, table)?;
        if db.is_readonly(MAIN_DB)? {
            return Err(Error::unusable(format!("{} is read-only", self.path.display())));
        }
        let mode = self.use_wal(&db).map_err(|error| self.refused(error))?;
        if mode != "wal" {
            let detail = format!("the file cannot be switched to WAL, its journal mode is `{mode}`");
            return Err(Error::unusable(detail));
        }
        set_up_writer(&db, synchronous).map_err(|error| self.refused(error))?;
        if !has_tables {
            schema::make(&db, table)?;
        }
        Ok((db, file))
    }

    /// Opens a connection that reads beside the writer.
    pub(super) fn open_reader(&self) -> Result<Connection> {
        let db = self.connect()?;
        db.pragma_update(None, "query_only", true)
            .and_then(|()| db.pragma_update(None, "cache_size", CACHE))
            .map_err(|error| self.refused(error))?;
        Ok(db)
    }

    /// Opens a connection that writes to other tables than a store's. It leaves the file's journal
    /// mode alone.
    pub(super) fn open_other(&self) -> Result<Connection> {
        let db = self.connect()?;
        if db.is_readonly(MAIN_DB)? {
            return Err(Error::unusable(format!("{} is read-only", self.path.display())));
        }
        let set_up = || {
            let mode: String = db.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
            // In other modes a power cut could damage the file.
            if mode == "wal" {
                db.pragma_update(None, "synchronous", "normal")?;
            }
            db.set_prepared_statement_cache_capacity(32);
            Ok(())
        };
        set_up().map_err(|error| self.refused(error))?;
        Ok(db)
    }

    fn connect(&self) -> Result<Connection> {
        self.connect_to(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
    }

    /// Opens a connection by a path or URI of the file.
    pub(super) fn connect_to(&self, path: &Path, flags: OpenFlags) -> Result<Connection> {
        let connect = || {
            let db = Connection::open_with_flags(path, flags)?;
            db.busy_timeout(self.busy_timeout)?;
            // The first read shows whether the file is a database at all.
            db.query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(()))?;
            Ok(db)
        };
        connect().map_err(|error| self.refused(error))
    }

    /// Switches the file to WAL, and returns its mode. This needs exclusive access for a moment,
    /// and SQLite does not always wait for it by itself.
    fn use_wal(&self, db: &Connection) -> rusqlite::Result<String> {
        const PAUSE: Duration = Duration::from_millis(5);
        db.busy_timeout(Duration::ZERO)?;
        let mut tries = self.busy_timeout.as_millis() / PAUSE.as_millis() + 1;
        loop {
            let mode = db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0));
            tries = tries.saturating_sub(1);
            match mode {
                Err(error) if tries > 0 && is_busy(&error) => thread::sleep(PAUSE),
                mode => return db.busy_timeout(self.busy_timeout).and(mode),
            }
        }
    }

    fn refused(&self, error: rusqlite::Error) -> Error {
        let path = self.path.display();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                Error::unusable(format!("{path} is not a SQLite database; it is left as it is"))
            }
            Some(ErrorCode::CannotOpen) => match path::out_of_descriptors() {
                // Passes once other files are closed.
                Some(why) => Error::unavailable(format!("{path} cannot be opened: {why}")),
                None => Error::unusable(format!(
                    "{path} cannot be opened: it must be a file that can be written to, in a folder that can be, where \
                     its log is kept"
                )),
            },
            Some(_) | None => error.into(),
        }
    }
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Creates the file if there is none, for its owner only: its contents may be worth stealing.
/// SQLite gives the files beside it the same mode.
///
/// A log without its file is the remains of a store, and SQLite would remove it. A file that is
/// being created has its first page before it has a log, so the log is checked first.
fn create_private(path: &Path) -> Result<HeldFile> {
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    if length(&beside(path, "-wal")) > 0 && length(path) == 0 {
        return Err(Error::unusable(format!("{} is gone or empty, but its log is not", path.display())));
    }
    HeldFile::make(path, held::DATABASE).map_err(|error| match path::explain(&error) {
        Some(why) => Error::unavailable(format!("{} cannot be opened: {why}", path.display())),
        None => Error::unusable(format!("{} cannot be created or opened: {error}", path.display())),
    })
}

fn set_up_writer(db: &Connection, synchronous: Synchronous) -> rusqlite::Result<()> {
    let level = match synchronous {
        Synchronous::Full => "full",
        Synchronous::Normal => "normal",
    };
    db.set_prepared_statement_cache_capacity(32); // the writer has fewer
    db.pragma_update(None, "synchronous", level)?;
    // Only macOS has this setting: there, fsync alone does not reach the disk.
    db.pragma_update(None, "fullfsync", synchronous == Synchronous::Full)?;
    db.pragma_update(None, "checkpoint_fullfsync", synchronous == Synchronous::Full)?;
    db.pragma_update(None, "cache_size", CACHE)?;
    db.pragma_update_and_check(None, "journal_size_limit", log::USUAL as i64, |_| Ok(()))?;
    // The writer runs checkpoints after it has answered.
    db.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))
}
