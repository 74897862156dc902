//! Connections to the file, and the creation of its tables.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use rusqlite::{
    Connection, ErrorCode, MAIN_DB, OpenFlags, OptionalExtension, Transaction, TransactionBehavior,
};

use super::anchor::sealed;
use super::file::beside;
use super::held::{self, HeldFile};
use super::trouble::{Trouble, unavailable, unusable};
use super::{Synchronous, path};
use crate::error::StoreError;

/// The version of the tables that this release creates, and the only one it uses.
const VERSION: i64 = 3;
/// The first released version. A later release migrates tables from this version on, in [`make`],
/// in the same transaction that finds them. Earlier versions are refused.
const FIRST_RELEASED: i64 = 3;
/// The page cache of a connection, 8 MiB in SQLite's notation. A larger one is slower.
const CACHE: i64 = -8 * 1024;
const SCHEMA: &str = include_str!("schema.sql");

/// The state of the tables in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tables {
    Missing,
    Current,
}

/// The location of the store's tables, and the settings of connections to them.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: PathBuf,
    busy_timeout: Duration,
}

impl Place {
    /// Makes `path` absolute: readers are opened later, when the working directory may be another.
    pub(super) fn new(path: &Path, busy_timeout: Duration) -> Result<Place, StoreError> {
        path::check(path)?;
        let path = std::path::absolute(path).map_err(|error| unusable(format!("bad path: {error}")))?;
        // SQLite stores milliseconds in 31 bits.
        Ok(Place { path, busy_timeout: busy_timeout.min(Duration::from_millis(i32::MAX as u64)) })
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
    ) -> Result<(Connection, HeldFile), StoreError> {
        let file = create_private(&self.path)?;
        let db = self.connect()?;
        // Nothing is written before the file is known to be one that may be written to.
        let found = look(&db, table)?;
        if db.is_readonly(MAIN_DB).map_err(|error| self.refused(error))? {
            return Err(unusable(format!("{} is read-only", self.path.display())));
        }
        self.use_wal(&db)?;
        set_up_writer(&db, synchronous).map_err(|error| self.refused(error))?;
        if found != Tables::Current {
            make(&db, table)?;
        }
        Ok((db, file))
    }

    /// Opens a connection that reads beside the writer.
    pub(super) fn open_reader(&self) -> Result<Connection, StoreError> {
        let db = self.connect()?;
        db.pragma_update(None, "query_only", true).map_err(|error| self.refused(error))?;
        db.pragma_update(None, "cache_size", CACHE).map_err(|error| self.refused(error))?;
        Ok(db)
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.path, flags).map_err(|error| self.refused(error))?;
        db.busy_timeout(self.busy_timeout).map_err(|error| self.refused(error))?;
        // The first read shows whether the file is a database at all.
        db.query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(()))
            .map_err(|error| self.refused(error))?;
        Ok(db)
    }

    /// Switches the file to WAL. This needs exclusive access for a moment, and SQLite does not
    /// always wait for it by itself.
    fn use_wal(&self, db: &Connection) -> Result<(), StoreError> {
        const PAUSE: Duration = Duration::from_millis(5);
        db.busy_timeout(Duration::ZERO).map_err(|error| self.refused(error))?;
        let mut tries = self.busy_timeout.as_millis() / PAUSE.as_millis() + 1;
        let mode = loop {
            let mode = db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0));
            tries = tries.saturating_sub(1);
            match mode {
                Err(error) if tries > 0 && is_busy(&error) => thread::sleep(PAUSE),
                mode => break mode.map_err(|error| self.refused(error))?,
            }
        };
        if mode != "wal" {
            return Err(unusable(format!("the file does not take WAL, its journal mode is `{mode}`")));
        }
        db.busy_timeout(self.busy_timeout).map_err(|error| self.refused(error))
    }

    fn refused(&self, error: rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                unusable(format!("{} is not a SQLite database; it is left as it is", self.path.display()))
            }
            Some(ErrorCode::CannotOpen) => self.cannot_open(),
            Some(_) | None => Trouble::from(error).into(),
        }
    }
}

impl Place {
    fn cannot_open(&self) -> StoreError {
        let path = self.path.display();
        match path::out_of_descriptors() {
            // Passes once other files are closed.
            Some(why) => unavailable(format!("{path} cannot be opened: {why}")),
            None => unusable(format!(
                "{path} cannot be opened: it must be a file that can be written to, in a folder that can be, where its \
                 log is kept"
            )),
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
fn create_private(path: &Path) -> Result<HeldFile, StoreError> {
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    if length(&beside(path, "-wal")) > 0 && length(path) == 0 {
        return Err(unusable(format!("{} is gone or empty, but its log is not", path.display())));
    }
    HeldFile::make(path, held::DATABASE).map_err(|error| match path::explain(&error) {
        Some(why) => unavailable(format!("{} cannot be opened: {why}", path.display())),
        None => unusable(format!("{} cannot be created or opened: {error}", path.display())),
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
    db.pragma_update_and_check(None, "journal_size_limit", super::log::USUAL as i64, |_| Ok(()))?;
    // The writer runs checkpoints after it has answered.
    db.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))
}

/// Runs [`check`] on a consistent snapshot: another process may be creating the tables.
fn look(db: &Connection, table: &str) -> Result<Tables, StoreError> {
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Deferred).map_err(Trouble::from)?;
    check(&transaction, table)
}

/// Checks that the tables exist and have a known version. Any partial state is refused.
fn check(db: &Transaction<'_>, table: &str) -> Result<Tables, StoreError> {
    let meta = format!("{table}_meta");
    let exists = |name: &str| -> Result<bool, Trouble> {
        let sql = "SELECT count(*) FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE";
        Ok(db.query_row(sql, [name], |row| row.get::<_, i64>(0))? > 0)
    };
    match (exists(table)?, exists(&meta)?) {
        (false, false) => return nothing_lost(db).map(|()| Tables::Missing),
        (true, true) => {}
        (true, false) => return Err(unusable(format!("it has a table {table} that is not a store's"))),
        (false, true) => return Err(unusable(format!("it has a table {meta} but no {table}"))),
    }
    let sql = format!("SELECT version FROM main.\"{meta}\" WHERE one = 1");
    let version: Option<i64> = db.query_row(&sql, [], |row| row.get(0)).optional().map_err(Trouble::from)?;
    match version {
        Some(VERSION) => Ok(Tables::Current),
        Some(newer) if newer > VERSION => Err(unusable(format!(
            "its tables are of version {newer}, this release knows {VERSION}; they are left as they are"
        ))),
        Some(older) if (1..FIRST_RELEASED).contains(&older) => Err(unusable(format!(
            "its tables are of version {older}, from before the first release, and cannot be read; they are left as they are: \
             take another file or table"
        ))),
        Some(_) | None => Err(unusable(format!("table {meta} names no version that was ever written"))),
    }
}

/// Refuses a file with pages in use but an empty schema: the schema is damaged.
fn nothing_lost(db: &Transaction<'_>) -> Result<(), StoreError> {
    let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(Trouble::from);
    let tables = number("SELECT count(*) FROM main.sqlite_schema")?;
    let pages = number("PRAGMA main.page_count")? - number("PRAGMA main.freelist_count")?;
    // The first page holds the schema. In a file with auto-vacuum the second is a pointer map.
    if tables == 0 && pages > 2 {
        return Err(unusable("its schema is empty, but its pages are in use"));
    }
    Ok(())
}

/// Creates the tables in one transaction, unless another process already did.
fn make(db: &Connection, table: &str) -> Result<(), StoreError> {
    let transaction =
        Transaction::new_unchecked(db, TransactionBehavior::Immediate).map_err(Trouble::from)?;
    match check(&transaction, table)? {
        Tables::Missing => {
            // From the operating system: a machine copied while running would draw the same bytes
            // twice.
            let mut store = vec![0; 16];
            SysRng
                .try_fill_bytes(&mut store)
                .map_err(|error| unusable(format!("no random bytes: {error}")))?;
            let sql = SCHEMA.replace("{table}", table).replace("{version}", &VERSION.to_string());
            let sql = sql.replace("{store}", &hex::encode(sealed(store)));
            transaction.execute_batch(&sql).map_err(Trouble::from)?;
        }
        Tables::Current => {}
    }
    transaction.commit().map_err(Trouble::from)?;
    Ok(())
}
